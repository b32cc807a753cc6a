"""Losses of log-ratios that stay finite where the log-ratios are absurd, each sign of each response on its own."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import pytest

from alignjax import objectives
from tests import fixtures
from tests.objectives import pairs

NAMES = (
  'alpha_divergence_dpo',
  'bpo',
  'chi_po',
  'discopop',
  'dpo',
  'dpo_norm',
  'dpo_shift',
  'dpop',
  'exo',
  'exponential_po',
  'focal_po',
  'forward_kl_dpo',
  'h_dpo',
  'hinge',
  'ipo',
  'jensen_shannon_dpo',
  'ld_dpo',
  'minor_dpo',
  'mmpo',
  'odpo',
  'r_dpo',
  'robust_dpo',
  'savage_po',
  'spo',
  'truncated_quadratic_po',
)


@pytest.mark.slow  # check_extremes of the contract goes to 10,000
@pytest.mark.parametrize('name', NAMES)
def test_finite_for_log_ratios_of_a_million_nats(name):
  cases = list(itertools.product((-1e6, -40.0, 0.0, 40.0, 1e6), (-1e6, -40.0, 0.0, 40.0, 1e6), (0.0, 0.5, 1.0)))
  batch = fixtures.preference_batch(prompts=len(cases), response_size=1)
  batch = dataclasses.replace(
    batch,
    label=jnp.asarray([label for *_, label in cases], jnp.float32),
    response_length=jnp.ones((len(cases), 2), jnp.int32),
  )
  logp = jnp.asarray([case[:2] for case in cases], jnp.float32)[..., None]

  def total(logp):
    term = pairs.evaluate(objectives.OBJECTIVES[name](), batch, logp, jnp.zeros_like(logp))
    return jnp.sum(term.loss), term

  (_, term), gradient = jax.value_and_grad(total, has_aux=True)(logp)
  chex.assert_tree_all_finite((term, gradient))
  assert jnp.any(gradient)
  # The norm of the gradient, by which it is clipped, must not overflow either.
  assert jnp.isfinite(jnp.sum(jnp.square(gradient)))
