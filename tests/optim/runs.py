"""Small trees, and runs of an optimizer on a fixed stream of gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Every tensor compiles a search of its own, so there are two: a stack of layers, and a small one that is not stacked.
SHAPES = {'layers': {'up': {'kernel': (2, 8, 24)}}, 'final_norm': {'scale': (8,)}}


def tree(seed, scale, dtype=jnp.float32):
  rng = np.random.default_rng(seed)

  def draw(shape):
    return jnp.asarray(scale * rng.standard_normal(shape), dtype)

  return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


PARAMS, TAU = tree(0, 0.5), tree(1, 1e-2)
STREAM = [tree(seed, 1.0) for seed in range(2, 8)]


def only(name, trees):
  """Of a tree, or of each tree of a list, one parameter: a program of a single tensor compiles several times faster."""
  return [only(name, tree) for tree in trees] if isinstance(trees, list) else {name: trees[name]}


def run(tx, gradients=STREAM, params=PARAMS, tau=TAU, state=None):
  """Parameters after each gradient, and the last state. Updates are applied by a program of their own."""
  state, path, update = tx.init(params) if state is None else state, [], jitted(tx)
  for gradient in gradients:
    updates, state = update(gradient, state, params, tau)
    params = optax.apply_updates(params, updates)
    path.append(params)
  return path, state


@functools.lru_cache(maxsize=64)  # compiling is what takes the time
def jitted(tx):
  return jax.jit(lambda gradient, state, params, tau: tx.update(gradient, state, params, reference_delta=tau))


def moved(tx, updates, tau=TAU, params=None, steps=1):
  """What a transform makes of the same updates, `steps` times; at parameters of zero, where nothing is rounded."""
  params = jax.tree.map(jnp.zeros_like, updates) if params is None else params
  state, update, out = tx.init(params), jitted(tx), []
  for _ in range(steps):
    merged, state = update(updates, state, params, tau)
    out.append(merged)
  return out, state


def leaves(tree):
  return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def assert_close(actual, expected, rtol=1e-6, atol=0.0):
  for x, y in zip(leaves(actual), leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def assert_equal(actual, expected):
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def differs(actual, expected):
  return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(leaves(actual), leaves(expected), strict=True))
