"""UltraFeedback: the same rows from Parquet and from JSON Lines, and a form that the library reads."""

import pyarrow
import pyarrow.parquet
import pytest

from alignjax.data import catalogue, report, sources
from tests.data.builders import preparing


def conversation(*contents):
  return [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(contents)]


def record(i):
  turns = (f'Über {i}\n',) if i % 2 else (f'A {i}', 'B', 'C')  # conversations of different lengths
  return {
    'prompt': turns[0],
    'prompt_id': str(i),
    'chosen': conversation(*turns, f' yes {i}'),
    'rejected': conversation(*turns, 'no'),
    'score_chosen': 0.5 + i,
    'score_rejected': 0.1,
  }


@pytest.mark.parametrize('suffix', ['parquet', 'jsonl'])
def test_rows_are_those_of_the_files(tmp_path, suffix):
  records = [record(i) for i in range(1100)]
  if suffix == 'jsonl':
    preparing.write(tmp_path / 'manual' / 'train_prefs.jsonl', records)
    preparing.write(tmp_path / 'manual' / 'test_prefs.jsonl', records[:1])
  else:
    (tmp_path / 'manual' / 'data').mkdir(parents=True)
    for part, rows in {
      'train_prefs-00000-of-00002': records[:1050],
      'train_prefs-00001-of-00002': records[1050:],
    }.items():
      pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'manual' / 'data' / f'{part}.parquet')
    pyarrow.parquet.write_table(
      pyarrow.Table.from_pylist(records[:1]), tmp_path / 'manual' / 'data' / 'test_prefs-00000-of-00001.parquet'
    )
  builder = preparing.build(tmp_path, 'ultrafeedback_binarized', {})
  read = [row for _, row in catalogue.rows(str(builder.data_path))]
  assert read == [
    {'chosen': each['chosen'], 'rejected': each['rejected'], 'score': [each['score_chosen'], 0.1]} for each in records
  ]
  assert len(list(catalogue.rows(f'{builder.data_path}:test'))) == 1
  pairs = list(sources.read_pairs(preparing.write(tmp_path / 'r.jsonl', read[:2]), report.DropReport()))
  assert [(pair.prompt[-1]['content'], pair.responses, pair.score) for pair in pairs] == [
    ('C', (' yes 0', 'no'), (0.5, 0.1)),
    ('Über 1\n', (' yes 1', 'no'), (1.5, 0.1)),
  ]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'score_chosen': None}, "field 'score_chosen': must be there, as int or float"),
    ({'chosen': 'text'}, "field 'chosen': must be there, as list"),
    ({'rejected': [{'role': 'user'}]}, "field 'content': must be there, as str"),
    ({'rejected': ['text']}, "an object with the field 'role' is wanted here"),
  ],
)
def test_a_malformed_record_is_named(tmp_path, change, message):
  with pytest.raises(sources.DataError, match=message):
    preparing.build(tmp_path, 'ultrafeedback_binarized', {'train_prefs.jsonl': [record(0) | change]})
