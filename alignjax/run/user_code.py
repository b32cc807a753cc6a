"""Imports users' own files and modules before expressions are read.

A file registers its functions with `@objectives.factory`, `@optim.factory`, `@rewards.factory`, `@judges.factory`,
`@strategies.factory` or `@merging.factory`. Expressions can then use them by name.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import importlib
import importlib.util
import pathlib
import sys
import traceback
import types

from alignjax import paths
from alignjax.run import fields

PACKAGE = 'alignjax_imports'  # package of imported files: alignjax_imports.mine
_loaded: dict[str, str] = {}  # imported files and modules, with a hash of their source


@dataclasses.dataclass(frozen=True)
class UserCode:
  """Your own code."""

  imports: tuple[str, ...] = fields.field(
    (),
    'Python file or module with your own objectives, optimizers, rewards, judges or strategies, such as mine.py or '
    'package.module; can be repeated; empty: none.',
    flag='import',
    path=paths.READ,
    on_resume='free',  # the contents are compared, not the paths
  )


def load(imports: Sequence[str]) -> None:
  """Imports files and modules, in order. Imports one again only if it has changed.

  Args:
    imports: paths of Python files, 'mine.py', or names of modules, 'package.module', which are installed or in the
      current folder.

  Raises:
    ValueError: there is no such file or module, or it raises an exception; the message names the user's file and line.
  """
  names = [_name(text) for text in imports]
  for text, name in zip(imports, names, strict=True):
    if names.count(name) > 1:
      raise ValueError(f'--import={text}: {name} is imported twice; give the files different names')
    content = _hash(text)
    if _loaded.get(_key(text)) == content:
      continue
    try:
      _import_file(pathlib.Path(text)) if _is_file(text) else _import_module(text)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
      raise ValueError(f'--import={text}: {_place(error, text)}{reason(error)}') from error
    _loaded[_key(text)] = content


def fingerprints(imports: Sequence[str]) -> dict[str, str]:
  """The sha256 of the source of each import, by its name without folders: 'mine.py', 'package.module'."""
  return {_name(text): _hash(text) for text in imports}


def _is_file(text: str) -> bool:
  return text.endswith('.py') or '/' in text


def _name(text: str) -> str:
  return pathlib.Path(text).name if _is_file(text) else text


def _key(text: str) -> str:
  return str(pathlib.Path(text).resolve()) if _is_file(text) else text


def _hash(text: str) -> str:
  """Hashes the source of a file, or all Python files of a package with their names."""
  if _is_file(text):
    path = pathlib.Path(text)
    if not path.is_file():
      raise ValueError(f'--import={text}: there is no such file')
    return hashlib.sha256(path.read_bytes()).hexdigest()
  spec = _spec(text)
  if spec.submodule_search_locations is None:
    return hashlib.sha256(pathlib.Path(spec.origin).read_bytes()).hexdigest()
  digest = hashlib.sha256()
  for folder in map(pathlib.Path, spec.submodule_search_locations):
    for path in sorted(folder.rglob('*.py')):
      digest.update(f'{path.relative_to(folder)}:{path.stat().st_size}:'.encode() + path.read_bytes())
  return digest.hexdigest()


def _spec(name: str) -> importlib.machinery.ModuleSpec:
  if '' not in sys.path and str(pathlib.Path.cwd()) not in sys.path:
    sys.path.append(str(pathlib.Path.cwd()))  # last, so that nothing installed is shadowed
  try:
    spec = importlib.util.find_spec(name)
  except (Exception, SystemExit) as error:  # a parent package is imported to look for the module
    raise ValueError(f'--import={name}: {_place(error, name)}{reason(error)}') from error
  if spec is None or not (spec.has_location or spec.submodule_search_locations):
    raise ValueError(
      f'--import={name}: there is no such module, neither here nor installed; to import a file, give {name}.py'
    )
  return spec


def _import_file(path: pathlib.Path) -> None:
  name = f'{PACKAGE}.{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path.resolve())
  module = importlib.util.module_from_spec(spec)
  sys.modules.setdefault(PACKAGE, types.ModuleType(PACKAGE))
  sys.modules[name] = module
  try:
    # Compiles the source, because cached bytecode may be older than an edit within the same second.
    exec(compile(path.read_bytes(), str(path.resolve()), 'exec'), vars(module))
  except BaseException:
    del sys.modules[name]
    raise


def _import_module(name: str) -> None:
  module = sys.modules.get(name)
  if module is None:
    importlib.import_module(name)
  elif name in _loaded:
    importlib.reload(module)


def _place(error: BaseException, text: str) -> str:
  """The line of the user's code that raised an exception: 'mine.py:12: '."""
  if isinstance(error, SyntaxError) and error.filename:
    return f'{error.filename}:{error.lineno}: '
  library = str(pathlib.Path(__file__).parents[1])
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith(('<', library)) and 'importlib' not in frame.filename
  ]
  own = [frame for frame in frames if pathlib.Path(frame.filename) == pathlib.Path(text).resolve()] or frames
  return f'{own[-1].filename}:{own[-1].lineno}: ' if own else ''


def reason(error: BaseException) -> str:
  """The message of an exception from user code, with its type unless it is a ValueError."""
  if isinstance(error, ValueError):
    return str(error)
  return f'{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}'
