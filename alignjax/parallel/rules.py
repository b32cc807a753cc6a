"""Sharding rules for parameters, batches and activations."""

from collections.abc import Callable
import math
import re
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from alignjax.parallel import kernels
from alignjax.parallel import mesh as parallel_mesh
from alignjax.types import Array, Params

# (pattern of a parameter path, mesh axes of the last dimensions). Leading dimensions (layers) are not sharded.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'embed/embedding$', ('tensor', 'fsdp')),
  (r'positions/embedding$', (None, None)),  # small, and every device may read any row
  (r'unembed/kernel$', ('fsdp', 'tensor')),
  (r'score/kernel$', (None, None)),
  (r'(query|key|value|gate|up)/kernel$', ('fsdp', 'tensor')),
  (r'(output|down)/kernel$', ('tensor', 'fsdp')),
  (r'(query|key|value|gate|up)/bias$', ('tensor',)),
  # Every device holds some of the experts, and computes these for all tokens of its batch.
  (r'mlp/(gate|up)$', ('tensor', 'fsdp', None)),
  (r'mlp/down$', ('tensor', None, 'fsdp')),
  (r'mlp/router$', ('fsdp', None)),
  # Adapters are small, so they are sharded only where the sharding of their products requires it.
  (r'(query|key|value|gate|up)/lora_b$', (None, 'tensor')),
  (r'(output|down)/lora_a$', ('tensor', None)),
  (r'lora_[ab]$', (None, None)),
  (r'(scale|bias)$', (None,)),
  (r'(^|/)logits$', (None, None)),
)


# Mesh axes by the logical axis names that models use: those of the first entry that divides the dimension.
LOGICAL_AXES: dict[str | None, tuple[tuple[str, ...], ...]] = {
  'batch': (parallel_mesh.BATCH_AXES,),
  'row': (parallel_mesh.AXES, parallel_mesh.BATCH_AXES),  # prompts, where the tensor axis can share them out, too
  'vocab': (('tensor',),),
  'replica': (('data',),),  # prompts of all devices that share one copy of the parameters
  'width': (('fsdp',),),
  None: (),
}


def partition_spec(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
  """The sharding of one parameter, by the first matching rule. Dimensions that do not divide evenly are not sharded.

  Raises:
    ValueError: no rule matches the path.
  """
  for pattern, axes in RULES:
    if re.search(pattern, path):
      spec = (None,) * (len(shape) - len(axes)) + axes
      fits = [axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(spec, shape, strict=True)]
      return PartitionSpec(*(axis if fit else None for axis, fit in zip(spec, fits, strict=True)))
  raise ValueError(f'no sharding rule matches the parameter {path!r}: add one to alignjax.parallel.rules.RULES')


def param_shardings(mesh: jax.sharding.Mesh, params: Params) -> Any:
  """The shardings of `params` (arrays or shapes), as a tree like `params`."""

  def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = '/'.join(str(key.key) for key in path)
    return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, params)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of every array in a batch: the leading axis, prompts, over data x fsdp."""
  return NamedSharding(mesh, PartitionSpec(parallel_mesh.BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of replicated arrays."""
  return NamedSharding(mesh, PartitionSpec())


def constraint(mesh: jax.sharding.Mesh) -> Callable[[Any, tuple[str | None, ...] | None], Any]:
  """Builds the function (array, logical axes) -> array by which a model shards what it computes; see `base.Constrain`.

  Dimensions are sharded as `LOGICAL_AXES` names them. Axes that are None or do not divide evenly are not sharded.
  Without this constraint the compiler may propagate the sharding of a weight and shard activations by width.

  With None for the axes, the parameters of a layer are constrained to their own shardings. That changes nothing in the
  forward pass. In the backward pass, each device receives only the part of a gradient that it keeps.
  """

  parts = kernels.Parts.of(mesh)

  def divides(names: tuple[str, ...], dim: int) -> bool:
    return dim % math.prod(mesh.shape[name] for name in names) == 0

  def constrain(x: Any, axes: tuple[str | None, ...] | None) -> Any:
    if axes is None:
      return jax.tree_util.tree_map_with_path(parameter, x)
    if 'width' in axes and not divides(('fsdp',), x.shape[axes.index('width')]):
      axes = tuple('batch' if axis == 'replica' else axis for axis in axes)  # no device has columns of its own
    spec = [
      next((names for names in LOGICAL_AXES[axis] if divides(names, dim)), None)
      for axis, dim in zip(axes, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

  def parameter(path: tuple[Any, ...], leaf: Array) -> Any:
    *names, last = (key.name for key in path)  # attributes of a module; the last one is `value`, of an `nnx.Param`
    if last != 'value' or leaf.ndim < 2:
      return leaf  # part of an adapted or quantised kernel, or small
    spec = partition_spec('/'.join(names), leaf.shape, mesh)
    if names[-1] == 'kernel' and 'fsdp' in spec and mesh.shape['fsdp'] > 1:
      return kernels.SplitKernel(leaf, kernels.Split(parts, tuple(spec)))
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

  return constrain
