"""The schedule against its equations in float64, and which weights decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.optim import schedules


@pytest.mark.parametrize('warmup', [0, 1, 4, 10])
@pytest.mark.parametrize('shape', ['constant', 'linear', 'cosine'])
def test_schedule(shape, warmup):
  steps, peak = 10, 3e-4

  def expected(t: int) -> float:
    if t < warmup:
      return peak * (t + 1) / warmup
    x = (t - warmup) / (steps - warmup)
    return peak * {'constant': 1.0, 'linear': 1 - x, 'cosine': (1 + np.cos(np.pi * x)) / 2}[shape]

  schedule = schedules.build_schedule(shape, peak, steps=steps, warmup=warmup)
  rates = [float(schedule(jnp.asarray(t))) for t in range(steps)]
  np.testing.assert_allclose(rates, [expected(t) for t in range(steps)], rtol=1e-6)
  assert min(rates) > 0
  assert float(jax.jit(schedule)(jnp.asarray(3))) == pytest.approx(rates[3], rel=1e-6)
  np.testing.assert_allclose(float(schedule(jnp.asarray(steps + 5))), peak if shape == 'constant' else 0, atol=1e-11)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'shape': 'step'}, "schedule='step' is not one of constant, cosine, linear"),
    ({'peak': 0.0}, 'learning_rate=0.0 must be positive'),
    ({'warmup': 11}, 'warmup=11 must be from 0 to the number of steps, 10'),
    ({'warmup': -1}, 'warmup=-1 must be'),
  ],
)
def test_schedule_that_cannot_be(arguments, message):
  arguments = {'shape': 'linear', 'peak': 1e-3, 'steps': 10} | arguments
  with pytest.raises(ValueError, match=message):
    schedules.build_schedule(**arguments)


def test_norm_scales_and_biases_do_not_decay():
  params = {'layers': {'up': {'kernel': 1, 'bias': 2}, 'norm': {'scale': 3}}, 'embed': {'embedding': 4}}
  expected = {'layers': {'up': {'kernel': True, 'bias': False}, 'norm': {'scale': False}}, 'embed': {'embedding': True}}
  assert schedules.decays(params) == expected
