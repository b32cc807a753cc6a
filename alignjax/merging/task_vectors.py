"""Task vectors: the change of the parameters during training, as a tree like the parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from alignjax.types import Array, Params


def named_leaves(tree: Params) -> tuple[dict[str, Any], Any]:
  """The leaves of a tree by path ('layers/mlp/up/kernel'), in tree order, and its structure."""
  paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}, treedef


def check_alike(reference: Params, other: Params, label: str) -> None:
  """Checks that two trees have the same names and shapes.

  Raises:
    ValueError: they differ; the message names `label` (the name of `other`) and the first parameter that differs.
  """
  expected, found = named_leaves(reference)[0], named_leaves(other)[0]
  if different := sorted(expected.keys() ^ found.keys()):
    kind = 'has no' if different[0] in expected else 'has an additional'
    raise ValueError(f'{label} {kind} parameter {different[0]} ({len(different)} names differ)')
  for name, leaf in expected.items():
    if jnp.shape(leaf) != jnp.shape(found[name]):
      raise ValueError(f'{label}: {name} has shape {jnp.shape(found[name])}, but the first model has {jnp.shape(leaf)}')


def task_vector(model: Params, base: Params) -> Params:
  """tau = theta - theta_base, computed in float32 for any input dtypes.

  Args:
    model: parameters after training.
    base: parameters before training, with the same names and shapes.

  Returns:
    A tree like `model` with float32 arrays.

  Raises:
    ValueError: the trees differ; the message names the parameter.

  References:
    Ilharco et al. 2023, Editing Models with Task Arithmetic, https://arxiv.org/abs/2212.04089.
  """
  check_alike(model, base, 'base')
  return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32), model, base)


def apply(base: Params, vector: Params, scale: float = 1.0) -> Params:
  """theta_base + scale * tau, computed in float32 and cast to the dtypes of `base`.

  Args:
    base: parameters.
    vector: a task vector with the same names and shapes.
    scale: the coefficient: 1 recovers the trained model, -1 moves away from it.

  Returns:
    A tree like `base`.

  Raises:
    ValueError: the trees differ; the message names the parameter.
  """
  check_alike(base, vector, 'vector')

  def move(leaf: Array, change: Array) -> Array:
    moved = jnp.asarray(leaf, jnp.float32) + scale * jnp.asarray(change, jnp.float32)
    return moved.astype(jnp.asarray(leaf).dtype)

  return jax.tree.map(move, base, vector)
