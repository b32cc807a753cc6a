"""Sparsified gradients, and averages of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import optim
from tests.optim import runs


def test_child_tuning_is_unbiased_and_fresh():
  ones = {'w': jnp.ones((300, 400))}
  tx = optim.child_tuning(0.25)
  first, state = jax.jit(tx.update)(ones, tx.init(ones))
  second, state = jax.jit(tx.update)(ones, state)
  values = np.asarray(first['w'])
  assert set(np.unique(values)) == {0.0, 4.0}
  assert abs(values.mean() - 1) < 5 * (3 / values.size) ** 0.5
  assert runs.differs(first, second)
  assert int(state.count) == 2
  runs.assert_equal(jax.jit(tx.update)(ones, tx.init(ones))[0], first)


def test_child_tuning_stands_before_the_moments():
  """The first moment is of the sparse gradient, where that of `online_dare` is dense; p = 1 changes nothing."""
  _, state = runs.run(optax.chain(optim.child_tuning(0.3), optax.adam(1e-2)), runs.STREAM[:1])
  sparse = np.asarray(state[1][0].mu['layers']['up']['kernel'])
  assert 0.5 < (sparse == 0).mean() < 0.9
  _, dense = runs.run(optax.chain(optax.adam(1e-2), optim.online_dare(0.3, 0.0)), runs.STREAM[:1])
  assert (np.asarray(dense[0][0].mu['layers']['up']['kernel']) != 0).all()
  whole, _ = runs.run(optax.chain(optim.child_tuning(1.0), optax.adam(1e-2)))
  runs.assert_equal(whole, runs.run(optax.adam(1e-2))[0])


def test_average_of_parameters():
  tx = optax.chain(optax.adam(1e-2), optim.moving_average(0.1))
  path, state = runs.run(tx)
  runs.assert_equal(path, runs.run(optax.adam(1e-2))[0])
  for index, average in enumerate(runs.leaves(optim.averaged(state, runs.PARAMS))):
    expected = runs.leaves(runs.PARAMS)[index]
    for params in path:
      expected = 0.9 * expected + 0.1 * runs.leaves(params)[index]
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)
  small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), runs.PARAMS)
  assert jax.tree.leaves(optim.averaged(state, small))[0].dtype == jnp.bfloat16


def test_average_with_the_previous_parameters_is_a_smaller_rate():
  path, _ = runs.run(optax.chain(optax.adam(1e-2), optim.moving_average(0.1, 'previous')))
  plain, _ = runs.run(optax.adam(1e-2), runs.STREAM[:1])
  expected = jax.tree.map(lambda new, old: 0.9 * new + 0.1 * old, plain[0], runs.PARAMS)
  runs.assert_close(path[0], expected, rtol=0, atol=2e-7)


def test_a_state_can_be_donated():
  for tx in (optim.moving_average(0.1), optim.child_tuning(0.5)):
    params = jax.tree.map(jnp.copy, runs.PARAMS)
    update = jax.jit(lambda params, state, tx=tx: tx.update(runs.STREAM[0], state, params), donate_argnums=(0, 1))
    updates, _ = update(params, tx.init(params))
    assert all(np.isfinite(x).all() for x in runs.leaves(updates))


def test_refusals():
  with pytest.raises(ValueError, match=r'reserve=0 must be in \(0, 1\]'):
    optim.child_tuning(0)
  with pytest.raises(ValueError, match=r'rate=2\.0 must be in \[0, 1\]'):
    optim.moving_average(2.0)
  with pytest.raises(ValueError, match="history='all' is not one of"):
    optim.moving_average(0.1, 'all')
  tx = optim.moving_average(0.1)
  with pytest.raises(ValueError, match='needs the parameters'):
    tx.update(runs.STREAM[0], tx.init(runs.PARAMS))
  for state in (optax.adam(1.0).init(runs.PARAMS), (tx.init(runs.PARAMS), tx.init(runs.PARAMS))):
    with pytest.raises(ValueError, match='averages of parameters: chain one'):
      optim.averaged(state, runs.PARAMS)


def test_transforms_are_found_by_name():
  assert set(optim.TRANSFORMS) == {'child_tuning', 'moving_average', 'online_dare', 'online_merge', 'online_ties'}
  assert all(hasattr(optim, name) for name in optim.__all__)
