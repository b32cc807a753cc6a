"""The schedule and the optimizer against their equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.training import optimizer


@pytest.mark.parametrize('warmup', [0, 1, 4, 10])
@pytest.mark.parametrize('shape', ['constant', 'linear', 'cosine'])
def test_schedule(shape, warmup):
  steps, peak = 10, 3e-4

  def expected(t: int) -> float:
    if t < warmup:
      return peak * (t + 1) / warmup
    x = (t - warmup) / (steps - warmup)
    return peak * {'constant': 1.0, 'linear': 1 - x, 'cosine': (1 + np.cos(np.pi * x)) / 2}[shape]

  schedule = optimizer.build_schedule(shape, peak, steps=steps, warmup=warmup)
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
    optimizer.build_schedule(**arguments)


@pytest.mark.parametrize('clip', [0.0, 0.5])
def test_adamw_behind_a_clip(clip):
  generator = np.random.default_rng(0)
  decay, beta1, beta2, epsilon = 0.1, 0.8, 0.95, 1e-8
  schedule = optimizer.build_schedule('linear', 1e-2, steps=5)
  tx = optimizer.build_optimizer(schedule, weight_decay=decay, beta1=beta1, beta2=beta2, gradient_clip=clip)
  values = {'a/kernel': generator.standard_normal((3, 4)), 'b/scale': generator.standard_normal(4)}
  means, squares = ({name: np.zeros_like(x) for name, x in values.items()} for _ in range(2))

  def tree(flat: dict[str, np.ndarray]) -> dict:
    return {'a': {'kernel': jnp.asarray(flat['a/kernel'])}, 'b': {'scale': jnp.asarray(flat['b/scale'])}}

  params = tree({name: x.astype(np.float32) for name, x in values.items()})
  state = tx.init(params)
  for t in range(5):
    gradients = {name: generator.standard_normal(x.shape) for name, x in values.items()}
    updates, state = tx.update(tree({n: g.astype(np.float32) for n, g in gradients.items()}), state, params)
    params = optax.apply_updates(params, updates)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    for name, gradient in gradients.items():
      gradient = gradient * min(1.0, clip / norm) if clip else gradient
      means[name] = beta1 * means[name] + (1 - beta1) * gradient
      squares[name] = beta2 * squares[name] + (1 - beta2) * gradient**2
      adam = means[name] / (1 - beta1 ** (t + 1)) / (np.sqrt(squares[name] / (1 - beta2 ** (t + 1))) + epsilon)
      decays = decay if name.endswith('kernel') else 0.0  # norm scales do not decay
      values[name] = values[name] - 1e-2 * (1 - t / 5) * (adam + decays * values[name])
  np.testing.assert_allclose(params['a']['kernel'], values['a/kernel'], rtol=2e-5)
  np.testing.assert_allclose(params['b']['scale'], values['b/scale'], rtol=2e-5)


def test_structure_of_the_state_does_not_depend_on_settings():
  """So that a resumed run may change them."""
  params = {'a': {'kernel': jnp.zeros((2, 2))}}
  structures = {
    jax.tree.structure(
      optimizer.build_optimizer(optimizer.build_schedule(shape, 1e-3, steps=9), **settings).init(params)
    )
    for shape in optimizer.SHAPES
    for settings in ({}, {'gradient_clip': 1.0}, {'weight_decay': 0.1, 'beta1': 0.5})
  }
  assert len(structures) == 1
