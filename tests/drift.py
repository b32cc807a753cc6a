"""Pairs whose policy has moved from its reference, for tests of objectives that see a batch as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import stats
from tests import fixtures


def batch_of(prompts=8, hard=True, **changes):
  batch = fixtures.preference_batch(seed=4, prompts=prompts)
  label = jnp.ones(prompts) if hard else batch.label
  return dataclasses.replace(batch, **{'label': label, **changes})


def table_of(batch, seed=0, memory=None, drift=0.3):
  """A policy that has moved from its reference by a multiple of `drift` nats per token."""
  rng = np.random.default_rng(seed)
  reference = -rng.exponential(2.0, batch.response.shape)
  table = stats.StatTable.create(
    {'logp': jnp.asarray(reference + drift * rng.standard_normal(batch.response.shape)), 'reference_logp': reference},
    batch.response_length,
  )
  return dataclasses.replace(table, memory=memory or {})


def value_and_gradient(objective, table, batch):
  """The losses [B], and the gradient of their sum with respect to the token statistics."""

  def losses(values):
    return objective.apply(dataclasses.replace(table, values=values), batch).loss

  return losses(table.values), jax.grad(lambda values: jnp.sum(losses(values)))(table.values)


def assert_equal_objectives(one, other, table, batch, rtol=1e-5):
  for found, expected in zip(
    jax.tree.leaves(value_and_gradient(one, table, batch)),
    jax.tree.leaves(value_and_gradient(other, table, batch)),
    strict=True,
  ):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-6)


def shifted(table, shift, scale=1.0):
  """The drift margin of every pair becomes scale * margin + shift, by moving the reference alone."""
  policy, reference = table[stats.logp], table[stats.reference_logp]
  moved = policy - scale * (policy - reference)
  moved = jnp.where(table.mask, moved.at[:, 0].add(-shift), 0.0)
  return dataclasses.replace(table, values={'logp': policy, 'reference_logp': moved})
