"""Token statistics against numpy, and the chunked head against full logits."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import stats
from alignjax.types import Head
from tests import fixtures, quick
from tests.oracles import data as oracles

ALL = (stats.logp, stats.reference_logp, stats.entropy, stats.forward_kl, stats.reverse_kl, stats.log_collision)
WIDTH, VOCAB = 8, 11


def models(seed, batch, **head):
  rng = np.random.default_rng(seed)
  states = rng.standard_normal((*batch.response.shape, WIDTH)).astype(np.float32)
  kernel = rng.standard_normal((WIDTH, VOCAB)).astype(np.float32)
  return stats.HiddenStates(jnp.asarray(states), Head(jnp.asarray(kernel), **head))


@pytest.mark.parametrize('stat', ALL, ids=lambda stat: stat.name)
def test_each_statistic_equals_its_definition(stat):
  batch = fixtures.preference_batch()
  policy, reference = fixtures.logits(0, batch), fixtures.logits(1, batch)
  value = stats.from_logits([stat], policy, reference, batch)[stat]
  expected = oracles.token_statistic(
    stat.name, oracles.log_softmax(policy), oracles.log_softmax(reference), np.asarray(batch.response)
  )
  for index in np.ndindex(*batch.response_length.shape):
    length = int(batch.response_length[index])
    np.testing.assert_allclose(value[index][:length], expected[index][:length], rtol=1e-5, atol=1e-6)
    assert not np.any(value[index][length:])


@pytest.mark.parametrize('stat', ALL, ids=lambda stat: stat.name)
def test_a_token_of_probability_zero_gives_finite_values_and_gradients(stat):
  batch = fixtures.preference_batch(vocab=10)  # token 10 never occurs
  policy, reference = (fixtures.logits(seed, batch).at[..., 10].set(-jnp.inf) for seed in (0, 1))

  def total(policy):
    return jnp.sum(stats.from_logits([stat], policy, reference, batch)[stat])

  value, gradient = jax.value_and_grad(total)(policy)
  chex.assert_tree_all_finite((value, gradient))
  finite = jax.value_and_grad(lambda p: jnp.sum(stats.from_logits([stat], p, reference[..., :10], batch)[stat]))
  smaller, smaller_gradient = finite(policy[..., :10])
  np.testing.assert_allclose(value, smaller, rtol=1e-6)
  np.testing.assert_allclose(gradient[..., :10], smaller_gradient, rtol=1e-5, atol=1e-6)


def weighted(batch, table):
  """A sum of all statistics in which every position has its own weight."""
  weights = jnp.sin(jnp.arange(batch.response.size, dtype=jnp.float32)).reshape(batch.response.shape)
  return sum(jnp.sum(weights * table[stat]) for stat in ALL)


@pytest.fixture(scope='module', params=[None, 5.0], ids=['no_cap', 'soft_cap'])
def from_full_logits(request):
  """A batch, both models, and the weighted sum of all statistics by full logits with its gradient."""
  batch = fixtures.preference_batch()
  soft_cap = request.param
  policy, reference = (models(seed, batch, bias=jnp.linspace(-1, 1, VOCAB), soft_cap=soft_cap) for seed in (0, 1))

  def full(policy):
    def logits(hidden):
      out = jnp.einsum('bnrd,dv->bnrv', hidden.states, hidden.head.kernel) + hidden.head.bias[None, None, None]
      return out if soft_cap is None else soft_cap * jnp.tanh(out / soft_cap)

    return weighted(batch, stats.from_logits(ALL, logits(policy), logits(reference), batch))

  return batch, policy, reference, jax.jit(jax.value_and_grad(full))(policy)


@pytest.mark.parametrize(  # 1, 2, 3 and all 7 positions of 12 responses
  'chunk', quick.first(2, [36, 1200, 1, 24, 84])
)
def test_chunks_of_any_size_equal_full_logits_in_value_and_gradient(from_full_logits, chunk):
  batch, policy, reference, (expected, expected_gradient) = from_full_logits

  def chunked(policy):
    return weighted(batch, stats.statistics(ALL, policy, reference, batch, chunk=chunk))

  value, gradient = jax.jit(jax.value_and_grad(chunked))(policy)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  chex.assert_trees_all_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_log_probs_are_float32_and_identical_for_policy_and_reference_whatever_the_compute_dtype():
  batch = fixtures.preference_batch()
  hidden = models(0, batch)
  hidden = hidden._replace(states=hidden.states.astype(jnp.bfloat16))
  table = stats.statistics([stats.logp, stats.reference_logp], hidden, hidden, batch, chunk=36)
  chex.assert_type(table[stats.logp], jnp.float32)
  np.testing.assert_array_equal(table[stats.logp], table[stats.reference_logp])


def test_cached_statistics_stand_in_for_the_reference_and_carry_no_gradient():
  batch = fixtures.preference_batch()
  policy, reference = models(0, batch), models(1, batch)
  needs = {stats.logp, stats.reference_logp}
  live = stats.statistics(needs, policy, reference, batch, chunk=48)
  cached = dataclasses.replace(batch, cached={'reference_logp': live[stats.reference_logp]})
  assert stats.missing_reference(needs, cached.cached) == []
  table = stats.statistics(needs, policy, None, cached, chunk=48)
  chex.assert_trees_all_equal(table, live)


def test_without_a_reference_the_statistic_is_named():
  batch = fixtures.preference_batch()
  with pytest.raises(ValueError, match='reference_logp'):
    stats.statistics({stats.reference_logp}, models(0, batch), None, batch, chunk=48)


def test_reading_an_undeclared_statistic_is_an_error_that_names_it():
  batch = fixtures.preference_batch()
  table = stats.statistics({stats.logp}, models(0, batch), None, batch, chunk=48)
  with pytest.raises(ValueError, match="'entropy'"):
    table.sum(stats.entropy)


def test_sums_and_means_of_an_empty_response_are_zero_with_zero_gradient():
  def mean(values):
    table = stats.StatTable.create({'logp': values}, jnp.zeros((1, 1), jnp.int32))
    return table.sum(stats.logp)[0, 0] + table.mean(stats.logp)[0, 0]

  value, gradient = jax.value_and_grad(mean)(jnp.full((1, 1, 3), -jnp.inf))
  assert value == 0.0
  assert not np.any(gradient)
