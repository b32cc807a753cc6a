"""Response statistics: one value for each response out of hidden states, in the table beside token statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import numerics, objectives, stats, testing
from alignjax.testing import checks
from alignjax.training import forward
from alignjax.types import Head, Term
from tests import fixtures

WIDTH, VOCAB = 4, 11
BATCH = fixtures.preference_batch(seed=2)
RNG = np.random.default_rng(0)
STATES = jnp.asarray(RNG.standard_normal((*BATCH.response.shape, WIDTH)), jnp.float32)
HEAD = Head(jnp.asarray(RNG.standard_normal((WIDTH, VOCAB)), jnp.float32))
PROBE = jnp.asarray(RNG.standard_normal(WIDTH), jnp.float32)
REWARD = stats.ResponseStat('toy_reward', lambda states, head, batch: stats.last_state(states, batch) @ PROBE)


def table(states, batch=BATCH, chunk=36):
  return stats.statistics({REWARD, stats.logp}, stats.HiddenStates(states, HEAD), None, batch, chunk=chunk)


def test_the_state_that_predicts_the_last_token_is_read():
  found = table(STATES)[REWARD]
  assert found.shape == BATCH.response.shape[:2]
  for row in range(found.shape[0]):
    for n in range(2):
      last = int(BATCH.response_length[row, n]) - 1
      np.testing.assert_allclose(found[row, n], np.asarray(STATES)[row, n, last] @ np.asarray(PROBE), rtol=1e-5)


def test_an_empty_response_has_the_state_after_its_prompt():
  batch = dataclasses.replace(BATCH, response_length=BATCH.response_length.at[0, 1].set(0))
  np.testing.assert_array_equal(stats.last_state(STATES, batch)[0, 1], STATES[0, 1, 0])


def test_gradients_flow_to_the_hidden_states_of_the_last_tokens_alone():
  gradient = np.asarray(jax.grad(lambda states: jnp.sum(table(states)[REWARD]))(STATES))
  last = np.asarray(BATCH.response_length)[..., None] - 1
  at_last = np.arange(STATES.shape[2]) == last
  np.testing.assert_allclose(gradient[at_last], np.broadcast_to(PROBE, gradient[at_last].shape), rtol=1e-6)
  assert not np.any(gradient[~at_last])


def test_the_token_statistics_and_the_mask_are_what_they_are_without():
  alone = stats.statistics({stats.logp}, stats.HiddenStates(STATES, HEAD), None, BATCH, chunk=36)
  np.testing.assert_array_equal(table(STATES)[stats.logp], alone[stats.logp])
  np.testing.assert_array_equal(table(STATES).mask, alone.mask)
  with pytest.raises(ValueError, match='mask of response tokens needs a token statistic'):
    _ = stats.statistics({REWARD}, stats.HiddenStates(STATES, HEAD), None, BATCH, chunk=36).mask


def test_cached_values_take_its_place_without_gradient():
  values = jnp.arange(12.0).reshape(6, 2)
  batch = dataclasses.replace(BATCH, cached={'toy_reward': values})
  np.testing.assert_array_equal(table(STATES, batch)[REWARD], values)
  assert not np.any(jax.grad(lambda states: jnp.sum(table(states, batch)[REWARD]))(STATES))
  found = stats.from_logits({REWARD, stats.logp}, fixtures.logits(1, BATCH), None, batch)
  np.testing.assert_array_equal(found[REWARD], values)


def test_full_logits_cannot_give_it():
  with pytest.raises(ValueError, match=r"'toy_reward' reads hidden states, and here are only logits: .*batch.cached"):
    stats.from_logits({REWARD}, fixtures.logits(1, BATCH), None, BATCH)


def test_a_function_that_returns_another_shape_is_refused_by_name():
  wrong = stats.ResponseStat('per_token', lambda states, head, batch: states[..., 0])
  with pytest.raises(ValueError, match=r"'per_token' must return one value for each response, shape \(6, 2\), got"):
    stats.statistics({wrong}, stats.HiddenStates(STATES, HEAD), None, BATCH, chunk=36)


def test_an_objective_reads_it_and_permuting_rows_permutes_it():
  def apply(table, batch):
    return Term(-table[REWARD][:, 0] * jnp.asarray(batch.label), {})

  objective = objectives.Objective(frozenset({REWARD}), apply, reads=frozenset({'label'}))
  loss = objective.apply(table(STATES), BATCH).loss
  order = np.array([3, 0, 5, 1, 2, 4])
  rows = jax.tree.map(lambda x: x[order], (table(STATES), BATCH))
  np.testing.assert_array_equal(objective.apply(*rows).loss, loss[order])
  assert not objectives.couples(objective)


SCORED = dataclasses.replace(HEAD, score=PROBE[:, None])


def test_a_value_is_the_score_of_the_state_before_each_token():
  hidden = stats.HiddenStates(STATES, SCORED)
  found = stats.statistics({stats.value}, hidden, None, BATCH, chunk=36)
  expected = np.asarray(STATES, np.float64) @ np.asarray(PROBE, np.float64)
  np.testing.assert_allclose(found[stats.value], np.where(found.mask, expected, 0.0), atol=1e-5)
  both = stats.statistics({stats.value, stats.logp, REWARD}, hidden, None, BATCH, chunk=36)
  np.testing.assert_array_equal(both[stats.value], found[stats.value])
  with pytest.raises(ValueError, match='`value` needs a model with a score head'):
    stats.statistics({stats.value}, stats.HiddenStates(STATES, HEAD), None, BATCH, chunk=36)


def test_an_objective_reads_values():
  """The squared error of a critic against the score of the whole response."""

  def apply(table, batch):
    error = jnp.square(table[stats.value] - jnp.asarray(batch.score)[..., None])
    return Term(jnp.mean(numerics.masked_mean(error, table.mask), axis=1), {})

  critic = objectives.Objective(frozenset({stats.value}), apply, reads=frozenset({'score'}), name='critic()')
  assert forward.output(critic.needs) == 'score'
  assert forward.output((critic + objectives.sft()).needs) == 'both'
  checks.check_responses(testing.Setting.of(critic, 2))
