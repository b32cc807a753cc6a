"""Tests of `readers`: every kind of file gives the same rows, and damage is reported precisely."""

import json
import pathlib
import sys
import types

import pyarrow
from pyarrow import parquet
import pytest

from alignjax.data.reading import drops, readers, rows, sources

ROWS = [
  {'prompt': 'Once', 'chosen': ' upon, "a"\n\ntime', 'rejected': ' é \U0001f600', 'label': 0.25},
  {'prompt': 'Zwei', 'chosen': ' b', 'rejected': ' c', 'label': 1.0},
]
TABLE = 'prompt,chosen,rejected,label\r\nOnce," upon, ""a""\n\ntime", é \U0001f600,0.25\r\n\r\n"Zwei", b, c,1\r\n'


def write_parquet(path, *given):
  parquet.write_table(pyarrow.Table.from_pylist(list(given)), path)


def write(tmp_path, ending):
  """The rows in a file with this ending, and the numbers that they have there."""
  path = tmp_path / f'data{ending}'
  lines = [json.dumps(row) for row in ROWS]
  if ending == '.parquet':
    write_parquet(path, *ROWS)
  else:
    text = {
      '.jsonl': '\n'.join(lines),
      '.json': f' [{lines[0]} ,\n {lines[1]}] \n',
      '.csv': TABLE,
      '.tsv': TABLE.replace(',', '\t').replace('upon\t', 'upon,'),
    }[ending]
    path.write_text(text, encoding='utf-8', newline='')
  return path, [2, 6] if ending in ('.csv', '.tsv') else [1, 2]


def read(source, **options):
  report = drops.DropReport()
  return list(sources.read_examples(source, report, **options)), report


@pytest.mark.parametrize('ending', ['.jsonl', '.json', '.parquet', '.csv', '.tsv'])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, ending):
  path, numbers = write(tmp_path, ending)
  pairs, report = read(path)
  assert [(pair.prompt, *pair.responses, pair.label) for pair in pairs] == [tuple(row.values()) for row in ROWS]
  assert [pair.origin for pair in pairs] == [f'{path}:{number}' for number in numbers]
  assert report.read == 2
  assert {type(text) for pair in pairs for text in (pair.prompt, *pair.responses)} == {str}


# --- JSON


def test_json_may_be_an_object_with_data(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps({'data': ROWS}, indent=2))
  assert len(read(path)[0]) == 2


def test_json_may_be_json_lines(tmp_path):
  lines = '\r\n'.join(json.dumps(row) for row in ROWS)
  (tmp_path / 'x.json').write_text(lines)
  (tmp_path / 'x.jsonl').write_text(lines)
  examples = [[example._replace(path='') for example in read(tmp_path / name)[0]] for name in ('x.json', 'x.jsonl')]
  assert len(examples[0]) == len(ROWS)
  assert examples[0] == examples[1]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', ':1: the file is empty'),
    (' [ ] ', ':1: the file is empty'),
    ('{"data": []}', ':1: the file is empty'),
    ('{"prompt": "a"}', ':1: the file must contain a list of objects, or {"data"'),
    ('{"rows": [{}]}', ':1: the file must contain a list'),
    ('[ROW, ROW', ":2: not JSON at line 1, column .*: Expecting ',' or '\\]'"),
    ('[ROW,\n {"a" 1}]', ":2: not JSON at line 2, column 7: Expecting ':'"),
    ('[ROW ROW]', ':1: not JSON at line 1'),
    ('[ROW, \n]', ':2: not JSON|:1: not JSON'),
    ('[ROW, {"a": 1, "a": 2}]', ":2: field 'a': appears twice"),
    ('[ROW, {"a": NaN}]', ":2: field 'a': NaN is not a JSON number"),
    ('[ROW, ' + '[' * 100_000, ':2: .*nested'),
    ('[ROW] [', r":2: expected nothing after the list, found '\['"),
    ('{"data": [ROW], "more": 1}', ':2: expected nothing after the list, found \',"more":1}\''),
    ('{"data": [ROW]', ":2: expected nothing after the list, found ''"),
    ('\ufeff[ROW]', ':1: .*byte order mark'),
  ],
)
@pytest.mark.parametrize('policy', ['raise', 'skip'])
def test_damaged_json_is_refused_with_its_row_under_either_policy(tmp_path, text, message, policy):
  path = tmp_path / 'x.json'
  path.write_text(text.replace('ROW', json.dumps(ROWS[1])), encoding='utf-8')
  with pytest.raises(rows.DataError, match=f'x.json{message}'):
    read(path, on_error=policy)


def test_an_element_that_is_no_object_is_a_row_at_fault(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps([ROWS[0], 3, ROWS[1]]))
  with pytest.raises(rows.DataError, match=r'x\.json:2: found a number; each row must be a JSON object'):
    read(path)
  pairs, report = read(path, on_error='skip')
  assert [pair.line for pair in pairs] == [1, 3]
  assert report.dropped['not_an_object'].count == 1


def test_large_json_is_refused_before_it_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, 'JSON_LIMIT', 100)
  path, _ = write(tmp_path, '.json')
  with pytest.raises(rows.DataError, match=r'data.json:1: the file has \d+ bytes, more than 100; convert it to .jsonl'):
    read(path)


# --- tables of text


def test_a_table_spells_numbers_booleans_and_lists(tmp_path):
  (path := tmp_path / 'a.csv').write_text('\ufeffprompt,completion,label\na,b,True\na,b,FALSE\na,b,1\na,b, .5\n')
  assert [pair.label for pair in read(f'unpaired:{path}')[0]] == [1.0, 0.0, 1.0, 0.5]
  (path := tmp_path / 'b.tsv').write_text('prompt\tresponses\tscores\na\t[" x", " y"]\t[1, 2.5]\n')
  (pair,), _ = read(f'scored:{path}')
  assert (pair.responses, pair.score) == ((' y', ' x'), (2.5, 1.0))


def test_an_empty_cell_is_a_value_that_is_not_there(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('prompt,chosen,rejected,label\na,b,c,\na,b,c,0.5\na,,c,1\n')
  pairs, report = read(path, on_error='skip')
  assert [pair.label for pair in pairs] == [1.0, 0.5]
  assert report.dropped['missing_field'].examples == [
    f"{path}:4: field 'chosen' is null or empty; required fields: chosen, rejected"
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', ':1: the file is empty'),
    ('prompt,chosen,rejected\n', ':1: the file is empty'),
    ('prompt,,rejected\na,b,c\n', ":1: field '': the name of column 2 is empty"),
    ('prompt,chosen,chosen\na,b,c\n', ":1: field 'chosen': the name of column 3 is the same as that of column 2"),
    ('prompt,chosen,rejected\na,b,c\na,"b"x,c\n', ":3: malformed table: ',' expected after '\"'"),
    ('prompt,chosen,rejected\na,b,c\na,"b\n,c\n\n', ':3: malformed table: unexpected end of data'),
    (
      'prompt,chosen,rejected\na,b,c\na,' + 200_000 * 'b' + ',c\n',
      ':3: malformed table: field larger than field limit',
    ),
  ],
)
@pytest.mark.parametrize('policy', ['raise', 'skip'])
def test_damaged_tables_are_refused_with_their_line_under_either_policy(tmp_path, text, message, policy):
  path = tmp_path / 'x.csv'
  path.write_text(text)
  with pytest.raises(rows.DataError, match=f'x.csv{message}'):
    read(path, on_error=policy)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('a,b', "field 'rejected': the row has 2 cells but there are 4 column names"),
    ('a,b,c,1,5', "field 'label': the row has 5 cells"),
    ('a,b,c,one', "field 'label': must be a number, not a string"),
    ('a,b,c,nan', "field 'label': must be a number, not a string"),
    ('a,b,c,1e400', "field 'label': must be finite in float32"),
    ('a,b,c,7', "field 'label': 7 is out of range"),
    ('a,b,c,True', "field 'label': must be a number, not a string"),
  ],
)
def test_cells_at_fault_are_named_and_can_be_skipped(tmp_path, row, message):
  path = tmp_path / 'x.csv'
  path.write_text(f'prompt,chosen,rejected,label\n"a\nb",b,c,1\n{row}\na,b,c,1\n')
  with pytest.raises(rows.DataError, match=f'x.csv:4: {message}'):
    read(path)
  assert [pair.line for pair in read(path, on_error='skip')[0]] == [2, 5]


def test_a_table_that_is_not_utf8_is_refused(tmp_path):
  path = tmp_path / 'x.csv'
  path.write_bytes(b'prompt,chosen,rejected\na,b,c\na,\xe9,c\n')
  with pytest.raises(rows.DataError, match=r'x\.csv:3: byte 3 is not valid UTF-8'):
    read(path)


@pytest.mark.parametrize(
  ('cell', 'message'),
  [
    ('x y', "field 'responses': must be a JSON list; the JSON is invalid at character 1"),
    ('"x"', "field 'responses': must be a list, not a string"),
    ('[NaN]', r"field 'responses': field '\[0\]': NaN is not"),
  ],
)
def test_lists_in_cells_are_json(tmp_path, cell, message):
  path = tmp_path / 'x.tsv'
  quoted = cell.replace('"', '""')
  path.write_text(f'prompt\tresponses\na\t"{quoted}"\n')
  with pytest.raises(rows.DataError, match=f'x.tsv:2: {message}'):
    read(f'ranked:{path}')


# --- Parquet


def test_parquet_nulls_are_values_that_are_not_there(tmp_path):
  path = tmp_path / 'x.parquet'
  message = {'role': 'assistant', 'content': 'Hello', 'name': None}
  write_parquet(
    path,
    {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'label': None},
    {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'label': 0.5},
    {'prompt': None, 'chosen': 'b', 'rejected': 'c', 'label': 0.5},
  )
  pairs, report = read(path, on_error='skip')
  assert [pair.label for pair in pairs] == [1.0, 0.5]
  assert report.dropped['missing_field'].examples[0].startswith(f"{path}:3: field 'prompt' is missing")
  write_parquet(
    path,
    {
      'prompt': [{'role': 'user', 'content': 'Hi', 'name': None}],
      'chosen': [message],
      'rejected': [{**message, 'content': 'x'}],
    },
  )
  assert read(path)[0][0].responses == ('Hello', 'x')


def test_parquet_rows_are_numbered_through_batches(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, 'PARQUET_BATCH', 2)
  path = tmp_path / 'x.parquet'
  write_parquet(path, *({'prompt': 'a', 'chosen': f'{i}', 'rejected': 'c'} for i in range(5)))
  assert [(pair.line, pair.responses[0]) for pair in read(path)[0]] == [(i + 1, str(i)) for i in range(5)]


@pytest.mark.parametrize(('kind', 'what'), [(pyarrow.binary(), 'of type bytes'), (pyarrow.date32(), 'of type date')])
def test_parquet_columns_of_other_types_are_refused(tmp_path, kind, what):
  path = tmp_path / 'x.parquet'
  value = pyarrow.array([0], pyarrow.int32()).cast(kind) if kind == pyarrow.date32() else pyarrow.array([b'a'], kind)
  parquet.write_table(pyarrow.table({'prompt': value, 'chosen': ['b'], 'rejected': ['c']}), path)
  with pytest.raises(rows.DataError, match=f"x.parquet:1: field 'prompt': must be .*, not {what}"):
    read(path)


@pytest.mark.parametrize('policy', ['raise', 'skip'])
def test_damaged_parquet_is_refused_under_either_policy(tmp_path, policy):
  path, _ = write(tmp_path, '.parquet')
  for content in (b'', b'no Parquet', path.read_bytes()[:-20]):
    path.write_bytes(content)
    with pytest.raises(rows.DataError, match=r'data\.parquet:1: not readable as Parquet from this row on'):
      read(path, on_error=policy)


# --- the hub


@pytest.fixture
def hub(monkeypatch):
  """Stands in for the package datasets, and keeps what it was asked for."""
  asked = []

  def load_dataset(path, name=None, *, split):
    asked.append((path, name, split))
    if path == 'a/missing':
      raise FileNotFoundError("Dataset 'a/missing' doesn't exist on the Hub")
    return [row | {'weight': None} for row in ROWS]

  monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load_dataset))
  return asked


@pytest.mark.parametrize(
  ('location', 'wanted'),
  [
    ('owner/name', ('owner/name', None, 'train')),
    ('owner/name:test', ('owner/name', None, 'test')),
    ('owner/name:train[:10%]', ('owner/name', None, 'train[:10%]')),
    ('owner/name/comparisons:test', ('owner/name', 'comparisons', 'test')),
    ('imdb:test', ('imdb', None, 'test')),
    ('./a/b/c:test', ('./a/b/c', None, 'test')),
    ('/a/b', ('/a/b', None, 'train')),
  ],
)
def test_names_configurations_and_splits_of_the_hub(hub, location, wanted):
  pairs, _ = read(f'preference:hf:{location}')
  assert hub == [wanted]
  assert [pair.origin for pair in pairs] == [f'hf:{location}:1', f'hf:{location}:2']
  assert [pair.label for pair in pairs] == [0.25, 1.0]


def test_what_the_hub_has_not_is_named(hub):
  with pytest.raises(ValueError, match="hf:a/missing:test: could not be loaded: Dataset 'a/missing' doesn't exist"):
    read('hf:a/missing:test')
  with pytest.raises(ValueError, match='hf::test: does not name a dataset'):
    read('hf::test')


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(ValueError, match=r"hf:owner/name: needs the package datasets: pip install 'alignjax\[hf\]'"):
    read('hh:hf:owner/name')


# --- a reader of one's own


def test_a_reader_is_one_line_and_may_refuse_single_rows(monkeypatch):
  def three(location):
    yield 5, {'prompt': location, 'chosen': 'b', 'rejected': 'c'}
    yield 6, rows.Refused('spoilt', "field 'chosen': is spoilt")
    yield 7, {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}

  monkeypatch.setitem(readers.SCHEMES, 'three', three)
  with pytest.raises(rows.DataError, match=r"^three:x/y:6: field 'chosen': is spoilt"):
    read('three:x/y')
  pairs, report = read('three:x/y', on_error='skip')
  assert [(pair.path, pair.line, pair.prompt) for pair in pairs] == [('three:x/y', 5, 'x/y'), ('three:x/y', 7, 'a')]
  assert report.dropped['spoilt'].count == 1


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('a.jsonl', '{"prompt": "a"}\n{}\n'),
    ('a.jsonl', 'no JSON\n{}\n'),
    ('a.jsonl.gz', 'no gzip'),
    ('a.csv', 'prompt,chosen\na,b\na,b\n'),
    ('a.csv', 'prompt,chosen\na\na,b\n'),
    ('a.csv', 'prompt,chosen\n"a"b,\na,b\n'),
    ('a.csv', 'prompt,prompt\na,b\na,b\n'),
  ],
)
def test_a_file_is_closed_as_soon_as_reading_has_failed(tmp_path, monkeypatch, name, content):
  opened, open_file = [], readers._open
  monkeypatch.setattr(readers, '_open', lambda path: opened.append(open_file(path)) or opened[-1])
  (path := tmp_path / name).write_text(content)
  with pytest.raises(rows.DataError) as kept:  # and with it the frames that it came through
    read(path)
  assert [file.closed for file in opened] == [True], kept


def test_a_file_that_is_not_there_is_a_missing_file(tmp_path):
  for ending in readers.ENDINGS:
    with pytest.raises(FileNotFoundError):
      read(pathlib.Path(tmp_path) / f'none{ending}')
