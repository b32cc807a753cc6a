"""Where rows come from: files by the ending of their name, other places by the scheme before their first colon.

A reader takes a location and yields numbered rows, one at a time: (number from 1, fields). The number is that of a line
where there are lines, else of the row. In place of the fields may stand a `Refused`: that row is at fault, and reading
goes on. What makes the rest unreadable too is a `DataError`, which no policy skips. A value that is null in a format
with columns, or an empty cell of a table of text, is one that the row does not have.
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

from alignjax.data import rows, values

with epy.lazy_imports():  # TFDS takes a second to import, and most runs read files
  from alignjax.data import catalogue

Numbered = Iterator[tuple[int, dict[str, Any] | rows.Refused]]

LINE_LIMIT = 64 * 2**20  # bytes: a file without line ends, or a gzip bomb, must not fill the memory
JSON_LIMIT = 512 * 2**20  # bytes: a .json file is held in memory whole
PARQUET_BATCH = 256  # rows that exist at once
BYTE_ORDER_MARKS = (b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff')
SPACE = '[ \t\r\n]*+'
LIST_START = re.compile(rf'{SPACE}(?:(\{{){SPACE}"data"{SPACE}:{SPACE})?\[{SPACE}')
SEPARATOR = re.compile(rf'{SPACE}(?:,{SPACE}(?!\])|(?=\]))')


def open_rows(location: str) -> Numbered:
  """The rows of a file, or of what a scheme names.

  Raises:
    ValueError: neither the ending nor the scheme is known.
  """
  scheme, colon, rest = location.partition(':')
  if colon and scheme in SCHEMES:
    return SCHEMES[scheme](rest)
  for ending, reader in ENDINGS.items():
    if location.endswith(ending):
      return reader(location)
  raise ValueError(
    f'{location}: expected a name that ends with {", ".join(ENDINGS)}, or that starts with '
    f'{", ".join(f"{name}:" for name in SCHEMES)}'
  )


def jsonl(path: str) -> Numbered:
  """JSON Lines: one object on each line; blank lines hold no row."""
  for number, line in _lines(path):
    if line.isspace() and not line.strip(b' \t\r\n'):
      continue  # such as a second newline at the end
    try:
      found = _object_on(line)
    except rows.Refused as problem:
      found = problem
    yield number, found


def _object_on(line: bytes) -> dict[str, Any]:
  """The JSON object on a line."""
  if line.startswith(b'\x1f\x8b'):
    raise rows.Refused('not_utf8', 'the file is gzipped; give it a name that ends with .jsonl.gz')
  _check_mark(line)
  text = _line_text(line)
  try:
    value = values.parse_json(text)
  except json.JSONDecodeError as error:
    ends_early = error.pos >= len(text.rstrip()) or error.msg.startswith('Unterminated')
    if ends_early and not line.endswith(b'\n'):
      raise rows.Refused(
        'cut_off', 'the last line has no line end and is not whole JSON, so it was half written; delete or restore it'
      ) from None
    raise rows.Refused(
      'not_json', f'not JSON at column {error.colno}: {error.msg}; write one JSON object on each line'
    ) from None
  if not isinstance(value, dict):
    raise _refusal(value)
  return value


def json_list(path: str) -> Numbered:
  """A list of objects, or {"data": that list}, in one file."""
  number = 1
  try:
    text = _whole_text(path)
    if not text or text.isspace():
      return
    start = LIST_START.match(text)
    if not start:
      raise rows.Refused(
        'not_a_list', 'the file must hold a list of objects, or {"data": [...]} with nothing beside it'
      )
    position = start.end()
    while not text.startswith(']', position):
      value, position = values.parse_json_at(text, position)
      separator = SEPARATOR.match(text, position)
      if not separator:
        raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
      yield number, value if isinstance(value, dict) else _refusal(value)
      number, position = number + 1, separator.end()
    rest = ''.join(text[position + 1 :].split())
    if rest != ('}' if start.group(1) else ''):
      raise rows.Refused('not_a_list', f'after the list stands {values.quote(rest)}, which is not read; leave it out')
  except json.JSONDecodeError as error:
    raise rows.DataError(
      f'{path}:{number}', 'not_json', f'not JSON at line {error.lineno}, column {error.colno}: {error.msg}'
    ) from None
  except rows.Refused as problem:  # where this row ends is not known
    raise rows.DataError(f'{path}:{number}', problem.reason, problem.message) from None


def _whole_text(path: str) -> str:
  size = os.path.getsize(path)
  if size > JSON_LIMIT:
    raise rows.Refused(
      'too_large', f'the file has {size} bytes, more than {JSON_LIMIT}; write it as .jsonl, a row a line'
    )
  with open(path, 'rb') as file:
    content = file.read()
  _check_mark(content)
  return _text(content)


def table(path: str, delimiter: str) -> Numbered:
  """A table of text, quoted as RFC 4180 says, with the names of its columns in the first line.

  The number of a row is that of the line on which it starts.
  """
  number = 1
  # Closed here, since whoever keeps an error keeps this frame too, and with it an open file.
  with contextlib.closing(_lines_of_table(path)) as lines:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
      header = next(reader, None)
      if header is None:
        return
      _check_header(header)
      number = reader.line_num + 1
      for cells in reader:
        if cells:  # a blank line holds no row
          yield number, _cells_by_name(header, cells)
        number = reader.line_num + 1
    except csv.Error as error:
      # Where the next row starts is not known, so no policy can skip this one.
      raise rows.DataError(
        f'{path}:{number}',
        'not_csv',
        f'not a table of text here: {values.one_line(error)}; check the quotes, or write .jsonl',
      ) from None
    except rows.Refused as problem:
      raise rows.DataError(f'{path}:{number}', problem.reason, problem.message) from None


def _lines_of_table(path: str) -> Iterator[str]:
  for number, line in _lines(path):
    # Spreadsheets put the mark before a table; it is no part of the first name.
    line = line.removeprefix(BYTE_ORDER_MARKS[0]) if number == 1 else line
    try:
      text = _line_text(line)
    except rows.Refused as problem:  # where this row ends is not known
      raise rows.DataError(f'{path}:{number}', problem.reason, problem.message) from None
    yield text


def _check_header(header: list[str]) -> None:
  for i, name in enumerate(header):
    if not name or name in header[:i]:
      what = f'stands twice, also in column {header.index(name) + 1}' if name else 'is empty'
      raise rows.Refused(
        'bad_header', f'field {values.quote(name)}: the name of column {i + 1} {what}; give each a name of its own'
      )


def _cells_by_name(header: list[str], cells: list[str]) -> dict[str, Any] | rows.Refused:
  if len(cells) != len(header):
    name = header[min(len(cells), len(header) - 1)]
    return rows.Refused(
      'ragged_row',
      f'field {values.quote(name)}: the row has {len(cells)} cells but the first line has {len(header)} names; quote '
      'cells that have delimiters or line ends in them',
    )
  return {name: values.Cell(cell) for name, cell in zip(header, cells, strict=True) if cell}


def parquet_file(path: str) -> Numbered:
  """Apache Parquet, a few rows at a time."""
  number = 0
  try:
    for batch in parquet.ParquetFile(path, page_checksum_verification=True).iter_batches(PARQUET_BATCH):
      for fields in batch.to_pylist():
        number += 1
        yield number, _without_nulls(fields)
  except FileNotFoundError:
    raise
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise rows.DataError(
      f'{path}:{number + 1}',
      'damaged_parquet',
      f'cannot be read as Parquet from here on: {values.one_line(error)}; copy the file again',
    ) from None


def hugging_face(location: str) -> Numbered:
  """A data set of the Hugging Face hub: owner/name[/configuration][:split], the split `train` by default.

  A location that starts with / or . is a local folder.
  """
  try:
    import datasets
  except ImportError:
    raise ValueError(
      f"hf:{location}: needs the package datasets: pip install 'alignjax[hf]', or give a .parquet file of the data set"
    ) from None
  name, _, split = location.partition(':')
  if not name:
    raise ValueError(f'hf:{location}: names no data set; say which, as in hf:owner/name:train')
  configuration = None
  if name.count('/') == 2 and not name.startswith(('/', '.')):
    name, _, configuration = name.rpartition('/')
  try:
    found = datasets.load_dataset(name, configuration, split=split or 'train')
  except (OSError, ValueError) as error:
    raise ValueError(f'hf:{location}: cannot be loaded: {error}') from error
  for number, fields in enumerate(found, 1):
    yield number, _without_nulls(fields)


def prepared(location: str) -> Numbered:
  """A prepared data set of TFDS: see `catalogue.rows`."""
  return catalogue.rows(location)


# The reader of a scheme is given what stands after the colon.
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
  """Numbered lines with their line ends; the excess of a line over LINE_LIMIT is passed over, not stored."""
  with _open(path) as file:
    number = 0
    try:
      while line := file.readline(LINE_LIMIT + 1):
        number += 1
        yield number, line
        while len(line) > LINE_LIMIT and not line.endswith(b'\n') and (line := file.readline(LINE_LIMIT + 1)):
          pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      # Nothing after this point can be read, so no policy can skip it.
      raise rows.DataError(
        f'{path}:{number + 1}',
        'damaged_gzip',
        f'the gzip stream is damaged or cut off here ({values.one_line(error)}); copy the file again',
      ) from None


def _open(path: str) -> BinaryIO:
  return gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb')


def _line_text(line: bytes) -> str:
  if len(line) > LINE_LIMIT:
    raise rows.Refused('line_too_long', f'the line is longer than {LINE_LIMIT} bytes; put one row on each line')
  return _text(line)


def _text(content: bytes) -> str:
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise rows.Refused('not_utf8', f'byte {error.start + 1} is not valid UTF-8; save the file as UTF-8') from None


def _check_mark(content: bytes) -> None:
  if content.startswith(BYTE_ORDER_MARKS):
    raise rows.Refused('byte_order_mark', 'the line starts with a byte order mark; save the file as UTF-8 without one')


def _refusal(value: Any) -> rows.Refused:
  return rows.Refused('not_an_object', f'here stands {values.kind(value)}; a row is a JSON object, {{"prompt": ...}}')


def _without_nulls(value: Any) -> Any:
  """Formats with columns cannot leave a field out, and write null."""
  if isinstance(value, dict):
    return {name: _without_nulls(each) for name, each in value.items() if each is not None}
  return [_without_nulls(each) for each in value] if isinstance(value, list) else value
