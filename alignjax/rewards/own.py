"""The user's own function as a reward."""

from collections.abc import Sequence
import dataclasses
import hashlib
import importlib
import pathlib
import sys
from typing import Any

import numpy as np

from alignjax.rewards import base


@dataclasses.dataclass(frozen=True)
class Own:
  """A user's function of samples.

  Args:
    function: the function.
    fingerprint: the sha256 of the file that defines its module; empty if there is none.
  """

  function: base.Score
  fingerprint: str

  @property
  def collective(self) -> bool:
    """Whether all processes compute it together, as the function declares."""
    return getattr(self.function, 'collective', False)

  def __call__(self, samples: Sequence[base.Sample]) -> np.ndarray:
    return self.function(samples)


@base.factory
def python(path: str) -> base.Score:
  """A Python object that takes a sequence of `Sample` and returns one number for each: a function, or any callable.

  The file of its module is part of a run's identity: a run refuses to resume after the file changes.

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
  source = getattr(found, '__file__', None)
  for attribute in name.split('.'):
    if not hasattr(found, attribute):
      raise ValueError(f'python({path!r}): {module} has no {name}')
    found = getattr(found, attribute)
  if not callable(found) or isinstance(found, type):
    raise ValueError(f'python({path!r}) is {found!r}, which is not a function of samples')
  return Own(found, hashlib.sha256(pathlib.Path(source).read_bytes()).hexdigest() if source else '')
