"""The user's own function as a reward."""

import importlib
import pathlib
import sys
from typing import Any

from alignjax.rewards import base


@base.factory
def python(path: str) -> base.Score:
  """A Python object that takes a sequence of `Sample` and returns one number for each: a function, or any callable.

  Args:
    path: `'package.module:name'` of the object. The module is installed, or in the current folder.

  Raises:
    ValueError: there is no such module or object, it cannot be imported, or it cannot be called.
  """
  module, _, name = path.partition(':')
  if not module or not name:
    raise ValueError(f"python({path!r}): give the module and the name of the function, 'package.module:function'")
  if '' not in sys.path and str(pathlib.Path.cwd()) not in sys.path:
    sys.path.append(str(pathlib.Path.cwd()))  # last, so that nothing installed is shadowed
  try:
    found: Any = importlib.import_module(module)
  except (Exception, SystemExit) as error:  # a user's module may raise anything
    raise ValueError(f'python({path!r}): importing {module} failed: {type(error).__name__}: {error}') from error
  for attribute in name.split('.'):
    if not hasattr(found, attribute):
      raise ValueError(f'python({path!r}): {module} has no {name}')
    found = getattr(found, attribute)
  if not callable(found) or isinstance(found, type):
    raise ValueError(f'python({path!r}) is {found!r}, which is not a function of samples')
  return found
