"""From rounds to rows: pairings, ties, and responses that were cut off."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from alignjax import objectives
from alignjax.training import rollout_datasets, rollout_rows, step
from tests.training import rollout_world as world


def numbered(score):
  """A round of responses that are numbered from 0."""
  score = np.asarray(score, np.float64)
  prompts, count = score.shape
  numbers = np.tile(np.arange(count, dtype=np.int32), (prompts, 1))
  zeros = np.zeros((*score.shape, 1), np.float32)
  return world.round_of(
    ids=np.arange(prompts),
    prompt=np.ones((prompts, 1), np.int32),
    response=numbers[..., None],
    response_length=np.ones_like(numbers),
    logp=zeros,
    score=score,
    reference_logp=zeros,
  )


def shaped(score, finished=True, **options):
  """What rows have of such a round: responses, weights, labels and scores."""
  drawn = numbered(score)
  finished = np.broadcast_to(finished, drawn.finished.shape)
  rows = rollout_rows.Shaping(**options).rows(dataclasses.replace(drawn, finished=finished))
  return rows.response[..., 0].tolist(), rows.weight.tolist(), rows.label.tolist(), rows.score.tolist()


def test_pairings_choose_and_order_responses():
  score = [[1.0, 3.0, 2.0], [5.0, 5.0, 4.0]]
  assert shaped(score) == ([[0, 1, 2], [0, 1, 2]], [1, 1], [1, 1], score)
  assert shaped(score, pairing='best')[0] == [[1], [0]]
  assert shaped(score, pairing='best_worst')[0] == [[1, 0], [0, 2]]
  response, weight, label, scores = shaped(score, pairing='two')
  assert (response, weight, label) == ([[1, 0], [0, 1]], [1, 0], [1, 0.5])
  assert scores == [[3, 1], [5, 5]]
  assert shaped(score, pairing='two', ties='keep')[1:3] == ([1, 1], [1, 0.5])
  response, weight, _, _ = shaped(score, pairing='all_pairs')
  assert response == [[1, 0], [2, 0], [1, 2], [0, 1], [0, 2], [1, 2]]
  assert weight == [1, 1, 1, 0, 1, 1]


def test_rows_of_responses_that_were_cut_off_are_left_out():
  """The other responses take their places if there are enough. Otherwise the row has weight 0."""
  score = [[1.0, 3.0, 2.0], [5.0, 5.5, 4.0], [1.0, 2.0, 3.0]]
  finished = [[True, False, True], [True, True, True], [False, True, False]]

  def left(pairing, **options):
    return shaped(score, finished, pairing=pairing, unfinished='drop', **options)[:2]

  assert left('all') == ([[0, 1, 2]] * 3, [0, 1, 0])
  assert left('best') == ([[2], [1], [1]], [1, 1, 1])
  assert left('best_worst') == ([[2, 0], [1, 2], [1, 1]], [1, 1, 0])
  assert left('best_worst', ties='keep')[1] == [1, 1, 0]
  assert left('two') == ([[2, 0], [1, 0], [1, 0]], [1, 1, 0])
  assert left('all_pairs')[1] == [0, 1, 0, 1, 1, 1, 0, 0, 0]
  for pairing in rollout_rows.PAIRINGS:
    assert shaped(score, finished, pairing=pairing) == shaped(score, pairing=pairing)


def test_a_row_of_weight_0_changes_neither_the_loss_nor_what_divides_it():
  """A batch with a row that is left out is the batch without it."""
  drawn = numbered([[1.0, 3.0], [2.0, 0.5], [0.0, 1.0]])
  drawn = dataclasses.replace(
    drawn, prompt=np.array([[1], [2], [1]]), finished=np.array([[True, True], [True, False], [True] * 2])
  )
  fields = 'reference_logp', 'score'
  rows = rollout_rows.Shaping('two', unfinished='drop', fields=fields).rows(drawn)
  assert rows.weight.tolist() == [1, 0, 1]
  kept = rollout_rows.minibatch(rows, np.array([0, 2]), 1, np.arange(2))
  evaluate = jax.jit(step.build_eval_step(world.POLICY, objectives.dpo(beta=0.1)))
  whole, without = (evaluate(world.params_of(4), world.FROZEN, batch) for batch in (rows, kept))
  assert float(whole['loss'].mean()) == pytest.approx(float(without['loss'].mean()), rel=1e-6)
  assert float(whole['loss'].weight) == float(without['loss'].weight) == 2.0
  packed = rollout_datasets.pack(
    [drawn], rollout_rows.Shaping('two', unfinished='drop', fields=fields), pathlib.Path('r')
  )
  assert (len(packed), packed.report.dropped['unfinished'].count) == (2, 1)
