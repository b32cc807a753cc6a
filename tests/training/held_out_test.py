"""Evaluations: the loss of an objective that pools prompts does not depend on the batches."""

import jax
import numpy as np
import pytest

from alignjax import objectives
from alignjax.data.batches import batching
from alignjax.parallel import mesh as parallel_mesh
from alignjax.training import held_out, references
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from tests import fixtures
from tests.training import bigram

MODEL, PARAMS = bigram.MODEL, bigram.params(1)
ROWS = fixtures.preference_batch(seed=1, prompts=7, responses=1, response_size=4, vocab=bigram.VOCAB)
FROZEN = state_lib.Frozen(references.Live(bigram.params(0)))


def batches(size):
  """The seven rows in batches of a size, the last one filled up with rows of weight 0."""
  for first in range(0, 7, size):
    places = np.arange(first, first + size)
    batch = jax.tree.map(lambda x, places=places: np.asarray(x)[np.minimum(places, 6)], ROWS)
    batch.weight[:] *= places < 7
    yield batching.Batch(batch, places)


class Repeated:
  """The batches, as often as they are asked for."""

  def __init__(self, size):
    self._size = size

  def __iter__(self):
    return batches(self._size)


def evaluate(objective, size, stopped=lambda: False):
  mesh = parallel_mesh.make_mesh(devices=jax.devices()[:1])
  build = {'chunk': 16, 'mesh': mesh}
  step, pool = (f(Policy(MODEL), objective, **build) for f in (step_lib.build_eval_step, step_lib.build_pool_step))
  evaluation = held_out.Evaluation(step, Repeated(size), summary=objective.summary, pool=pool)
  return held_out.Evaluator(evaluation, mesh, lambda text: None)(PARAMS, FROZEN, stopped)


def test_the_batch_size_does_not_change_an_evaluation_of_kto():
  one, other = (evaluate(objectives.kto(beta=2.0), size) for size in (7, 2))
  assert one.keys() == other.keys()
  for name, value in one.items():
    assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
  assert one['reference_point'] > 0.01  # z is at work


def test_an_objective_without_a_pool_takes_one_pass():
  assert step_lib.build_pool_step(Policy(MODEL), objectives.dpo()) is None


@pytest.mark.parametrize('allowed', [0, 2, 5])
def test_an_evaluation_that_is_cut_short_has_no_result(allowed):
  asked = iter([False] * allowed + [True] * 20)
  assert evaluate(objectives.kto(), 2, lambda: next(asked)) == {}
