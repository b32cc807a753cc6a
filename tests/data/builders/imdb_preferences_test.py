"""Controlled sentiment: which pairs the scores make."""

import pytest

from alignjax.data import catalogue, sources
from tests.data.builders import preparing

RECORDS = [
  {'prompt': 'This film', 'responses': [' a', ' b', ' c'], 'scores': [0.1, 0.9, 0.5]},
  {'prompt': 'Such', 'responses': [' d', ' e', ' f'], 'scores': [1, 0, 0]},
  {'prompt': 'Equal', 'responses': [' g', ' h'], 'scores': [0.3, 0.3]},
]


@pytest.mark.parametrize(
  ('config', 'wanted'),
  [
    ('all_pairs', [' b c', ' b a', ' c a', ' d e', ' d f']),
    ('best_and_worst', [' b a', ' d f']),
  ],
)
def test_the_higher_score_is_chosen(tmp_path, config, wanted):
  builder = preparing.build(tmp_path, f'imdb_preferences/{config}', {'train.jsonl': RECORDS})
  rows = [row for _, row in catalogue.rows(str(builder.data_path))]
  assert [row['chosen'] + row['rejected'] for row in rows] == wanted
  score = {text: score for record in RECORDS for text, score in zip(record['responses'], record['scores'], strict=True)}
  assert all(row['score'] == [score[row['chosen']], score[row['rejected']]] for row in rows)
  assert {row['prompt'] for row in rows} == {'This film', 'Such'}
  report = builder.reports['train']
  assert (report.read, report.dropped['equal_scores'].count) == (3, 1)


@pytest.mark.parametrize(
  'change',
  [
    {'scores': [1.0, 2.0]},
    {'scores': [1.0, 2.0, 'good']},
    {'scores': [1.0, 2.0, True]},
    {'scores': [1.0, 2.0, float('nan')]},
    {'scores': None},
  ],
)
def test_a_score_is_one_finite_number_a_response(tmp_path, change):
  with pytest.raises(sources.DataError, match=r"train.jsonl:2: field 'scores'"):
    preparing.build(tmp_path, 'imdb_preferences', {'train.jsonl': [RECORDS[0], RECORDS[1] | change]})
