"""Tests of the TL;DR builder: the chosen summary comes first, and rows name their split."""

import pytest

from alignjax.data.reading import catalogue, rows
from tests.data.builders import preparing

POST = {'id': 't3_1', 'post': 'I did it.\n\nTwice.', 'title': 'It', 'subreddit': 'relationships'}
PROMPT = 'SUBREDDIT: r/relationships\n\nTITLE: It\n\nPOST: I did it.\n\nTwice.\n\nTL;DR:'


def comparison(first, second, choice, split='train', **fields):
  summaries = [{'text': text, 'policy': 'sup1', 'note': ''} for text in (first, second)]
  row = {'info': POST, 'summaries': summaries, 'choice': choice, 'worker': 'w', 'batch': 'b', 'split': split}
  return row | {'extra': {}} | fields


def test_rows_are_comparisons_by_split(tmp_path):
  news = {'id': 'n', 'article': 'Long.', 'title': 'It', 'site': 'cnn'}
  files = {
    'batch3.jsonl': [comparison(' a', ' b', 0), comparison(' c', 'd', 1), comparison('e', 'f', 1, 'valid1')],
    'batch4.jsonl': [comparison('x', 'y', 0, info=news), comparison(' g', ' h', 1)],
  }
  builder = preparing.build(tmp_path, 'tldr_preferences', files)
  train = [row for _, row in catalogue.read(f'{builder.data_path}:train')]
  assert [row['prompt'] for row in train] == [PROMPT] * 3
  assert [(row['chosen'], row['rejected']) for row in train] == [(' a', ' b'), (' d', ' c'), (' h', ' g')]
  ((_, row),) = catalogue.read(f'{builder.data_path}:valid1')
  assert row == {'prompt': PROMPT, 'chosen': ' f', 'rejected': ' e'}
  assert list(builder.info.splits) == ['train', 'valid1']
  report = builder.reports['train']
  assert {reason: tally.count for reason, tally in report.dropped.items()} == {'another_split': 1, 'no_post': 1}
  assert report.kept == 3


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (comparison('a', 'b', 2), r"batch3.jsonl:1: field 'choice'"),
    (comparison('a', 'b', 0, 'test'), "field 'split': must be one of train, valid1, valid2"),
    (comparison('a', 'b', 0, more=1), 'more'),
  ],
)
def test_a_malformed_row_is_named(tmp_path, row, message):
  with pytest.raises(rows.DataError, match=message):
    preparing.build(tmp_path, 'tldr_preferences', {'batch3.jsonl': [row]})
