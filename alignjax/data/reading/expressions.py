r"""Takes data expressions apart: `[form:]location[part]`, where a form may rename columns and have options.

  hh:train.jsonl.gz                                 the form hh
  preference[prompt=question]:orca.jsonl            the column `question` is what the form calls `prompt`
  preference[prompt=input.messages]:rows.jsonl      a column within an object
  conversation[turns=last]:chat.jsonl               an option of the form
  pairs.jsonl[:1000]    pairs.jsonl[1000:]          rows, counted from 0 as in Python
  pairs.jsonl[split:5%]    pairs.jsonl[rest:5%]     a held-out part of 5 %, and the rest

Rows with the same prompt are in the same part, whatever the order of the file.
"""

from collections.abc import Collection, Mapping
import hashlib
import json
import os
import re
from typing import Any, NamedTuple, Protocol

from alignjax.data.reading import rows, values

FORM = re.compile(r'(?P<form>\w+)(?:\[(?P<columns>[^\[\]]*(?:\[\d+\][^\[\]]*)*)\])?:(?P<location>.*)', re.DOTALL)
ROWS = re.compile(r'(?P<location>.+)\[(?P<start>\d*):(?P<stop>\d*)\]', re.DOTALL)
SPLIT = re.compile(r'(?P<location>.+)\[(?P<part>split|rest):(?P<share>[0-9.]+)(?P<percent>%?)\]', re.DOTALL)
SLICED_BY_THEMSELVES = ('tfds:', 'hf:')  # schemes whose splits may end with a slice such as [:10%]
STEP = re.compile(r'\.|\[(\d+)\]')
MISSING = object()


class Part(NamedTuple):
  """Which rows of a location are read: a range of rows, or those of a random split by prompt."""

  start: int = 0
  stop: int | None = None
  share: float = 0.0  # of the prompts that are held out
  held_out: bool = False  # whether those are read, or the rest

  def takes(self, prompt: rows.Prompt) -> bool:
    """Whether rows with this prompt are read."""
    if not self.share:
      return True
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    return (int.from_bytes(digest[:8]) < self.share * 2**64) == self.held_out


class Form(Protocol):
  """What an expression can set for a form: the names of its columns, and its options with their values."""

  columns: tuple[str, ...]
  options: Mapping[str, Collection[str]]


class Expression(NamedTuple):
  """The parts of `[form[columns, options]:]location[part]`."""

  form: str
  location: str
  columns: tuple[tuple[str, str], ...] = ()  # (column of the form, path in the row)
  part: Part = Part()
  options: tuple[tuple[str, str], ...] = ()  # (option of the form, value)


def parse(source: str | os.PathLike, forms: Mapping[str, Form], default: str) -> Expression:
  """Takes an expression apart. A prefix that is not the name of a form belongs to the location.

  Args:
    source: the expression; a `pathlib.Path` is a location alone.
    forms: the forms, by name.
    default: the form of expressions that name none.

  Raises:
    ValueError: a column map, an option or a part is malformed.
  """
  if not isinstance(source, str):
    return Expression(default, os.fspath(source))
  found = FORM.fullmatch(source)
  if found is None or found['form'] not in forms:
    location, part = _location(source)
    return Expression(default, location, part=part)
  location, part = _location(found['location'])
  columns, options = _entries(source, found['columns'], forms[found['form']])
  return Expression(found['form'], location, columns, part, options)


def _entries(source: str, text: str | None, form: Form) -> tuple[tuple[tuple[str, str], ...], ...]:
  """The column map and the options of a form: column=name or option=value, separated by commas."""
  columns, options = [], []
  known = (*form.columns, *form.options)
  for entry in () if text is None else text.split(','):
    column, equals, path = (piece.strip() for piece in entry.partition('='))
    if not (column and equals and path):
      raise ValueError(f'{source}: {entry!r} must be column=name, such as preference[prompt=question]:rows.jsonl')
    if column not in known:
      raise ValueError(f'{source}: {column!r} is not a column of this form; it has {", ".join(known)}')
    values_of = form.options.get(column)
    if values_of is not None and path not in values_of:
      raise ValueError(f'{source}: {column}={path}: must be one of {", ".join(values_of)}')
    (columns if values_of is None else options).append((column, path))
  for entries in (columns, options):
    if len({name for name, _ in entries}) < len(entries):
      raise ValueError(f'{source}: a column is mapped twice; give each column of the form one name')
  return tuple(columns), tuple(options)


def _location(text: str) -> tuple[str, Part]:
  if found := SPLIT.fullmatch(text):
    try:
      share = float(found['share']) / (100 if found['percent'] else 1)
    except ValueError:
      share = 0.0
    if not 0 < share < 1:
      raise ValueError(f'{text}: the share of a split must be between 0 and 1, such as [split:0.05] or [split:5%]')
    return found['location'], Part(share=share, held_out=found['part'] == 'split')
  if text.startswith(SLICED_BY_THEMSELVES) or not (found := ROWS.fullmatch(text)):
    return text, Part()
  part = Part(int(found['start'] or 0), int(found['stop']) if found['stop'] else None)
  if part.stop is not None and part.stop <= part.start:
    raise ValueError(f'{text}: has no rows; rows are counted from 0, and the second number must be larger')
  return found['location'], part


class ColumnMap:
  """Renames the columns of rows.

  Args:
    columns: (column of the form, path in the row).
  """

  def __init__(self, columns: tuple[tuple[str, str], ...]):
    self._columns = columns
    self._unseen = dict(columns)
    self._rows = False

  def __call__(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with the columns of the form. What a renamed column holds otherwise is left out."""
    if not self._columns:
      return fields
    self._rows = True
    nulls = getattr(fields, 'nulls', frozenset())
    used = {path if path in fields else STEP.split(path)[0] for _, path in self._columns}
    names = {column for column, _ in self._columns}
    renamed = values.Sparse({name: each for name, each in fields.items() if name not in used and name not in names})
    for column, path in self._columns:
      value = _at(fields, path)
      if value is not MISSING:
        renamed[column] = value
      if value is not MISSING or path in nulls:
        self._unseen.pop(column, None)
    renamed.nulls = frozenset(name for name in nulls if name not in names) | {
      column for column, path in self._columns if path in nulls
    }
    return renamed

  def explain(self, message: str) -> str:
    """Adds to a message what the columns that it names are called in the file."""
    named = [f'{column} is the column {path!r}' for column, path in self._columns if f"field '{column}" in message]
    return f'{message} ({", ".join(named)})' if named else message

  def check(self, location: str) -> None:
    """Raises ValueError if there were rows, and none of them had one of the columns."""
    for column, path in self._unseen.items() if self._rows else ():
      raise ValueError(
        f'{location}: no row has {values.quote(path)}, which should be {column!r}; correct the column map'
      )


def _at(fields: Mapping[str, Any], path: str) -> Any:
  """The value at a path such as `input.messages` or `chosen[0].content`; MISSING if there is none."""
  if path in fields:
    return fields[path]
  value: Any = fields
  for step in filter(None, STEP.split(path)):
    try:
      value = value[int(step)] if isinstance(value, list) else value[step]
    except (KeyError, IndexError, TypeError, ValueError):
      return MISSING
  return value
