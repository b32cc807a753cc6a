"""The schedule against its equations in float64, and which weights decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.optim import schedules


@pytest.mark.parametrize('warmup', [0, 1, 4, 10])
@pytest.mark.parametrize(
  ('text', 'shape', 'to'),
  [
    ('constant', 'constant', 0.0),
    ('linear', 'linear', 0.0),
    ('cosine', 'cosine', 0.0),
    ('linear(to=0.25)', 'linear', 0.25),
    ('cosine(0.1)', 'cosine', 0.1),
    ('cosine(to=1)', 'constant', 0.0),
  ],
)
def test_schedule(text, shape, to, warmup):
  steps, peak = 10, 3e-4

  def expected(t: int) -> float:
    if t < warmup:
      return peak * (t + 1) / warmup
    x = (t - warmup) / (steps - warmup)
    share = {'constant': 1.0, 'linear': 1 - x, 'cosine': (1 + np.cos(np.pi * x)) / 2}[shape]
    return peak * (to + (1 - to) * share)

  schedule = schedules.build_schedule(text, peak, steps=steps, warmup=warmup)
  rates = [float(schedule(jnp.asarray(t))) for t in range(steps)]
  np.testing.assert_allclose(rates, [expected(t) for t in range(steps)], rtol=1e-6)
  assert min(rates) > 0
  assert float(jax.jit(schedule)(jnp.asarray(3))) == pytest.approx(rates[3], rel=1e-6)
  end = peak if shape == 'constant' else peak * to
  np.testing.assert_allclose(float(schedule(jnp.asarray(steps + 5))), end, rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'shape': 'step(3)'}, "unknown name 'step'"),
    ({'shape': 'cosin'}, r"unknown name 'cosin'; did you mean cosine\(to=0.0\)"),
    ({'shape': 'constant(to=0.1)'}, "constant has no argument 'to'"),
    ({'shape': 'cosine(to=-0.1)'}, r'to=-0.1 must be in \[0, 1\]'),
    ({'shape': 'linear(to=10)'}, r'to=10 must be in \[0, 1\]'),
    ({'shape': 'linear(to=True)'}, r'to=True must be in \[0, 1\]'),
    ({'peak': 0.0}, 'learning_rate=0.0 must be positive'),
    ({'warmup': 11}, 'warmup=11 must be from 0 to the number of steps, 10'),
    ({'warmup': -1}, 'warmup=-1 must be'),
  ],
)
def test_schedule_that_cannot_be(arguments, message):
  arguments = {'shape': 'linear', 'peak': 1e-3, 'steps': 10} | arguments
  with pytest.raises(ValueError, match=message):
    schedules.build_schedule(**arguments)


@pytest.mark.parametrize(('warmup', 'expected'), [(0, 0), (0.1, 25), (0.999, 250), (1, 1), (1.0, 1), (100.0, 100)])
def test_a_warmup_below_one_is_a_share_and_from_one_on_a_number_of_updates(warmup, expected):
  assert schedules.warmup_steps(warmup, 250) == expected


@pytest.mark.parametrize('warmup', [-0.1, -1, 1.5, float('nan'), float('inf')])
def test_a_warmup_that_is_neither_is_refused(warmup):
  with pytest.raises(ValueError, match=rf'warmup = {warmup}: must be a share of the run in \[0, 1\) or a whole number'):
    schedules.warmup_steps(warmup, 250)


def test_norm_scales_and_biases_do_not_decay():
  params = {'layers': {'up': {'kernel': 1, 'bias': 2}, 'norm': {'scale': 3}}, 'embed': {'embedding': 4}}
  expected = {'layers': {'up': {'kernel': True, 'bias': False}, 'norm': {'scale': False}}, 'embed': {'embedding': True}}
  assert schedules.decays(params) == expected
