"""Reads the file of --config: settings in YAML or JSON, or a Python file whose get_config() returns them."""

from collections.abc import Callable, Mapping
import inspect
import json
import os
import re
import sys
import traceback
import types
from typing import Any, NamedTuple

import ml_collections
import yaml

from alignjax import files, paths
from alignjax.run import fields, settings, user_code

_MODULE = 'alignjax_config'  # name of a Python file while it is loaded
_PYTHON = re.compile(r'(?P<path>.*?\.py)(:(?P<argument>.*))?', re.DOTALL)


class Loaded(NamedTuple):
  """The settings of a file."""

  config: settings.Config
  names: frozenset[str]  # dotted names of the settings that the file has chosen


def load(location: str) -> Loaded:
  """Reads a file of settings.

  Args:
    location: the path of a .yaml, .yml, .json or .py file; 'file.py:argument' calls get_config('argument').

  Raises:
    ValueError: there is no such file, it cannot be read, or a setting is unknown or invalid. The message names the
      file, the line where it is known, and the setting.
  """
  python = _PYTHON.fullmatch(location)
  path = python['path'] if python else location
  if not python and not path.endswith(('.yaml', '.yml', '.json')):
    raise ValueError(f'--config={location}: must be a .yaml, .json or .py file')
  try:
    text = _read(path)
    return _of_python(path, text, python['argument']) if python else _of_text(path, text)
  except _Fault as fault:
    line = f'line {fault.line}: ' if fault.line else ''
    raise ValueError(f'--config={location}: {line}{fault}') from fault.__cause__
  except RecursionError:
    raise ValueError(f'--config={location}: the values are nested too deeply') from None
  except (ValueError, OSError) as error:
    raise ValueError(f'--config={location}: {str(error).removeprefix(f"{path}: ")}') from error


class _Fault(ValueError):
  """What is wrong in a file, and in which line; 0 if that is unknown."""

  def __init__(self, message: str, line: int = 0):
    super().__init__(message)
    self.line = line


def _read(path: str) -> str:
  file = paths.path(path)
  return file.read_text() if paths.scheme(path) else files.read_text(file)


# Text.


def _of_text(path: str, text: str) -> Loaded:
  """The settings of YAML or JSON."""
  values, line_of = _parse_json(text) if path.endswith('.json') else _parse_yaml(text)
  if values is None:
    raise _Fault('the file is empty: it must contain settings by name, such as batch_size: 32')
  if not isinstance(values, dict):
    raise _Fault('must contain settings by name, such as batch_size: 32')
  flat = {}
  for name, value in fields.flat_dict(values).items():
    try:
      settings.from_dict(fields.nested({name: value}))
    except ValueError as error:
      raise _Fault(str(error), line_of(name)) from error
    flat[name] = value
  return Loaded(settings.from_dict(fields.nested(flat)), frozenset(flat))


def _parse_json(text: str) -> tuple[Any, Callable[[str], int]]:
  """The value, and the line of a setting; 0 if its name occurs in more than one line."""

  def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in items]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
      raise _Fault(f'{twice!r} is given more than once', 0)
    return dict(items)

  def line_of(name: str) -> int:
    key = re.compile(re.escape(json.dumps(name.rpartition('.')[2])) + r'\s*:')
    found = list(key.finditer(text))
    return text.count('\n', 0, found[0].start()) + 1 if len(found) == 1 else 0

  try:
    return json.loads(text, object_pairs_hook=unique) if text.strip() else None, line_of
  except json.JSONDecodeError as error:
    raise _Fault(f'not valid JSON: {error.msg} (column {error.colno})', error.lineno) from error


class _Loader(yaml.SafeLoader):
  """Reads YAML 1.2 without references, with which a small file can describe a huge value, and without repeated names.

  Words such as `off` are text, and 1e-6 is a number; both are otherwise in YAML 1.1, which `yaml.SafeLoader` reads.
  """

  yaml_implicit_resolvers: Mapping[str, Any] = {}

  def compose_node(self, parent: yaml.Node, index: object) -> yaml.Node:
    if self.check_event(yaml.AliasEvent):
      event = self.peek_event()
      raise yaml.composer.ComposerError(None, None, f'references (*{event.anchor}) are not allowed', event.start_mark)
    return super().compose_node(parent, index)

  def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
    names = set()
    for key, _ in node.value:
      if not isinstance(key, yaml.ScalarNode) or key.tag != 'tag:yaml.org,2002:str':
        raise yaml.constructor.ConstructorError(None, None, 'names of settings must be text', key.start_mark)
      if key.value in names:
        raise yaml.constructor.ConstructorError(None, None, f'{key.value!r} is given more than once', key.start_mark)
      names.add(key.value)
    return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
  ('null', r'~|null|Null|NULL|', ['~', 'n', 'N', '']),
  ('bool', r'true|True|TRUE|false|False|FALSE', list('tTfF')),
  ('int', r'[-+]?[0-9]+', list('-+0123456789')),
  ('float', r'[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan', list('-+.0123456789')),
):
  _Loader.add_implicit_resolver(f'tag:yaml.org,2002:{_tag}', re.compile(f'({_pattern})$'), _first)
_Loader.add_constructor('tag:yaml.org,2002:int', lambda loader, node: int(loader.construct_scalar(node)))


def _parse_yaml(text: str) -> tuple[Any, Callable[[str], int]]:
  """The value, and the line of a setting."""
  try:
    loader = _Loader(text)
    try:
      root = loader.get_single_node()
      value = None if root is None else loader.construct_document(root)
    finally:
      loader.dispose()
  except yaml.MarkedYAMLError as error:
    mark = error.problem_mark or error.context_mark
    raise _Fault(f'not valid YAML: {error.problem or error.context}', mark.line + 1 if mark else 0) from error
  except yaml.reader.ReaderError as error:
    raise _Fault(f'not valid YAML: {error.reason}', text.count('\n', 0, error.position) + 1) from error
  return value, lambda name: _line_in(root, name.split('.'))


def _line_in(node: yaml.Node, names: list[str]) -> int:
  """The line of a setting, or of the group that holds it."""
  line = 0
  while names and isinstance(node, yaml.MappingNode):
    found = next(
      (
        (key, value, n)
        for key, value in node.value
        for n in range(len(names), 0, -1)
        if key.value == '.'.join(names[:n])
      ),
      None,
    )
    if found is None:
      break
    key, node, used = found
    line, names = key.start_mark.line + 1, names[used:]
  return line


# Python.


def _of_python(path: str, text: str, argument: str | None) -> Loaded:
  """The settings that get_config() of a Python file returns."""
  module = types.ModuleType(_MODULE)
  module.__file__ = os.path.abspath(path)
  sys.modules[_MODULE] = module  # for dataclasses in the file
  try:
    exec(compile(text, module.__file__, 'exec'), vars(module))
    get_config = vars(module).get('get_config')
    if not callable(get_config):
      raise _Fault('defines no function get_config(), which returns alignjax.run.settings.config_dict(...)')
    found = get_config(*_arguments(get_config, path, argument))
  except _Fault:
    raise
  except (Exception, SystemExit) as error:  # the file may raise anything
    raise _Fault(user_code.reason(error), _line(error, module.__file__)) from error
  finally:
    del sys.modules[_MODULE]
  if not isinstance(found, ml_collections.ConfigDict):
    raise _Fault(f'get_config() must return settings.config_dict(...), not {type(found).__name__}')
  config, default = settings.from_dict(found.to_dict()), settings.flat(settings.Config())
  values = settings.flat(config)
  return Loaded(config, frozenset(name for name, value in values.items() if value != default[name]))


def _arguments(get_config: Callable[..., Any], path: str, argument: str | None) -> list[str]:
  """The arguments of get_config(): the part of --config after the colon, if there is one."""
  given = [] if argument is None else [argument]
  try:
    inspect.signature(get_config).bind(*given)
  except TypeError:
    if given:
      raise _Fault(f'get_config() takes no argument: give --config={path}') from None
    raise _Fault(f'get_config() needs an argument: give --config={path}:<argument>') from None
  return given


def _line(error: BaseException, path: str) -> int:
  """The line of the file that raised an exception; 0 if none did."""
  if isinstance(error, SyntaxError) and error.filename == path:
    return error.lineno or 0
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
  return lines[-1] if lines else 0
