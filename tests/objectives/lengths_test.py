"""The properties of DPO against the bias to length."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives
from alignjax.objectives import lengths
from tests import fixtures, quick
from tests.objectives import pairs

sampled_tokens = jax.jit(lengths.sampled_tokens)


def with_lengths(batch, chosen, rejected):
  length = jnp.broadcast_to(jnp.asarray([chosen, rejected], jnp.int32), batch.response_length.shape)
  return dataclasses.replace(batch, response_length=length)


def hard(batch):
  return dataclasses.replace(batch, label=jnp.ones_like(batch.label))


@pytest.mark.parametrize(
  'objective',
  quick.first(1, [objectives.ld_dpo(0.3, alpha=0.2), objectives.r_dpo(0.3, alpha=0.5), objectives.sampo(0.3)]),
  ids=lambda objective: objective.label,
)
def test_for_responses_of_equal_length_each_is_dpo(objective):
  batch, logp, reference = pairs.random_pairs(equal_lengths=True)
  ours, dpo = (pairs.evaluate(build, batch, logp, reference).loss for build in (objective, objectives.dpo(0.3)))
  np.testing.assert_allclose(ours, dpo, rtol=1e-5)
  batch, logp, reference = pairs.random_pairs()
  ours, dpo = (pairs.evaluate(build, batch, logp, reference).loss for build in (objective, objectives.dpo(0.3)))
  assert np.abs(ours - dpo).max() > 0.01


@pytest.mark.parametrize(
  'neutral', [objectives.r_dpo(0.3, alpha=0.0), objectives.ld_dpo(0.3, alpha=1.0)], ids=lambda objective: objective.name
)
def test_without_its_change_each_is_dpo(neutral):
  pairs.assert_same(neutral, objectives.dpo(0.3), *pairs.random_pairs())


def test_length_normalised_dpo_of_responses_of_equal_length_is_dpo_of_the_beta_per_token():
  batch, logp, reference = pairs.random_pairs()
  batch = with_lengths(batch, 4, 4)
  pairs.assert_same(objectives.dpo_norm(beta=2.0), objectives.dpo(beta=0.5), batch, logp, reference)


def test_length_normalised_dpo_does_not_see_repetition():
  """Saying everything twice changes no mean."""
  batch, logp, reference = pairs.random_pairs()
  batch = with_lengths(batch, 3, 2)
  double = dataclasses.replace(batch, response_length=2 * batch.response_length)

  def twice(x):
    return x.at[:, 0, 3:6].set(x[:, 0, :3]).at[:, 1, 2:4].set(x[:, 1, :2])

  for objective, sees in ((objectives.dpo_norm(2.0), False), (objectives.dpo(0.5), True)):
    once = pairs.evaluate(objective, batch, logp, reference).loss
    again = pairs.evaluate(objective, double, twice(logp), twice(reference)).loss
    assert np.allclose(once, again, rtol=1e-5) != sees


def test_at_the_reference_r_dpo_asks_the_longer_response_for_less():
  """The margin has alpha (|y_w| - |y_l|): a long preferred response need not be raised as far."""
  batch, logp, _ = pairs.random_pairs(prompts=1)
  losses = []
  for chosen, rejected in ((6, 2), (4, 4), (2, 6)):
    pair = hard(with_lengths(batch, chosen, rejected))
    losses.append(float(pairs.evaluate(objectives.r_dpo(0.3, 0.1), pair, logp, logp).loss[0]))
    assert losses[-1] == pytest.approx(math.log1p(math.exp(-0.1 * (chosen - rejected))), rel=1e-5)
  assert losses == sorted(losses)


def test_ld_dpo_weighs_only_the_tokens_beyond_the_shorter_response():
  batch, logp, reference = pairs.random_pairs(prompts=8)
  batch = hard(with_lengths(batch, 6, 2))
  loss = pairs.evaluate(objectives.ld_dpo(0.5, 0.3), batch, logp, reference).loss

  def total(x):
    return jnp.sum(pairs.evaluate(objectives.ld_dpo(0.5, 0.3), batch, x, reference).loss)

  gradient = np.asarray(jax.grad(total)(logp))
  unit = -0.5 * (1 - np.exp(-np.asarray(loss)))[:, None]  # -beta sigmoid(-margin)
  np.testing.assert_allclose(gradient[:, 0], unit * np.asarray([1, 1, 0.3, 0.3, 0.3, 0.3, 0]), rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(gradient[:, 1], -unit * np.asarray([1, 1, 0, 0, 0, 0, 0]), rtol=1e-4, atol=1e-7)


def test_ld_dpo_without_tail_sees_only_the_shared_length():
  batch, logp, reference = pairs.random_pairs()
  shared = jnp.min(batch.response_length, axis=1, keepdims=True)
  cut = dataclasses.replace(batch, response_length=jnp.broadcast_to(shared, batch.response_length.shape))
  ours = pairs.evaluate(objectives.ld_dpo(0.5, 0.0), batch, logp, reference).loss
  np.testing.assert_allclose(ours, pairs.evaluate(objectives.dpo(0.5), cut, logp, reference).loss, rtol=1e-5)


def test_sampo_draws_as_many_tokens_as_the_shorter_response_has_and_only_real_ones():
  batch = fixtures.preference_batch(seed=4, prompts=200)
  drawn = np.asarray(sampled_tokens(batch))
  length = np.asarray(batch.response_length)
  np.testing.assert_array_equal(drawn.sum(-1), np.broadcast_to(length.min(-1, keepdims=True), length.shape))
  assert not np.any(drawn & (np.arange(drawn.shape[-1]) >= length[..., None]))


def test_sampo_draws_uniformly_without_replacement():
  """Each token is as likely as any other, and so is each pair of tokens: 3 of 7, and 3 * 2 of 7 * 6."""
  rows = 4000
  batch = with_lengths(fixtures.preference_batch(seed=6, prompts=rows), 7, 3)
  drawn = np.asarray(sampled_tokens(batch))
  assert drawn[:, 1, :3].all()
  one = drawn[:, 0].astype(np.float64)
  both = one.T @ one / rows
  for probability, found in ((3 / 7, np.diag(both)), (3 * 2 / (7 * 6), both[~np.eye(7, dtype=bool)])):
    deviation = math.sqrt(probability * (1 - probability) / rows)
    assert np.abs(found - probability).max() < 4 * deviation
  # Neighbouring rows are independent.
  assert np.abs(np.mean(one[1:] * one[:-1], axis=0) - (3 / 7) ** 2).max() < 4 * math.sqrt((3 / 7) ** 2 / rows)


@pytest.mark.slow  # draws_test.py checks the keys of rows
def test_what_sampo_draws_depends_on_the_pair_alone():
  batch = with_lengths(fixtures.preference_batch(seed=7, prompts=40), 7, 3)
  drawn = np.asarray(sampled_tokens(batch))
  order = np.random.default_rng(0).permutation(40)
  np.testing.assert_array_equal(sampled_tokens(jax.tree.map(lambda x: np.asarray(x)[order], batch)), drawn[order])
  np.testing.assert_array_equal(sampled_tokens(jax.tree.map(lambda x: np.asarray(x)[:7], batch)), drawn[:7])
  wide = dataclasses.replace(batch, response=np.pad(batch.response, ((0, 0), (0, 0), (0, 5)), constant_values=3))
  np.testing.assert_array_equal(np.asarray(sampled_tokens(wide))[..., :7], drawn)
  mesh = jax.make_mesh((8,), ('rows',))
  sharded = jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('rows')))
  np.testing.assert_array_equal(sampled_tokens(sharded), drawn)
  other = dataclasses.replace(batch, response=batch.response.at[:, 1, 0].add(1))
  assert np.any(np.asarray(sampled_tokens(other))[:, 0] != drawn[:, 0], axis=-1).mean() > 0.5


@pytest.mark.slow  # oracle_test.py sums them, too
def test_sampo_sums_the_drawn_tokens_of_both_models():
  """The gradient goes to the drawn tokens, the same amount to each."""
  batch, logp, reference = pairs.random_pairs(prompts=32)
  batch = hard(batch)

  def total(x, y):
    return jnp.sum(pairs.evaluate(objectives.sampo(0.5), batch, x, y).loss)

  drawn = np.asarray(sampled_tokens(batch))
  gradient, reference_gradient = jax.jit(jax.grad(total, (0, 1)))(logp, reference)
  np.testing.assert_array_equal(np.asarray(gradient) != 0, drawn)
  np.testing.assert_allclose(reference_gradient, -gradient, rtol=1e-6)
  for row, side in np.ndindex(*drawn.shape[:2]):
    assert len(np.unique(np.asarray(gradient)[row, side][drawn[row, side]])) == 1


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('r_dpo', {'beta': 0.0}, 'r_dpo: beta must be positive'),
    ('r_dpo', {'alpha': -0.1}, 'r_dpo: alpha must not be negative'),
    ('dpo_norm', {'beta': math.nan}, 'dpo_norm: beta must be positive'),
    ('ld_dpo', {'beta': 0.0}, 'ld_dpo: beta must be positive'),
    ('ld_dpo', {'alpha': -0.1}, r'ld_dpo: alpha must be in \[0, 1\], got -0.1'),
    ('ld_dpo', {'alpha': 1.1}, 'ld_dpo: alpha must be in'),
    ('sampo', {'beta': 0.0}, 'sampo: beta must be positive'),
  ],
)
def test_impossible_hyper_parameters_are_named(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    objectives.OBJECTIVES[name](**arguments)
