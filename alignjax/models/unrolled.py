"""The parameters of a decoder as decoding reads them: layer by layer, and kernels by outputs.

Training stacks the layers of a model, [L, ...], and scans over them. A sampling loop runs all layers for each token,
and would slice, cast and transpose the weights for each token too, because XLA does not move that work out of the loop.
So the weights are laid out once, before the loop, or before many loops:

  layers/attention/query/kernel [L, D, F]  ->  layers/0/attention/query/kernel: `Transposed` [F, D], and so on
"""

from typing import Any

import jax

from alignjax.models import transposed
from alignjax.types import Array, Params

LAYERS, KERNEL = 'layers', 'kernel'
_CAST = (
  f'/{KERNEL}',
  '/mlp/router',
  '/mlp/gate',
  '/mlp/up',
  '/mlp/down',
)  # ends of paths; all but the first: of experts


def is_cast(path: str) -> bool:
  """Whether the parameter at a path, such as 'layers/mlp/up/kernel', is used in the compute dtype."""
  return path.startswith(f'{LAYERS}/') and path.endswith(_CAST)


def is_laid_out(params: Params) -> bool:
  """Whether parameters are the result of `lay_out`."""
  return 0 in params.get(LAYERS, ())


def lay_out(params: Params, dtype: str) -> Params:
  """Casts and lays out the parameters of a decoder; returns parameters that are laid out already.

  Args:
    params: a tree with stacked layers.
    dtype: the compute dtype.
  """
  if is_laid_out(params):
    return params
  stacked = jax.tree_util.tree_map_with_path(lambda path, leaf: _cast(_text(path), leaf, dtype), params[LAYERS])
  return {**params, LAYERS: dict(enumerate(map(_transposed, unstack(stacked))))}


def take(stacked: Params, number: int | Array) -> Params:
  """One layer of parameters that are cast already, as `lay_out` lays it out."""
  return _transposed(jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), stacked))


def _text(path: tuple[Any, ...]) -> str:
  return f'{LAYERS}/{jax.tree_util.keystr(path, simple=True, separator="/")}'


def _cast(path: str, leaf: Array, dtype: str) -> Array:
  return leaf.astype(dtype) if is_cast(path) else leaf


def _transposed(layer: Params) -> Params:
  def by_outputs(path: tuple[Any, ...], leaf: Array) -> Array | transposed.Transposed:
    return transposed.Transposed.of(leaf) if path[-1] == jax.tree_util.DictKey(KERNEL) else leaf

  return jax.tree_util.tree_map_with_path(by_outputs, layer)


def unstack(stacked: Any) -> list[Any]:
  """Splits every array of a tree along its leading axis into a list of trees.

  The gradient of `lax.split` is one concatenation, whereas that of indexing is a sum of padded arrays.
  """
  leaves, structure = jax.tree.flatten(stacked)
  parts = [[part[0] for part in jax.lax.split(leaf, (1,) * len(leaf))] for leaf in leaves]
  return [structure.unflatten(layer) for layer in zip(*parts, strict=True)]


def shardings(laid_out: Params, stacked: Any) -> Any:
  """The shardings of laid out parameters, by which laying them out moves nothing between devices.

  Args:
    laid_out: the shapes of the result of `lay_out`.
    stacked: the shardings of its argument, as a tree.
  """

  def of(leaf: Any, sharding: jax.sharding.NamedSharding) -> Any:
    own = jax.sharding.PartitionSpec(*sharding.spec[1:])
    if not isinstance(leaf, transposed.Transposed):
      return jax.sharding.NamedSharding(sharding.mesh, own)
    spec = jax.sharding.PartitionSpec(*reversed((*own, *[None] * (2 - len(own)))))
    return jax.tree.map(lambda _: jax.sharding.NamedSharding(sharding.mesh, spec), leaf)

  layers = {
    number: jax.tree.map(of, layer, stacked[LAYERS], is_leaf=lambda leaf: isinstance(leaf, transposed.Transposed))
    for number, layer in laid_out[LAYERS].items()
  }
  return {**stacked, LAYERS: layers}
