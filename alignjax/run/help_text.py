"""Formats the settings of a program for --help."""

import textwrap
from typing import Any

from alignjax.run import fields

WIDTH = 120  # characters of a line
_COLUMN = 22  # where the text of a flag begins
_HELD = '\0'  # a space at which no line ends


def describe(kind: type, defaults: Any = None) -> str:
  """Lists the flags of a program: a heading for each group, then the text, the choices and the default of each flag.

  Args:
    kind: the dataclass of the settings.
    defaults: the default values to show; by default those of the class.
  """
  values, lines, group = fields.flat(kind() if defaults is None else defaults), [], ''
  for leaf in fields.leaves(kind):
    if leaf.group != group:
      group = leaf.group
      lines += ['', f'{group}:']
    lines += _entry(leaf, values[leaf.name])
  return '\n'.join(lines).strip('\n')


def _entry(leaf: fields.Leaf, value: Any) -> list[str]:
  metadata = leaf.field.metadata
  choices = [f'One of {", ".join(filter(None, metadata["choices"]))}.'] if metadata['choices'] else []
  default = 'Required.' if metadata.get('required') else f'Default: {show(value)}'
  text = ' '.join([metadata['text'], *choices, default])
  lines = textwrap.wrap(
    text.replace('Default: ', f'Default:{_HELD}'),
    WIDTH,
    initial_indent=f'  --{leaf.flag}'.ljust(_COLUMN) + ' ',
    subsequent_indent=' ' * (_COLUMN + 1),
    break_long_words=False,
    break_on_hyphens=False,
  )
  return [line.replace(_HELD, ' ') for line in lines]


def show(value: Any) -> str:
  """Formats a value as it is typed after `--name=`; an empty one as `empty`."""
  if value == '' or value == ():
    return 'empty'
  if isinstance(value, bool):
    return str(value).lower()
  if not isinstance(value, tuple):
    return str(value)
  listed = ','.join(map(str, value))
  names = all(isinstance(item, str) for item in value)
  return listed if not names or fields.split(listed) == value else repr(value)  # a name may contain a comma
