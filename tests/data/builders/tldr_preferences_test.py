"""TL;DR comparisons: the choice of the person comes first, splits stand in the rows, news are counted."""

import pytest

from alignjax.data import catalogue, sources
from tests.data.builders import preparing

POST = {'id': 't3_1', 'post': 'I did it.\n\nTwice.', 'title': 'It', 'subreddit': 'relationships'}
PROMPT = 'SUBREDDIT: r/relationships\n\nTITLE: It\n\nPOST: I did it.\n\nTwice.\n\nTL;DR:'


def comparison(first, second, choice, split='train', info=POST):
  summaries = [{'text': text, 'policy': 'sup1', 'note': ''} for text in (first, second)]
  return {'info': info, 'summaries': summaries, 'choice': choice, 'worker': 'w', 'split': split, 'extra': {}}


def test_rows_are_comparisons_by_split(tmp_path):
  news = {'id': 'n', 'article': 'Long.', 'title': 'It', 'site': 'cnn'}
  files = {
    'batch3.json': [comparison(' a', ' b', 0), comparison(' c', 'd', 1), comparison('e', 'f', 1, 'valid1')],
    'comparisons/batch4.json': [comparison('x', 'y', 0, info=news), comparison(' g', ' h', 1)],
  }
  # Both depths are searched, the files by name: batch3.json, comparisons/batch4.json.
  builder = preparing.build(tmp_path, 'tldr_preferences', files)
  rows = [row for _, row in catalogue.rows(f'{builder.data_path}:train')]
  assert [row['prompt'] for row in rows] == [PROMPT] * 3
  assert [(row['chosen'], row['rejected']) for row in rows] == [(' a', ' b'), (' d', ' c'), (' h', ' g')]
  ((_, row),) = catalogue.rows(f'{builder.data_path}:valid1')
  assert row == {'prompt': PROMPT, 'chosen': ' f', 'rejected': ' e'}
  assert list(builder.info.splits) == ['train', 'valid1']
  report = builder.reports['train']
  assert (report.read, report.kept, report.dropped['not_a_post'].count) == (4, 3, 1)


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    (comparison('a', 'b', 2), "fields 'summaries' and 'choice'"),
    (comparison('a', 'b', None), "fields 'summaries' and 'choice'"),
    (comparison('a', 'b', 0) | {'summaries': [{'text': 'a'}]}, "fields 'summaries' and 'choice'"),
    (comparison('a', 'b', 0, split='test'), "field 'split': must be one of train, valid1, valid2"),
    (comparison('a', 'b', 0, info=POST | {'title': None}), "field 'title': must be there, as str"),
  ],
)
def test_a_malformed_record_is_named(tmp_path, record, message):
  with pytest.raises(sources.DataError, match=message):
    preparing.build(tmp_path, 'tldr_preferences', {'batch3.json': [record]})
