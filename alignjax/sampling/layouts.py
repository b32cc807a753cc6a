"""How the weights of a model are sharded while it decodes.

Each token reads every weight. With the sharding of training, in which the fsdp axis splits the weights, the devices
would gather all weights for each token. So the weights are resharded and laid out once, before decoding:

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

from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import numpy as np

from alignjax.models import base, lora, unrolled
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.types import Params

# Largest share of a device's memory for the weights, of which there are two copies while they are laid out.
SHARE = 1 / 6


@dataclasses.dataclass(frozen=True)
class Layout:
  """The dtypes and shardings of weights during decoding; `choose` makes it.

  Attributes:
    model: the model.
    mesh: the devices of the training mesh in the same order, with an fsdp axis of size 1.
    stacked: a tree of `jax.ShapeDtypeStruct` with shardings: the weights before they are laid out.
    through: the shardings that the weights pass through on their way, as a tree.
  """

  model: base.LanguageModel
  mesh: jax.sharding.Mesh
  stacked: Params
  through: Any

  @property
  def bytes_on_device(self) -> int:
    """Bytes of weights on each device."""
    leaves = jax.tree.leaves(self.stacked)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)

  @property
  def shardings(self) -> Any:
    """The shardings of the weights before they are laid out, as a tree."""
    return _shardings(self.stacked)

  @functools.cached_property
  def weights(self) -> Params:
    """A tree of `jax.ShapeDtypeStruct` with shardings: the weights as decoding reads them."""
    shapes = jax.eval_shape(self.model.lay_out, self.stacked)
    if not unrolled.is_laid_out(shapes):
      return self.stacked
    shardings = unrolled.shardings(shapes, self.shardings)
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )

  def cast(self, path: str, leaf: Any) -> jax.Array:
    """Merges an adapted or quantised kernel, and casts kernels of layers to the dtype in which they are used.

    Other weights keep their dtype, so this rounds nothing that the model does not round.

    Args:
      path: the path of the weight, such as 'layers/mlp/up/kernel'.
      leaf: an array, or a kernel of `lora` or `quantization`.
    """
    leaf = lora.dense(leaf)
    return leaf.astype(self.model.config.compute_dtype) if unrolled.is_cast(path) else leaf

  def place(self, params: Params) -> Params:
    """Casts, reshards and lays out the weights in one compiled program; returns weights that are placed as they are.

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
      params = jax.lax.with_sharding_constraint(_cast_all(self.cast, params), self.through)
      return self.model.lay_out(jax.lax.with_sharding_constraint(params, self.shardings))

    return jax.jit(reshard, out_shardings=_shardings(self.weights))

  def lay_out(self, params: Params) -> Params:
    """Lays out weights that are cast and sharded as `stacked`, and deletes each when it is done, to save memory."""
    if not unrolled.is_laid_out(self.weights):
      return params
    wanted = self.weights[unrolled.LAYERS]
    layers: dict[int, dict[tuple[str, ...], Any]] = {number: {} for number in wanted}
    for path, leaf in traverse_util.flatten_dict(params[unrolled.LAYERS]).items():
      take = jax.jit(unrolled.take, out_shardings=_shardings(_only(path, wanted[0])))
      alone = traverse_util.unflatten_dict({path: leaf})
      for number, layer in layers.items():
        layer |= traverse_util.flatten_dict(take(alone, number))
      jax.block_until_ready(layers)
      leaf.delete()
    return {**params, unrolled.LAYERS: {i: traverse_util.unflatten_dict(layer) for i, layer in layers.items()}}


def _only(path: tuple[str, ...], layer: Params) -> Params:
  """The parameter of a layer at a path, alone."""
  return traverse_util.unflatten_dict({path: traverse_util.flatten_dict(layer)[path]})


def _shardings(shapes: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.sharding, shapes)


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
  layouts = [_layout(model, shapes, mesh, split) for split in range(1, fsdp + 1) if fsdp % split == 0]
  limit = SHARE * (_memory(mesh) if memory is None else memory)
  return next((layout for layout in layouts if layout.bytes_on_device <= limit), layouts[-1])


def _layout(model: base.LanguageModel, shapes: Params, mesh: jax.sharding.Mesh, split: int) -> Layout:
  decoding_mesh = parallel_mesh.fsdp_as_tensor(mesh, split)
  layout = Layout(model, decoding_mesh, shapes, rules.param_shardings(decoding_mesh, shapes))
  stacked = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    jax.eval_shape(functools.partial(_cast_all, layout.cast), shapes),
    layout.through,
  )
  layout = dataclasses.replace(layout, stacked=stacked)
  if split in (1, mesh.shape['fsdp']):
    return layout
  # The compiler cannot go from fsdp to a part of it in another dimension, unless by way of all of it.
  return dataclasses.replace(layout, through=jax.tree.map(_split_further, stacked))


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
