"""Defines settings as frozen dataclasses, whose fields become flags, checks and lines of --help.

@dataclasses.dataclass(frozen=True)
class Settings:
  '''Sampling'''

  model: str = fields.field('', 'Folder of the model.', required=True)
  samples: int = fields.field(1, 'Responses to each prompt.', at_least=1)

  def __post_init__(self):
    fields.check(self)

Types: str, int, float, bool, tuple[str, ...], tuple[tuple[int, int], ...], and dataclasses of such fields, whose flags
have dotted names. A list is given as one flag with commas, or as repeated flags.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import difflib
from typing import Any, NamedTuple

from absl import flags

from alignjax import paths

SHOWN = 200  # characters of a value in a message
LARGEST = 2**31 - 1  # of an integer, unless its field has another limit
Strings = tuple[str, ...]
Pairs = tuple[tuple[int, int], ...]


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
  """All settings of a dataclass, including those of nested dataclasses."""
  for item in dataclasses.fields(kind):
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
      close = difflib.get_close_matches(str(name), known, n=1)
      hint = f'; did you mean {prefix}{close[0]}?' if close else '.'
      raise ValueError(f'{what}{prefix}{name} is not a setting{hint} Known: {", ".join(known)}')
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
  """Converts a value to the type of its field: ints to floats, lists to tuples, comma-separated text to lists."""
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
    value = _literal(value) if isinstance(value, str) else value
    fits = isinstance(value, list | tuple) and all(
      isinstance(item, list | tuple) and len(item) == 2 and all(type(size) is int for size in item) for item in value
    )
    _require(fits, what + name, value, 'a list of pairs (prompt, response) of tokens, such as ((64, 32), (128, 64))')
    return tuple(map(tuple, value))
  _require(type(value) is kind, what + name, value, f'a value of type {kind.__name__}')
  return value


def split(text: str) -> Strings:
  """Splits text into strings: a Python tuple, or items separated by commas outside brackets; '' gives none."""
  literal = _literal(text) if text.startswith(('(', '[')) else text
  if isinstance(literal, list | tuple):
    return tuple(literal)
  items, depth = [''], 0
  for character in text:
    depth += (character in '([{') - (character in ')]}')
    if character == ',' and depth == 0:
      items.append('')
    else:
      items[-1] += character
  return tuple(item.strip() for item in items if item.strip())


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
      _require(fits, name, value, f'a value of type {item.type.__name__}')
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


def define_flags(kind: type, values: flags.FlagValues) -> None:
  """Defines one flag per setting, without a default, so that the flags that were given can be recognised."""
  for leaf in leaves(kind):
    text, name, options = leaf.field.metadata['text'], leaf.flag, {'flag_values': values}
    if leaf.field.type in (Strings, Pairs):
      flags.DEFINE_multi_string(name, None, text, **options)
    elif leaf.field.type is bool:
      flags.DEFINE_bool(name, None, text, **options)
    elif leaf.field.metadata['choices']:
      flags.DEFINE_enum(name, None, leaf.field.metadata['choices'], text, **options)
    else:
      define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}[leaf.field.type]
      define(name, None, text, **options)


def given(kind: type, values: flags.FlagValues) -> dict[str, Any]:
  """The settings given as flags, by dotted field name."""
  found = {}
  for leaf in leaves(kind):
    if not values[leaf.flag].present:
      continue
    value = values[leaf.flag].value
    if leaf.field.type == Strings:
      value = tuple(item for text in value for item in split(text))
    elif leaf.field.type == Pairs:
      value = value[-1]
    found[leaf.name] = value
  return found


def listed(value: Any) -> Any:
  """Reads text as a list: 'a,b' as ('a', 'b'), 'a' as ('a',). Other values are returned unchanged."""
  return split(value) if isinstance(value, str) and ',' in value else (value,) if isinstance(value, str) else value


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


def parse(kind: type, argv: Sequence[str], values: flags.FlagValues) -> None:
  """Parses a command line into the defined flags; one argument without dashes goes to the positional field.

  Raises:
    ValueError: there is another argument without dashes.
    flags.Error: a flag is unknown, or has an invalid value.
  """
  rest = values(list(argv))[1:]
  positional = [leaf.flag for leaf in leaves(kind) if leaf.field.metadata.get('positional')]
  if len(rest) == 1 and positional:
    values([argv[0], f'--{positional[0]}={rest[0]}'])
  elif rest:
    raise ValueError(f'unexpected argument {rest[0]!r}: give settings as --<name>=<value>; --help lists them')


def parse_flags(kind: type, argv: Sequence[str], values: flags.FlagValues) -> Any:
  """Reads settings from a command line.

  Args:
    kind: the dataclass of the settings.
    argv: the command line, its first entry the name of the program.
    values: the flag values in which to define the flags.

  Raises:
    ValueError: a required setting is missing, or a value is not allowed.
    flags.Error: a flag is unknown, or has an invalid value.
  """
  define_flags(kind, values)
  parse(kind, argv, values)
  return read_flags(kind, values)


def read_flags(kind: type, values: flags.FlagValues) -> Any:
  """Reads settings from parsed flags.

  Raises:
    ValueError: a required setting is missing, or a value is not allowed.
  """
  found = given(kind, values)
  for leaf in leaves(kind):
    if leaf.field.metadata.get('required') and not found.get(leaf.name):
      raise ValueError(f'--{leaf.flag} is missing: {leaf.field.metadata["text"]}')
  return build(kind, nested(found))


def describe(kind: type, defaults: Any = None) -> str:
  """Formats the settings for --help: a heading for each group, then one line for each flag.

  Args:
    kind: the dataclass.
    defaults: the default values to show; by default those of the class.
  """
  values, lines, group = flat(kind() if defaults is None else defaults), [], ''
  for leaf in leaves(kind):
    if leaf.group != group:
      group = leaf.group
      lines += ['', f'{group}:']
    metadata, value = leaf.field.metadata, values[leaf.name]
    choices = f' One of {", ".join(filter(None, metadata["choices"]))}.' if metadata['choices'] else ''
    default = ' Required.' if metadata.get('required') else f' Default: {show(value)}'
    lines.append(f'  --{leaf.flag:<18} {metadata["text"]}{choices}{default}')
  return '\n'.join(lines).strip('\n')


def show(value: Any) -> str:
  """Formats a value for --help."""
  if value == '' or value == ():
    return 'none'
  if isinstance(value, bool):
    return str(value).lower()
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
