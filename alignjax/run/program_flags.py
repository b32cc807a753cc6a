"""Defines the flags of a program from a dataclass of settings (`fields`), and reads the settings from them.

A flag of a list can be repeated. Any other flag can be given once, or more than once with the same value.
"""

from collections.abc import Callable, Sequence
import difflib
import itertools
from typing import Any

from absl import flags

from alignjax.run import fields

_MISSING = 'Missing value for flag '  # how an error of absl begins
_DASHES = '‐‑‒–—―−'  # what text editors make of -- or -


class _Parser(flags.ArgumentParser):
  """Reads the value of a flag."""

  def __init__(self, kind: Any, choices: tuple[str, ...]):
    self._kind, self._choices = kind, choices

  def parse(self, argument: str) -> Any:
    if self._choices and argument not in self._choices:
      close = difflib.get_close_matches(argument, self._choices, n=1)
      hint = f'; did you mean {close[0]}?' if close else ''
      raise ValueError(f'must be {" or ".join(choice or "empty" for choice in self._choices)}{hint}')
    return _READERS.get(self._kind, str)(argument)

  def flag_type(self) -> str:
    return getattr(self._kind, '__name__', 'list')


def _reader(convert: Callable[[str], Any], wanted: str) -> Callable[[str], Any]:
  def read(text: str) -> Any:
    try:
      return convert(text)
    except (ValueError, KeyError):
      raise ValueError(f'must be {wanted}') from None

  return read


_BOOLEANS = {'true': True, 't': True, '1': True, 'false': False, 'f': False, '0': False}
_READERS = {
  int: _reader(int, 'a whole number, such as 8'),
  float: _reader(float, 'a number, such as 0.5'),
  bool: _reader(lambda text: _BOOLEANS[text.lower()], 'true or false'),
  fields.Strings: fields.split,
  fields.Pairs: fields.pairs,
}


class _Flag(flags.Flag):
  """A flag that keeps the values that it was given."""

  def __init__(self, leaf: fields.Leaf, name: str):
    metadata = leaf.field.metadata
    parser = _Parser(leaf.field.type, metadata['choices'])
    super().__init__(parser, flags.ArgumentSerializer(), name, None, metadata['text'], boolean=leaf.field.type is bool)
    self.given: list[Any] = []

  def parse(self, argument: str) -> None:
    super().parse(argument)
    self.given.append(self.value)

  def unparse(self) -> None:
    super().unparse()
    self.given = []

  def _parse(self, argument: str) -> Any:
    try:
      return self.parser.parse(argument)
    except ValueError as error:
      shown = argument if len(argument) <= fields.SHOWN else f'{argument[: fields.SHOWN]}...'
      raise flags.IllegalFlagValueError(f'--{self.name}={shown}: {error}') from None


def define(kind: type, values: flags.FlagValues, prefix: str = '') -> None:
  """Defines one flag per setting, without a default, so that the flags that were given can be recognised.

  Args:
    kind: the dataclass of the settings.
    values: the flag values in which to define the flags.
    prefix: prefix of the names, such as 'config.'; then the names are those of the fields.
  """
  for leaf in fields.leaves(kind):
    flags.DEFINE_flag(_Flag(leaf, f'{prefix}{leaf.name}' if prefix else leaf.flag), values)


def given(kind: type, values: flags.FlagValues, prefix: str = '') -> dict[str, Any]:
  """The settings given as flags, by dotted field name.

  Raises:
    ValueError: a flag is given twice with different values.
  """
  found = {}
  for leaf in fields.leaves(kind):
    name = f'{prefix}{leaf.name}' if prefix else leaf.flag
    each = values[name].given
    if not each:
      continue
    if leaf.field.type in (fields.Strings, fields.Pairs) and all(isinstance(part, list | tuple) for part in each):
      found[leaf.name] = tuple(item for part in each for item in part)
      continue
    different = list(dict.fromkeys(map(repr, each)))
    if len(different) > 1:
      raise ValueError(f'--{name} is given twice, as {different[0]} and {different[1]}: give it once')
    found[leaf.name] = each[0]
  return found


def parse(kind: type, argv: Sequence[str], values: flags.FlagValues) -> None:
  """Parses a command line into the defined flags. Arguments without dashes go to the positional field.

  Raises:
    ValueError: there are too many arguments without dashes: one goes to a text, and all go to a list.
    flags.Error: a flag is unknown, or has an invalid value.
  """
  try:
    rest = values(list(argv))[1:]
  except flags.Error as error:
    if str(error).startswith(_MISSING):
      raise ValueError(f'{str(error).removeprefix(_MISSING)} needs a value') from error
    raise
  for leaf in fields.leaves(kind):
    if leaf.field.metadata.get('positional'):
      taken = list(itertools.takewhile(_is_value, rest)) if leaf.field.type == fields.Strings else rest[:1]
      values([argv[0], *(f'--{leaf.flag}={argument}' for argument in taken)])
      rest = rest[len(taken) :]
  if rest:
    raise ValueError(f'unexpected argument {rest[0]!r}: {_instead(rest[0])}')


def _is_value(argument: str) -> bool:
  """Whether an argument without -- is meant as a value and not as a flag."""
  flag = argument.partition('=')[0].isidentifier() and '=' in argument
  return not flag and not argument.startswith(('-', *_DASHES))


def _instead(argument: str) -> str:
  """What to type instead of an argument without dashes."""
  if argument.startswith('-'):
    return 'nothing after -- is a flag; leave -- out'
  if argument.startswith(tuple(_DASHES)):
    return f'it starts with {argument[0]!r}; type --{argument.lstrip(_DASHES + "-")}'
  if argument.partition('=')[0].isidentifier() and '=' in argument:
    return f'type --{argument}'
  return 'give settings as --<name>=<value>; --help lists them'


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
  define(kind, values)
  parse(kind, argv, values)
  found = given(kind, values)
  for leaf in fields.leaves(kind):
    if leaf.field.metadata.get('required') and not found.get(leaf.name):
      raise ValueError(f'--{leaf.flag} is missing: {leaf.field.metadata["text"]}')
  return fields.build(kind, fields.nested(found))
