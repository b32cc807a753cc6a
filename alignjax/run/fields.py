"""Defines settings as frozen dataclasses, whose fields become flags (`program_flags`), checks and lines of --help.

@dataclasses.dataclass(frozen=True)
class Settings:
  '''Sampling'''

  model: str = fields.field('', 'Folder of the model.', required=True)
  samples: int = fields.field(1, 'Responses to each prompt.', at_least=1)

  def __post_init__(self):
    fields.check(self)

Types: str, int, float, bool, tuple[str, ...], tuple[tuple[int, int], ...], and dataclasses of such fields, whose flags
have dotted names. A list is given as one flag with commas, or as repeated flags. '' is an empty string or list.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from alignjax import paths
from alignjax.run import hints

SHOWN = 200  # characters of a value in a message
LARGEST = 2**31 - 1  # of an integer, unless its field has another limit
Strings = tuple[str, ...]
Pairs = tuple[tuple[int, int], ...]
_WANTED = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}


def field(
  default: Any,
  text: str,
  *,
  choices: Sequence[str] = (),
  at_least: float | None = None,
  path: str = '',
  **metadata: Any,
) -> Any:
  """Defines a field of a dataclass of settings.

  Args:
    default: the value without a flag.
    text: the line of --help, a full sentence or a noun phrase with units.
    choices: the values that the field can have; empty for any value.
    at_least: the smallest value that a number can have.
    path: how a path, or a list of paths, is used: paths.READ, WRITTEN, RUN, IN_PLACE or DISK. Expands a leading `~`.
    **metadata: `required=True` for a value that must be given, `flag='import'` for a flag with another name,
      `at_most=1024` for the largest value of a number, and further entries for other readers of the field.
  """
  return dataclasses.field(
    default=default, metadata={'text': text, 'choices': tuple(choices), 'at_least': at_least, 'path': path, **metadata}
  )


class Leaf(NamedTuple):
  """A setting, with the dotted name of its flag."""

  name: str  # dotted name of the field: 'mesh.fsdp'
  flag: str  # name of the flag: 'mesh.fsdp', 'import'
  field: dataclasses.Field
  group: str  # heading in --help: the first line of the docstring of the class that defines the field


def leaves(kind: type, prefix: str = '', flag_prefix: str = '', group: str = '') -> Iterator[Leaf]:
  """All settings of a dataclass, including those of nested dataclasses. Fields without a text are no settings."""
  for item in dataclasses.fields(kind):
    if 'text' not in item.metadata and not dataclasses.is_dataclass(item.type):
      continue
    heading = group or _owner(kind, item.name).__doc__.splitlines()[0].rstrip('.')
    flag = item.metadata.get('flag', item.name)
    if not dataclasses.is_dataclass(item.type):
      yield Leaf(prefix + item.name, flag_prefix + flag, item, heading)
    elif flag:
      yield from leaves(item.type, f'{prefix}{item.name}.', f'{flag_prefix}{flag}.', heading)
    else:  # flags without a prefix, in groups of their own
      yield from leaves(item.type, f'{prefix}{item.name}.', flag_prefix)


def _owner(kind: type, name: str) -> type:
  """The class that defines a field."""
  return next(base for base in reversed(kind.__mro__) if name in vars(base).get('__annotations__', {}))


def flat(settings: Any, prefix: str = '') -> dict[str, Any]:
  """The values by dotted field name."""
  values: dict[str, Any] = {}
  for item in dataclasses.fields(settings):
    value = getattr(settings, item.name)
    values |= flat(value, f'{prefix}{item.name}.') if dataclasses.is_dataclass(value) else {prefix + item.name: value}
  return values


def build(kind: type, values: Mapping[str, Any], what: str = '--', prefix: str = '') -> Any:
  """Builds a dataclass from values by field name, converts them to the types of the fields, and checks them.

  Args:
    kind: the dataclass.
    values: values from flags, JSON or a ConfigDict; nested for nested dataclasses.
    what: prefix of field names in messages: '--' or 'config.'.
    prefix: dotted prefix of the names in a nested dataclass.

  Raises:
    ValueError: a name is unknown (the message suggests the nearest known one), or a value is invalid.
  """
  known = {item.name: item for item in dataclasses.fields(kind)}
  arguments = {}
  for name, value in values.items():
    if name not in known:
      raise ValueError(f'{what}{prefix}{name} is not a setting{hints.hint(str(name), known, prefix)}')
    value = _convert(known[name].type, value, what, prefix + name)
    arguments[name] = map_paths(known[name], value, paths.expand)
  built = kind(**arguments)
  if not prefix:
    check(built, what)
  return built


def map_paths(item: dataclasses.Field, value: Any, call: Callable[[str], str]) -> Any:
  """The value of a field, after a function was applied to each path in it. Empty paths stay empty."""
  if not item.metadata.get('path'):
    return value
  if isinstance(value, tuple):
    return tuple(map(call, value))
  return call(value) if value else value


def _convert(kind: Any, value: Any, what: str, name: str) -> Any:
  """Converts a value to the type of its field: ints to floats, lists to tuples, comma-separated text to lists.

  None, such as an empty value in YAML, is an empty string or list.
  """
  value = '' if value is None and kind in (str, Strings, Pairs) else value
  if dataclasses.is_dataclass(kind):
    if isinstance(value, kind):
      return value
    _require(isinstance(value, Mapping), what + name, value, 'a group of settings by name')
    return build(kind, value, what, name + '.')
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind == Strings:
    value = split(value) if isinstance(value, str) else value
    fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    _require(fits, what + name, value, 'a list of strings')
    return tuple(value)
  if kind == Pairs:
    value = pairs(value) if isinstance(value, str) else value
    fits = isinstance(value, list | tuple) and all(
      isinstance(item, list | tuple) and len(item) == 2 and all(type(size) is int for size in item) for item in value
    )
    _require(fits, what + name, value, 'a list of pairs (prompt, response) of tokens, such as ((64, 32), (128, 64))')
    return tuple(map(tuple, value))
  _require(type(value) is kind, what + name, value, _WANTED[kind])
  return value


def split(text: str) -> Strings:
  """Splits text into strings: a Python tuple, or items separated by commas outside brackets; '' gives none."""
  literal = _literal(text) if text.startswith(('(', '[')) else text
  if isinstance(literal, list | tuple):
    return tuple(literal)
  if text.startswith('[') and text.endswith(']'):  # [a,b], as in YAML
    text = text[1:-1]
  items, depth = [''], 0
  for character in text:
    depth += (character in '([{') - (character in ')]}')
    if character == ',' and depth == 0:
      items.append('')
    else:
      items[-1] += character
  return tuple(item.strip() for item in items if item.strip())


def pairs(text: str) -> Any:
  """Reads pairs of numbers: '(64, 32), (128, 64)', with or without brackets around all of them; '' gives none.

  Returns:
    The pairs, or another value if the text has no pairs.
  """
  value = _literal(text)
  if isinstance(value, dict):
    return text
  single = isinstance(value, list | tuple) and len(value) == 2 and all(type(size) is int for size in value)
  return (value,) if single and text.lstrip().startswith(('(', '[')) else value


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text) if text else ()
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return text


def _require(condition: bool, name: str, value: Any, wanted: str) -> None:
  if not condition:
    shown = repr(value)
    shown = shown if len(shown) <= SHOWN else f'{shown[:SHOWN]}...'
    raise ValueError(f'{name} = {shown}: must be {wanted}')


def check(settings: Any, what: str = '--') -> None:
  """Checks the values of a dataclass against the types, the choices and the bounds of its fields, and its paths.

  Raises:
    ValueError: a value is not allowed. The message names the field, its value and what is allowed.
  """
  for item in dataclasses.fields(settings):
    value, name = getattr(settings, item.name), what + item.name
    if dataclasses.is_dataclass(value):
      check(value, f'{name}.')
      continue
    choices, least, most = map(item.metadata.get, ('choices', 'at_least', 'at_most'))
    if item.type in (str, bool, int, float):
      fits = type(value) is item.type or (item.type is float and type(value) is int)
      _require(fits, name, value, _WANTED[item.type])
    if type(value) is int:
      most = LARGEST if most is None else most
      _require(value <= most, name, value, f'at most {most}')
    _require(least is None or value >= least, name, value, f'at least {least}')
    _require(not choices or value in choices, name, value, ' or '.join(map(str, choices or ())))
    if use := item.metadata.get('path'):
      for text in (value,) if isinstance(value, str) else value:
        try:
          paths.check(text, use)
        except ValueError as error:
          raise ValueError(f'{name} = {error}') from error


def naming[V, T](name: str, parse: Callable[[V], T], value: V) -> T:
  """Parses the value of a setting. Errors name the setting."""
  try:
    return parse(value)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def flat_dict(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens {'mesh': {'fsdp': 2}} to {'mesh.fsdp': 2}."""
  found: dict[str, Any] = {}
  for name, value in values.items():
    found |= flat_dict(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
  return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
  """Nests {'mesh.fsdp': 2} as {'mesh': {'fsdp': 2}}."""
  result: dict[str, Any] = {}
  for name, value in values.items():
    *path, last = name.split('.')
    place = result
    for part in path:
      place = place.setdefault(part, {})
    place[last] = value
  return result
