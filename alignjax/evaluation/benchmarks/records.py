"""Rows of JSON in files of benchmarks."""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
import json
import pathlib
from typing import Any

from alignjax import files
from alignjax.data.reading import readers, rows


def read(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """The objects of a .json or .jsonl file, each with its origin, 'file:line'.

  Raises:
    DataError: a row is malformed.
    ValueError: there is no such file, or its name has another ending.
  """
  for number, fields in readers.open_rows(path):
    origin = f'{path}:{number}'
    if isinstance(fields, rows.Refused):
      raise rows.DataError(origin, fields.reason, fields.message)
    yield origin, fields


def field[T](origin: str, fields: Mapping[str, Any], name: str, kind: type[T] | tuple[type[T], ...]) -> T:
  """A field of a row.

  Raises:
    DataError: the field is missing or of another type.
  """
  value = fields.get(name)
  if isinstance(value, bool) or not isinstance(value, kind):
    known = ', '.join(fields) or 'none'
    found = f'has the value {value!r}' if name in fields else f'is missing; the row has the fields {known}'
    raise rows.DataError(origin, 'wrong_field', f'field {name!r} {found}. Is this the right file of the benchmark?')
  return value


def write_lines(path: pathlib.Path, written: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON Lines, all or nothing."""
  lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in written)
  files.replace(path, lines.encode())


def identifier(*parts: str) -> str:
  """An id of 22 letters and digits that depends on the parts alone."""
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:22]
