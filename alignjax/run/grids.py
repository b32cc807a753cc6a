"""Grids of runs: which values a sweep tries, and the command line of each run."""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

from alignjax.run import fields, settings

SEED = 'seed'  # runs that differ in it alone are repetitions


class Point(NamedTuple):
  """One run of a sweep."""

  values: dict[str, str]  # by name, as given
  arguments: list[str]  # of `alignjax train`, without --workdir

  @property
  def name(self) -> str:
    """The name of its folder: 'beta=0.1,seed=0'."""
    return named(self.values)

  @property
  def group(self) -> str:
    """The name that its repetitions share."""
    return named({name: value for name, value in self.values.items() if name != SEED}) or 'all'


def named(values: dict[str, str]) -> str:
  """The name of a folder that holds the run with these values; `/` becomes `_`."""
  return ','.join(f'{name}={value}' for name, value in values.items()).replace('/', '_')


def parse(text: str) -> dict[str, list[str]]:
  """Reads `beta=0.01,0.1;seed=0,1,2`: names with their values. Commas in brackets or quotes belong to a value.

  Raises:
    ValueError: a name is given twice, or without values; a value is given twice.
  """
  found: dict[str, list[str]] = {}
  for part in filter(None, split(text, ';')):
    name, _, listed = (piece.strip() for piece in part.partition('='))
    values = [value for value in split(listed, ',') if value]
    if not name or not values:
      raise ValueError(f'--grid: {part!r} must be name=value,value,..., such as beta=0.01,0.1')
    if name in found:
      raise ValueError(f'--grid: {name} is given more than once')
    if len(set(values)) < len(values):
      raise ValueError(f'--grid: {name} has a value more than once: {listed}')
    found[name] = values
  if not found:
    raise ValueError('--grid is empty: give names with values, such as --grid="beta=0.01,0.1;seed=0,1,2"')
  return found


def points(grid: dict[str, list[str]], arguments: Sequence[str]) -> list[Point]:
  """All combinations, in order, the last name changing fastest.

  If the arguments contain `{name}`, the value replaces it. Otherwise a setting of `alignjax train` becomes a flag, and
  any other name becomes a parameter of the variant in --config=file.py:variant.

  Raises:
    ValueError: a name is none of these.
  """
  known = [leaf.name for leaf in fields.leaves(settings.Config)]
  config = next((i for i, argument in enumerate(arguments) if _variant(argument)), None)
  found = []
  for combination in itertools.product(*grid.values()):
    values, line = dict(zip(grid, combination, strict=True)), list(arguments)
    for name, value in values.items():
      if any(f'{{{name}}}' in argument for argument in line):
        line = [argument.replace(f'{{{name}}}', value) for argument in line]
      elif name in known:
        line.append(f'--{name}={value}')
      elif config is not None:
        line[config] += f',{name}={value}'
      else:
        raise ValueError(
          f'--grid: {name} is not a setting of alignjax train. Write {{{name}}} where it belongs, such as '
          f"--objective='dpo(beta={{{name}}})', or give --config=file.py:variant with a parameter {name}"
        )
    found.append(Point(values, line))
  return found


def _variant(argument: str) -> bool:
  return argument.lstrip('-').startswith('config=') and '.py:' in argument


def split(text: str, separator: str) -> list[str]:
  """The stripped parts between separators that are outside of brackets and quotes."""
  parts, depth, quote = [''], 0, ''
  for character in text:
    if character == separator and not depth and not quote:
      parts.append('')
      continue
    if quote:
      quote = '' if character == quote else quote
    elif character in '"\'':
      quote = character
    else:
      depth += (character in '([{') - (character in ')]}')
    parts[-1] += character
  return [part.strip() for part in parts]
