"""Tests of `generic_forms`: what rows become, and errors. (`sources_test` covers pairs.)"""

import json

import pytest

from alignjax.data.reading import drops, rows, sources
from tests.data.examples import GO, HELLO, RANKED, SCORED, UNPAIRED, USER


def read(tmp_path, form, *rows, **options):
  path = tmp_path / 'data.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  report = drops.DropReport()
  return list(sources.read_examples(f'{form}:{path}', report, **options)), report


@pytest.mark.parametrize(
  ('label', 'wanted'),
  [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0), (0.25, 0.25), ('True', 1.0), (' no', 0.0), ('0.5', 0.5)],
)
def test_unpaired_label_is_the_probability_that_the_response_is_desirable(tmp_path, label, wanted):
  (pair,), _ = read(tmp_path, 'unpaired', UNPAIRED | {'label': label, 'weight': 3})
  assert pair == rows.Example('Once', (' upon',), wanted, 3.0, path=pair.path, line=1)


@pytest.mark.parametrize('completion', ['Hello', [HELLO]])
def test_unpaired_chat(tmp_path, completion):
  (pair,), _ = read(tmp_path, 'unpaired', {'prompt': [USER], 'completion': completion, 'label': False})
  assert (pair.prompt, pair.responses, pair.label) == ([USER], ('Hello',), 0.0)


def test_ranked_responses_stay_in_order(tmp_path):
  pairs, _ = read(tmp_path, 'ranked', RANKED, {'prompt': [USER], 'responses': ['a', [HELLO], 'c'], 'weight': 2})
  assert [pair.responses for pair in pairs] == [(' upon', ' a', ' time'), ('a', 'Hello', 'c')]
  assert [pair.weight for pair in pairs] == [1.0, 2.0]
  assert pairs[0].score is None


def test_scored_responses_are_ordered_with_all_that_belongs_to_them_and_ties_stay_in_order(tmp_path):
  (pair,), _ = read(tmp_path, 'scored', SCORED | {'behaviour_logp': [-1, -2, -3, -4]})
  assert pair.responses == (' b', ' d', ' a', ' c')
  assert pair.score == (3.5, 3.5, 1.0, -2.0)
  assert pair.behaviour_logp == (-2.0, -4.0, -1.0, -3.0)


def test_best_and_worst_of_scored_responses_make_a_pair(tmp_path):
  (pair,), _ = read(tmp_path, 'scored_pair', SCORED | {'behaviour_logp': [-1, -2, -3, -4]})
  assert (pair.responses, pair.score, pair.behaviour_logp) == ((' b', ' c'), (3.5, -2.0), (-2.0, -3.0))


def test_a_single_scored_response_is_enough_but_for_a_pair(tmp_path):
  single = {'prompt': 'Once', 'responses': [' a'], 'scores': [0]}
  (pair,), _ = read(tmp_path, 'scored', single)
  assert (pair.responses, pair.score) == ((' a',), (0.0,))
  with pytest.raises(rows.DataError, match="field 'responses': has one response"):
    read(tmp_path, 'scored_pair', single)


def test_margin_becomes_a_difference_of_scores(tmp_path):
  pairs, _ = read(
    tmp_path, 'preference', *({'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'margin': m} for m in (0.5, -2))
  )
  assert [pair.score for pair in pairs] == [(0.5, 0.0), (-2.0, 0.0)]


@pytest.mark.parametrize(
  ('form', 'row', 'reason'),
  [
    ('scored', SCORED | {'scores': [2, 2, 2, 2]}, 'tied_scores'),
    ('scored_pair', SCORED | {'scores': [2, 2, 2, 2]}, 'tied_scores'),
    ('scored', SCORED | {'responses': [' a'] * 4}, 'identical_text'),
    ('scored_pair', SCORED | {'responses': [' a', ' b', ' b', ' c']}, 'identical_text'),
    ('ranked', RANKED | {'responses': [' a'] * 3}, 'identical_text'),
  ],
)
def test_rows_that_prefer_nothing_are_dropped_and_counted(tmp_path, form, row, reason):
  good = RANKED if form == 'ranked' else SCORED
  pairs, report = read(tmp_path, form, good, row, good)
  assert [pair.line for pair in pairs] == [1, 3]
  assert list(report.dropped) == [reason]


@pytest.mark.parametrize(
  ('form', 'row', 'message'),
  [
    ('unpaired', UNPAIRED | {'label': 'maybe'}, "field 'label': 'maybe' is no label; use true or false"),
    ('unpaired', UNPAIRED | {'label': None}, "field 'label' is null"),
    ('unpaired', UNPAIRED | {'label': 1.5}, "field 'label': 1.5 is out of range"),
    ('unpaired', {'prompt': 'a', 'completion': 'b'}, "field 'label' is missing"),
    ('unpaired', UNPAIRED | {'completion': ' '}, "field 'completion': the response is empty"),
    ('unpaired', UNPAIRED | {'completion': [HELLO]}, "field 'completion': is a list of messages but 'prompt' is"),
    (
      'unpaired',
      UNPAIRED | {'chosen': 'b'},
      "field 'chosen': unknown; known fields: prompt, completion, label, weight",
    ),
    ('ranked', RANKED | {'responses': [' a']}, "field 'responses': has one response"),
    ('ranked', RANKED | {'responses': []}, "field 'responses': the list is empty"),
    ('ranked', RANKED | {'responses': 'ab'}, "field 'responses': must be a list, not a string"),
    ('ranked', RANKED | {'responses': [' a', 3]}, r"field 'responses\[1\]': must be a string or a list of messages"),
    ('ranked', RANKED | {'responses': [' a', '']}, r"field 'responses\[1\]': the response is empty"),
    ('ranked', RANKED | {'scores': [1, 2, 3]}, "field 'scores': unknown"),
    ('scored', SCORED | {'scores': [1, 2]}, "field 'scores': has 2 numbers for 4 responses"),
    ('scored', SCORED | {'scores': [1, 2, None, 4]}, r"field 'scores\[2\]': must be a number, not null"),
    ('scored', SCORED | {'scores': {}}, "field 'scores': must be a list, not an object"),
    ('scored', SCORED | {'behaviour_logp': [-1, -2, 0.5, 0]}, r"field 'behaviour_logp\[2\]': 0.5 .* at most 0"),
    ('scored', {'prompt': [USER], 'responses': [[USER], [GO]], 'scores': [1, 2]}, r"field 'responses\[0\]': must be a"),
    (
      'preference',
      {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'margin': 1, 'score': [1, 0]},
      "field 'margin': the",
    ),
    ('preference', {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'margin': [1]}, "field 'margin': must be a number"),
  ],
)
def test_refusals_name_line_and_field(tmp_path, form, row, message):
  with pytest.raises(rows.DataError, match=f'data.jsonl:1: {message}'):
    read(tmp_path, form, row)
