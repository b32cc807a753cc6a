"""Tests of the builder for your own rows: examples are the same after packing."""

import pytest

from alignjax.data.reading import catalogue, drops, rows, sources
from tests.data.builders import preparing

USER = {'role': 'user', 'content': 'Über\r\n\0?'}
TEXT = [
  {'prompt': 'Once', 'chosen': ' upon\n', 'rejected': ' a  '},
  {'prompt': '‮ \t', 'chosen': '🙂', 'rejected': '\\n', 'label': 0.1, 'weight': 0.0},
]
CHAT = [
  {'prompt': [{'role': 'system', 'content': ''}, USER], 'chosen': 'yes', 'rejected': 'no', 'score': [0.3, -1e9]},
  {'prompt': [USER], 'chosen': 'a', 'rejected': 'b', 'score': [1.5, 0.1], 'weight': 2},
]
LOGPS = [row | {'behaviour_logp': [-12.345, 0.0]} for row in TEXT]


@pytest.mark.parametrize(('config', 'rows'), [('text', TEXT), ('chat', CHAT), ('text', LOGPS)])
def test_pairs_are_equal_after_packing(tmp_path, config, rows):
  builder = preparing.build(tmp_path, f'jsonl_preferences/{config}', {'train.jsonl': rows})
  packed = preparing.write(tmp_path / 'r.jsonl', [row for _, row in catalogue.read(str(builder.data_path))])
  before, after = (
    [pair._replace(path='', line=0) for pair in sources.read_examples(path, drops.DropReport())]
    for path in (tmp_path / 'manual' / 'train.jsonl', packed)
  )
  assert after == before
  assert len(after) == 2


def test_pairs_without_a_difference_are_dropped_and_counted(tmp_path):
  rows = [TEXT[0], TEXT[0] | {'chosen': ' a  '}]
  builder = preparing.build(tmp_path, 'jsonl_preferences', {'train.jsonl': rows, 'validation.jsonl.gz': TEXT})
  assert {split: info.num_examples for split, info in builder.info.splits.items()} == {'train': 1, 'validation': 2}
  assert builder.reports['train'].dropped['identical_text'].count == 1


@pytest.mark.parametrize(
  ('config', 'row', 'message'),
  [
    ('text', CHAT[0], r'train.jsonl:1: .*: must be a string in jsonl_preferences/text'),
    ('chat', TEXT[0], r'train.jsonl:1: .*: must be messages in jsonl_preferences/chat'),
    ('text', {'prompt': 'a', 'chosen': 'b'}, r"train.jsonl:1: field 'rejected' is missing"),
  ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, config, row, message):
  with pytest.raises(rows.DataError, match=message):
    preparing.build(tmp_path, f'jsonl_preferences/{config}', {'train.jsonl': [row]})
