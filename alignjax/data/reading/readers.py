"""Readers of rows: chosen by file ending, or by the scheme before the first colon of a location.

A reader takes a location and yields (number, fields) for one row at a time. The number is the line if the format has
lines, otherwise the row, counted from 1. A malformed row yields `Refused` in place of its fields, and reading goes on.
Damage that makes the rest of the file unreadable raises `DataError`, which no policy skips. A null, at any depth, and
an empty cell of a CSV file mean that the field is absent.
"""

from collections.abc import Callable, Iterator
import contextlib
import csv
import functools
import gzip
import json
import os
import re
from typing import Any, BinaryIO
import zlib

from etils import epy
import pyarrow
from pyarrow import parquet

from alignjax import files
from alignjax.data.reading import rows, values

with epy.lazy_imports():  # importing TFDS takes a second, and most runs read plain files
  from alignjax.data.reading import catalogue

Numbered = Iterator[tuple[int, dict[str, Any] | rows.Refused]]

LINE_LIMIT = 64 * 2**20  # bytes; a file without line ends, or a gzip bomb, must not exhaust memory
JSON_LIMIT = 512 * 2**20  # bytes; a .json file is read into memory as a whole
PARQUET_BATCH = 256  # rows in memory at once
BYTE_ORDER_MARKS = (b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff')
SPACE = '[ \t\r\n]*+'
LIST_START = re.compile(rf'{SPACE}(?:(\{{){SPACE}"data"{SPACE}:{SPACE})?\[{SPACE}')
JSON_LINES = re.compile(rf'{SPACE}\{{[^\n]*\}}[ \t\r]*\n{SPACE}\{{')  # an object on each of the first lines
SEPARATOR = re.compile(rf'{SPACE}(?:,{SPACE}(?!\])|(?=\]))')


def open_rows(location: str) -> Numbered:
  """Yields the numbered rows of a location.

  Raises:
    ValueError: the location has no known ending or scheme.
  """
  scheme, colon, rest = location.partition(':')
  if colon and scheme in SCHEMES:
    return SCHEMES[scheme](rest)
  for ending, reader in ENDINGS.items():
    if location.endswith(ending):
      return reader(location)
  raise ValueError(
    f'{location}: expected a name that ends with {", ".join(ENDINGS)}, or starts with '
    f'{", ".join(f"{name}:" for name in SCHEMES)}'
  )


def jsonl(path: str) -> Numbered:
  """JSON Lines: one object per line. Blank lines are skipped."""
  for number, line in _lines(path):
    if line.isspace() and not line.strip(b' \t\r\n'):
      continue  # for instance a second newline at the end
    try:
      found = _object_on(line)
    except rows.Refused as problem:
      found = problem
    yield number, found


def _object_on(line: bytes) -> dict[str, Any]:
  """The JSON object on a line."""
  if line.startswith(b'\x1f\x8b'):
    raise rows.Refused('not_utf8', 'the file is gzipped; rename it to end with .jsonl.gz')
  _check_mark(line)
  text = _line_text(line)
  try:
    value = values.parse_json(text)
  except json.JSONDecodeError as error:
    ends_early = error.pos >= len(text.rstrip()) or error.msg.startswith('Unterminated')
    if ends_early and not line.endswith(b'\n'):
      raise rows.Refused(
        'cut_off',
        'the last line is incomplete JSON without a line end, so it was only half written; delete or restore it',
      ) from None
    raise rows.Refused(
      'not_json', f'not JSON at column {error.colno}: {error.msg}; write one JSON object per line'
    ) from None
  if not isinstance(value, dict):
    raise _refusal(value)
  return _without_nulls(value) if 'null' in text else value


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
  try:
    return values.without_nulls(value)
  except RecursionError:
    raise rows.Refused('not_json', 'the JSON is nested too deeply; a row is one flat object') from None


def json_list(path: str) -> Numbered:
  """A JSON file with a list of objects, or with {"data": [...]}; or JSON Lines, as many files on the Hub are."""
  number = 1
  try:
    text = _whole_text(path)
    if not text or text.isspace():
      return
    start = LIST_START.match(text)
    if not start and JSON_LINES.match(text):
      yield from jsonl(path)
      return
    if not start:
      raise rows.Refused('not_a_list', 'the file must contain a list of objects, or {"data": [...]} and nothing else')
    position = start.end()
    while not text.startswith(']', position):
      value, position = values.parse_json_at(text, position)
      separator = SEPARATOR.match(text, position)
      if not separator:
        raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
      if isinstance(value, dict) and 'null' in text:
        value = _without_nulls(value)
      yield number, value if isinstance(value, dict) else _refusal(value)
      number, position = number + 1, separator.end()
    rest = ''.join(text[position + 1 :].split())
    if rest != ('}' if start.group(1) else ''):
      raise rows.Refused('not_a_list', f'expected nothing after the list, found {values.quote(rest)}; remove it')
  except json.JSONDecodeError as error:
    raise rows.DataError(
      f'{path}:{number}', 'not_json', f'not JSON at line {error.lineno}, column {error.colno}: {error.msg}'
    ) from None
  except rows.Refused as problem:  # the end of this row is unknown, so the rest cannot be read
    raise rows.DataError(f'{path}:{number}', problem.reason, problem.message) from None


def _whole_text(path: str) -> str:
  _check_regular(path)
  size = os.path.getsize(path)
  if size > JSON_LIMIT:
    raise rows.Refused(
      'too_large', f'the file has {size} bytes, more than {JSON_LIMIT}; convert it to .jsonl, one row per line'
    )
  with open(path, 'rb') as file:
    content = file.read()
  _check_mark(content)
  return _text(content)


def table(path: str, delimiter: str) -> Numbered:
  """CSV or TSV, quoted as in RFC 4180, with the column names in the first line.

  The number of a row is the line on which it starts.
  """
  number = 1
  # Close explicitly: a kept exception keeps this frame alive, and with it the open file.
  with contextlib.closing(_lines_of_table(path)) as lines:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
      header = next(reader, None)
      if header is None:
        return
      _check_header(header)
      number = reader.line_num + 1
      for cells in reader:
        if cells:  # skip blank lines
          yield number, _cells_by_name(header, cells)
        number = reader.line_num + 1
    except csv.Error as error:
      # The start of the next row is unknown, so no policy can skip this one.
      raise rows.DataError(
        f'{path}:{number}',
        'not_csv',
        f'malformed table: {values.one_line(error)}; check the quotes, or convert the file to .jsonl',
      ) from None
    except rows.Refused as problem:
      raise rows.DataError(f'{path}:{number}', problem.reason, problem.message) from None


def _lines_of_table(path: str) -> Iterator[str]:
  for number, line in _lines(path):
    # Spreadsheets write a byte order mark; it is not part of the first column name.
    line = line.removeprefix(BYTE_ORDER_MARKS[0]) if number == 1 else line
    try:
      text = _line_text(line)
    except rows.Refused as problem:  # the end of this row is unknown
      raise rows.DataError(f'{path}:{number}', problem.reason, problem.message) from None
    yield text


def _check_header(header: list[str]) -> None:
  for i, name in enumerate(header):
    if not name or name in header[:i]:
      what = f'is the same as that of column {header.index(name) + 1}' if name else 'is empty'
      raise rows.Refused(
        'bad_header', f'field {values.quote(name)}: the name of column {i + 1} {what}; every column needs its own name'
      )


def _cells_by_name(header: list[str], cells: list[str]) -> dict[str, Any] | rows.Refused:
  if len(cells) != len(header):
    name = header[min(len(cells), len(header) - 1)]
    return rows.Refused(
      'ragged_row',
      f'field {values.quote(name)}: the row has {len(cells)} cells but there are {len(header)} column names; quote '
      'cells that contain delimiters or line ends',
    )
  fields = values.Sparse({name: values.Cell(cell) for name, cell in zip(header, cells, strict=True) if cell})
  fields.nulls = frozenset(header).difference(fields)
  return fields


def parquet_file(path: str) -> Numbered:
  """Apache Parquet, a few rows at a time."""
  _check_regular(path)
  number = 0
  try:
    for batch in parquet.ParquetFile(path, page_checksum_verification=True).iter_batches(PARQUET_BATCH):
      for fields in batch.to_pylist():
        number += 1
        yield number, values.without_nulls(fields)
  except FileNotFoundError:
    raise
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise rows.DataError(
      f'{path}:{number + 1}',
      'damaged_parquet',
      f'not readable as Parquet from this row on: {values.one_line(error)}; copy the file again',
    ) from None


def hugging_face(location: str) -> Numbered:
  """A dataset of the Hugging Face hub: owner/name[/configuration][:split]; the default split is `train`.

  A location that starts with / or . is a local folder.
  """
  try:
    import datasets
  except ImportError:
    raise ValueError(
      f"hf:{location}: needs the package datasets: pip install 'alignjax[hf]', or use a .parquet file of the dataset"
    ) from None
  name, _, split = location.partition(':')
  if not name:
    raise ValueError(f'hf:{location}: does not name a dataset; write it as hf:owner/name:train')
  configuration = None
  if name.count('/') == 2 and not name.startswith(('/', '.')):
    name, _, configuration = name.rpartition('/')
  try:
    found = datasets.load_dataset(name, configuration, split=split or 'train')
  except (OSError, ValueError) as error:
    raise ValueError(f'hf:{location}: could not be loaded: {error}') from error
  for number, fields in enumerate(found, 1):
    yield number, values.without_nulls(fields)


def prepared(location: str) -> Numbered:
  """A prepared TFDS dataset: see `catalogue.read`."""
  return catalogue.read(location)


# The reader of a scheme is called with the part after the colon.
ENDINGS: dict[str, Callable[[str], Numbered]] = {
  '.jsonl': jsonl,
  '.jsonl.gz': jsonl,
  '.json': json_list,
  '.parquet': parquet_file,
  '.csv': functools.partial(table, delimiter=','),
  '.tsv': functools.partial(table, delimiter='\t'),
}
SCHEMES: dict[str, Callable[[str], Numbered]] = {
  'hf': hugging_face,
  'tfds': prepared,
}


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Numbered lines with their line ends. Whatever exceeds LINE_LIMIT in a line is skipped, not stored."""
  with _open(path) as file:
    number = 0
    try:
      while line := file.readline(LINE_LIMIT + 1):
        number += 1
        yield number, line
        while len(line) > LINE_LIMIT and not line.endswith(b'\n') and (line := file.readline(LINE_LIMIT + 1)):
          pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      # Nothing after this point is readable, so no policy can skip it.
      raise rows.DataError(
        f'{path}:{number + 1}',
        'damaged_gzip',
        f'the gzip stream is damaged or truncated here ({values.one_line(error)}); copy the file again',
      ) from None


def _open(path: str) -> BinaryIO:
  _check_regular(path)
  return gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb')


def _check_regular(path: str) -> None:
  if os.path.exists(path):  # opening a file that is missing raises FileNotFoundError
    files.check_regular(path)


def _line_text(line: bytes) -> str:
  if len(line) > LINE_LIMIT:
    raise rows.Refused('line_too_long', f'the line is longer than {LINE_LIMIT} bytes; write one row per line')
  return _text(line)


def _text(content: bytes) -> str:
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise rows.Refused('not_utf8', f'byte {error.start + 1} is not valid UTF-8; save the file as UTF-8') from None


def _check_mark(content: bytes) -> None:
  if content.startswith(BYTE_ORDER_MARKS):
    raise rows.Refused('byte_order_mark', 'starts with a byte order mark; save the file as UTF-8 without one')


def _refusal(value: Any) -> rows.Refused:
  return rows.Refused('not_an_object', f'found {values.kind(value)}; each row must be a JSON object, {{"prompt": ...}}')
