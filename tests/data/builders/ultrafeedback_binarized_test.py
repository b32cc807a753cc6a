"""Tests of the UltraFeedback builder: Parquet and JSON Lines give the same rows."""

import pyarrow
from pyarrow import parquet
import pytest

from alignjax.data.reading import catalogue
from tests.data.builders import preparing


def conversation(*contents):
  return [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(contents)]


def published(i):
  turns = (f'Über {i}\n',) if i % 2 else (f'A {i}', 'B', 'C')  # conversations of different lengths
  return {
    'prompt': turns[0],
    'prompt_id': str(i),
    'chosen': conversation(*turns, f' yes {i}'),
    'rejected': conversation(*turns, 'no'),
    'messages': conversation(*turns, f' yes {i}'),
    'score_chosen': 0.3 + i,
    'score_rejected': 0.1,
  }


def write_parquet(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize('suffix', ['parquet', 'jsonl'])
def test_rows_are_those_of_the_files(tmp_path, suffix):
  rows = [published(i) for i in range(300)]
  if suffix == 'jsonl':
    preparing.write(tmp_path / 'manual' / 'train_prefs.jsonl', rows)
    preparing.write(tmp_path / 'manual' / 'test_prefs.jsonl', rows[:1])
  else:
    data = tmp_path / 'manual' / 'data'
    write_parquet(data / 'train_prefs-00000-of-00002.parquet', rows[:280])
    write_parquet(data / 'train_prefs-00001-of-00002.parquet', rows[280:])
    write_parquet(data / 'test_prefs-00000-of-00001.parquet', rows[:1])
  builder = preparing.build(tmp_path, 'ultrafeedback_binarized', {})
  assert [row for _, row in catalogue.read(f'{builder.data_path}:train')] == [
    {
      'prompt': row['chosen'][:-1],
      'chosen': row['chosen'][-1]['content'],
      'rejected': row['rejected'][-1]['content'],
      'score': [row['score_chosen'], 0.1],
    }
    for row in rows
  ]
  assert builder.info.splits['test'].num_examples == 1
