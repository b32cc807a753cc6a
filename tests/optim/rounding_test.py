"""Merges below half a unit in the last place: the residual carries what rounding would lose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import optim
from tests import quick
from tests.optim import runs


def drift(dtype, alpha, steps, *, carry=True, reserve=1.0, tau_dtype=jnp.float32):
  """Parameters before, after, residual, and tau, of `steps` merges with an update of zero."""
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(0.02 * rng.choice([-1, 1], (100, 100)) * rng.uniform(0.6, 1.5, (100, 100)), dtype)}
  tau = {'w': jnp.asarray(1e-3 * rng.standard_normal((100, 100)), tau_dtype)}
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = optim.online_dare(reserve, alpha, carry=carry)

  @jax.jit
  def run(params, state):
    def body(_, carried):
      params, state = carried
      updates, state = tx.update(zero, state, params, reference_delta=tau)
      return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, body, (params, state))

  after, state = run(params, tx.init(params))
  before, after, delta = (np.asarray(x['w'], np.float64) for x in (params, after, tau))
  return before, after, np.asarray(state.residual['w'], np.float64) if carry else 0.0, delta


@pytest.mark.slow  # the residual of bfloat16 parameters is compared below
@pytest.mark.parametrize('tau_dtype', quick.first(1, [jnp.bfloat16, jnp.float32]))
def test_drift_below_half_an_ulp_moves_float32_parameters(tau_dtype):
  steps, alpha = 2000, 1e-7
  before, after, residual, tau = drift(jnp.float32, alpha, steps, tau_dtype=tau_dtype)
  expected = steps * alpha * tau
  assert np.linalg.norm(after - before - expected) < 0.01 * np.linalg.norm(expected)
  assert np.linalg.norm(after + residual - before - expected) < 1e-3 * np.linalg.norm(expected)
  before, after, _, _ = drift(jnp.float32, alpha, steps, carry=False)
  assert np.linalg.norm(after - before) < 0.3 * np.linalg.norm(expected)


@pytest.mark.slow  # the drift of all entries is tested below, the masks in online_merging_test.py
def test_drift_of_fresh_masks_is_as_large_on_average():
  steps, alpha, reserve = 2000, 1e-7, 0.25
  before, after, _, tau = drift(jnp.float32, alpha, steps, reserve=reserve)
  slope = np.vdot(after - before, tau) / np.vdot(tau, tau)
  assert abs(slope / (steps * alpha * reserve) - 1) < 0.01


def test_drift_below_half_an_ulp_is_owed_to_bfloat16_parameters_and_moves_them_in_the_end():
  steps, alpha = 2000, 1e-7  # in all 2e-7, a thousandth of an ulp
  before, after, residual, tau = drift(jnp.bfloat16, alpha, steps)
  expected = steps * alpha * tau
  assert np.linalg.norm(after + residual - before - expected) < 0.01 * np.linalg.norm(expected)
  alpha = 1e-3  # in all 2e-3, 16 ulps; one merge is a hundredth of an ulp
  before, after, _, tau = drift(jnp.bfloat16, alpha, steps)
  slope = np.vdot(after - before, tau) / np.vdot(tau, tau)
  assert abs(slope / (steps * alpha) - 1) < 0.01
  before, after, _, _ = drift(jnp.bfloat16, alpha, steps, carry=False)
  np.testing.assert_array_equal(after, before)


def test_what_rounding_lands_is_what_the_residual_says():
  """In one step: parameter + residual is the exact sum, for bfloat16 parameters and large updates too."""
  for dtype, tolerance in ((jnp.float32, 3e-7), (jnp.bfloat16, 3e-7)):
    params = runs.tree(20, 0.5, dtype)
    update = runs.tree(21, 1e-2)
    tx = optim.online_dare(1.0, 0.5)
    updates, state = runs.jitted(tx)(update, tx.init(params), params, runs.TAU)
    after = optax.apply_updates(params, updates)
    for p, u, t, a, r in zip(*map(runs.leaves, (params, update, runs.TAU, after, state.residual)), strict=True):
      alone = np.asarray(jnp.asarray(p + 0.5 * u, dtype), np.float64)  # the update's own rounding is not owed
      np.testing.assert_allclose(a + r, alone + 0.5 * t, rtol=0, atol=tolerance)
