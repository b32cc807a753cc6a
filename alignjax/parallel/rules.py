"""Which array lives where: shardings of parameters, batches and activations from a few rules."""

from collections.abc import Callable
import math
import re
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from alignjax.parallel import mesh as mesh_lib
from alignjax.types import Array, Params

# (pattern of the parameter's path, axes from its last dimension but one on). Leading dimensions (layers) are not split.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'embed/embedding$', ('tensor', 'fsdp')),
  (r'positions/embedding$', (None, None)),  # small, and any row may be asked for anywhere
  (r'unembed/kernel$', ('fsdp', 'tensor')),
  (r'(query|key|value|gate|up)/kernel$', ('fsdp', 'tensor')),
  (r'(output|down)/kernel$', ('tensor', 'fsdp')),
  (r'(query|key|value|gate|up)/bias$', ('tensor',)),
  # Adapters are small, so they are split as their products ask for it and no further.
  (r'(query|key|value|gate|up)/lora_b$', (None, 'tensor')),
  (r'(output|down)/lora_a$', ('tensor', None)),
  (r'lora_[ab]$', (None, None)),
  (r'(scale|bias)$', (None,)),
  (r'(^|/)logits$', (None, None)),
)


# Axes of activations, by the name that models give them.
LOGICAL_AXES: dict[str | None, tuple[str, ...]] = {'batch': mesh_lib.BATCH_AXES, 'vocab': ('tensor',), None: ()}


def partition_spec(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
  """The sharding of one parameter, by the first rule that matches; what its axis does not divide stays whole.

  Raises:
    ValueError: if no rule matches the path.
  """
  for pattern, axes in RULES:
    if re.search(pattern, path):
      spec = (None,) * (len(shape) - len(axes)) + axes
      fits = [axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(spec, shape, strict=True)]
      return PartitionSpec(*(axis if fit else None for axis, fit in zip(spec, fits, strict=True)))
  raise ValueError(f'no sharding rule matches the parameter {path!r}: add one to alignjax.parallel.rules.RULES')


def param_shardings(mesh: jax.sharding.Mesh, params: Params) -> Any:
  """A tree like `params` (arrays or shapes) of their shardings."""

  def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = '/'.join(str(key.key) for key in path)
    return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, params)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of every array of a batch: prompts, the leading axis, over data x fsdp."""
  return NamedSharding(mesh, PartitionSpec(mesh_lib.BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def activation_constraint(mesh: jax.sharding.Mesh) -> Callable[[Array, tuple[str | None, ...]], Array]:
  """A function (array, logical axes) -> array that pins 'batch' to data x fsdp and 'vocab' to tensor; None is whole.

  An axis that its mesh axes do not divide stays whole. Without the pin the compiler may follow a weight and split
  activations by width.
  """

  def constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
    wanted = [LOGICAL_AXES[axis] for axis in axes]
    sizes = [math.prod(mesh.shape[name] for name in names) for names in wanted]
    spec = [names or None if dim % size == 0 else None for dim, names, size in zip(x.shape, wanted, sizes, strict=True)]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

  return constrain
