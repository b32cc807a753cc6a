"""How the weights of a model are sharded while it decodes.

Each token reads every weight. With the sharding of training, in which the fsdp axis splits the weights, the devices
would gather all weights for each token. So the weights are resharded once, before decoding:

  devices (data, fsdp, tensor)  ->  (data * fsdp / split, 1, tensor * split)

With a split of 1, no weight is split over what was the fsdp axis, and its devices decode different prompts. With a
larger split, groups of `split` of these devices share weights and prompts like the devices of a tensor axis, so that
only activations travel between them.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from alignjax.models import base, lora
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.types import Params

# Largest share of a device's memory for the weights. The decoding loop holds them once more, layer by layer.
SHARE = 1 / 6
_CAST = ('/kernel', '/mlp/router', '/mlp/gate', '/mlp/up', '/mlp/down')  # ends of paths; all but the first: of experts


@dataclasses.dataclass(frozen=True)
class Layout:
  """The dtypes and shardings of weights during decoding; `choose` makes it.

  Attributes:
    dtype: the compute dtype of the model, which is the dtype of the kernels of layers.
    mesh: the devices of the training mesh in the same order, with an fsdp axis of size 1.
    weights: a tree of `jax.ShapeDtypeStruct` with shardings.
    through: the shardings that the weights pass through on their way, as a tree.
  """

  dtype: str
  mesh: jax.sharding.Mesh
  weights: Params
  through: Any

  @property
  def bytes_on_device(self) -> int:
    """Bytes of weights on each device."""
    leaves = jax.tree.leaves(self.weights)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)

  @property
  def shardings(self) -> Any:
    """The shardings of the weights, as a tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.weights)

  def cast(self, path: str, leaf: Any) -> jax.Array:
    """Merges an adapted or quantised kernel, and casts kernels of layers to the dtype in which they are used.

    Other weights keep their dtype, so this rounds nothing that the model does not round.

    Args:
      path: the path of the weight, such as 'layers/mlp/up/kernel'.
      leaf: an array, or a kernel of `lora` or `quantization`.
    """
    leaf = lora.dense(leaf)
    return leaf.astype(self.dtype) if path.startswith('layers/') and path.endswith(_CAST) else leaf

  def place(self, params: Params) -> Params:
    """Casts and reshards the weights in one compiled program; returns them unchanged if they are placed already.

    Args:
      params: the weights in any sharding over the devices of the mesh; kernels may be adapted or quantised.
    """
    same = jax.tree.structure(params) == jax.tree.structure(self.weights)
    if same and all(map(_is_placed, jax.tree.leaves(params), jax.tree.leaves(self.weights))):
      return params
    return self.program(params)

  @functools.cached_property
  def program(self) -> Callable[[Params], Params]:
    """The compiled function of `place`."""

    def reshard(params: Params) -> Params:
      return jax.lax.with_sharding_constraint(_cast_all(self.cast, params), self.through)

    return jax.jit(reshard, out_shardings=self.shardings)


def choose(model: base.LanguageModel, mesh: jax.sharding.Mesh, memory: int | None = None) -> Layout:
  """The layout with the smallest split for which the weights take at most `SHARE` of the memory of each device.

  If they take more with every split, the split is as large as the fsdp axis.

  Args:
    model: the model.
    mesh: the mesh of training, shared by all processes.
    memory: bytes of memory of each device; None for what the devices report.
  """
  fsdp = mesh.shape['fsdp']
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  dtype = getattr(model.config, 'compute_dtype', 'float32')  # a table has none
  layouts = [_layout(dtype, shapes, mesh, split) for split in range(1, fsdp + 1) if fsdp % split == 0]
  limit = SHARE * (_memory(mesh) if memory is None else memory)
  return next((layout for layout in layouts if layout.bytes_on_device <= limit), layouts[-1])


def _layout(dtype: str, shapes: Params, mesh: jax.sharding.Mesh, split: int) -> Layout:
  decoding_mesh = parallel_mesh.fsdp_as_tensor(mesh, split)
  layout = Layout(dtype, decoding_mesh, shapes, rules.param_shardings(decoding_mesh, shapes))
  weights = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    jax.eval_shape(functools.partial(_cast_all, layout.cast), shapes),
    layout.through,
  )
  layout = dataclasses.replace(layout, weights=weights)
  if split in (1, mesh.shape['fsdp']):
    return layout
  # The compiler cannot go from fsdp to a part of it in another dimension, unless by way of all of it.
  return dataclasses.replace(layout, through=jax.tree.map(_split_further, weights))


def _cast_all(cast: Callable[[str, Any], jax.Array], params: Params) -> Params:
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: cast(jax.tree_util.keystr(path, simple=True, separator='/'), leaf),
    params,
    is_leaf=lora.is_kernel,
  )


def _split_further(leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
  """The sharding of a weight, with the dimension that 'tensor' splits also split by 'data'."""
  mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
  axes = ('tensor', 'data')
  size = math.prod(mesh.shape[axis] for axis in axes)
  further = [axes if axis == 'tensor' and dim % size == 0 else axis for axis, dim in zip(spec, leaf.shape, strict=True)]
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*further))


def _is_placed(leaf: jax.Array, wanted: jax.ShapeDtypeStruct) -> bool:
  same = isinstance(leaf, jax.Array) and (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
  return same and leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def _memory(mesh: jax.sharding.Mesh) -> int:
  """Bytes of memory of the smallest device of the mesh. All processes must call this function."""
  least = min(_memory_of(device, mesh.size) for device in mesh.local_devices)
  return least if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.float64(least)).min())


def _memory_of(device: jax.Device, devices: int) -> int:
  """Bytes of memory of a device; 0 if unknown. A CPU device has its share of the host, however many processes run."""
  if device.platform == 'cpu':
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // devices
  return (device.memory_stats() or {}).get('bytes_limit', 0)
