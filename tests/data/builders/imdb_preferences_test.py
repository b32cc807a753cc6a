"""Tests of the controlled-sentiment builder: which pairs the scores give."""

import pytest

from alignjax.data.reading import catalogue
from tests.data.builders import preparing

ROWS = [
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
  builder = preparing.build(tmp_path, f'imdb_preferences/{config}', {'train.jsonl': ROWS})
  rows = [row for _, row in catalogue.read(str(builder.data_path))]
  assert [row['chosen'] + row['rejected'] for row in rows] == wanted
  score = {text: score for row in ROWS for text, score in zip(row['responses'], row['scores'], strict=True)}
  assert all(row['score'] == [score[row['chosen']], score[row['rejected']]] for row in rows)
  assert [row['prompt'] for row in rows] == ['Such' if row['chosen'] == ' d' else 'This film' for row in rows]
  report = builder.reports['train']
  assert (report.read, report.dropped['tied_scores'].count) == (3, 1)
