"""Single pairs with given log-ratios, and the comparison of two objectives, for the tests of properties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import stats
from tests import fixtures


def evaluate(objective, batch, logp, reference):
  table = stats.StatTable.create({'logp': logp, 'reference_logp': reference}, batch.response_length)
  return objective.apply(table, batch)


def _pair(objective, score=(0.0, 0.0), label=1.0, reference=(0.0, 0.0)):
  """Log-ratios [2] -> the loss of one pair of single tokens with these log-ratios."""
  batch = fixtures.preference_batch(prompts=1, response_size=1)
  batch = dataclasses.replace(
    batch,
    label=jnp.asarray([label], jnp.float32),
    response_length=jnp.asarray(np.ones((1, 2), np.int32)),
    score=jnp.asarray([score], jnp.float32),
  )
  reference = jnp.asarray(reference, jnp.float32)[None, :, None]
  return lambda log_ratio: evaluate(objective, batch, reference + log_ratio[None, :, None], reference).loss[0]


def at(objective, chosen, rejected, *pair, **named):
  """(loss, (d loss / d rho_w, d loss / d rho_l)) of one pair of `_pair` with these log-ratios."""
  value, slope = jax.value_and_grad(_pair(objective, *pair, **named))(jnp.asarray([chosen, rejected], jnp.float32))
  return float(value), (float(slope[0]), float(slope[1]))


def value(objective, margin):
  """The loss at the margin h, for objectives that depend on the margin alone."""
  return float(_pair(objective)(jnp.asarray([margin, 0.0], jnp.float32)))


def slope(objective, margin):
  """The derivative with respect to h."""
  return at(objective, margin, 0.0)[1][0]


def random_pairs(seed=0, prompts=64, equal_lengths=False):
  """(batch, token log-probabilities of the policy, of the reference) with soft labels among others."""
  rng = np.random.default_rng(seed)
  batch = fixtures.preference_batch(seed=seed, prompts=prompts)
  if equal_lengths:
    shared = jnp.broadcast_to(batch.response_length[:, :1], batch.response_length.shape)
    batch = dataclasses.replace(batch, response_length=shared)
  return batch, *(jnp.asarray(-rng.exponential(2.0, batch.response.shape), jnp.float32) for _ in range(2))


def assert_same(one, other, batch, logp, reference):
  """Both objectives have the same losses, gradients and rewards."""

  def total(logp, objective):
    term = evaluate(objective, batch, logp, reference)
    return jnp.sum(term.loss), term

  (_, first), first_gradient = jax.value_and_grad(total, has_aux=True)(logp, one)
  (_, second), second_gradient = jax.value_and_grad(total, has_aux=True)(logp, other)
  np.testing.assert_allclose(first.loss, second.loss, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(first_gradient, second_gradient, rtol=1e-5, atol=1e-6)
  for name in ('reward_chosen', 'reward_rejected', 'reward_margin', 'reward_accuracy'):
    np.testing.assert_allclose(first.metrics[name], second.metrics[name], rtol=1e-5, atol=1e-5)
