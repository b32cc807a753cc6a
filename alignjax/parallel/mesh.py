"""The device mesh: axes (data, fsdp, tensor)."""

import math

import jax
from jax.experimental import mesh_utils

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # the axes that shard prompts


def make_mesh(
  data: int = 1, fsdp: int = -1, tensor: int = 1, devices: list[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Arranges the devices as (data, fsdp, tensor).

  `data` replicates parameters, `fsdp` shards parameters and optimizer state, `tensor` shards heads, feed-forward width
  and vocabulary. Prompts are sharded over data x fsdp.

  Args:
    data: size of the data axis. One of the three sizes may be -1, which takes all remaining devices.
    fsdp: size of the fsdp axis.
    tensor: size of the tensor axis.
    devices: the devices to use; by default all devices of all processes.

  Raises:
    ValueError: the product of the sizes is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = [data, fsdp, tensor]
  described = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, shape, strict=True))
  if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
    raise ValueError(f'mesh axes must be positive, except that one may be -1; got {described}')
  if -1 in shape:
    shape[shape.index(-1)] = len(devices) // math.prod(size for size in shape if size != -1)
  if math.prod(shape) != len(devices):
    raise ValueError(f'a mesh of {described} does not fit {len(devices)} devices')
  # Some meshes on a TPU torus, such as 16 x 4 on an 8 x 8 slice, require splitting a physical axis.
  grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
  # Auto lets the compiler propagate shardings. JAX's default, Explicit, rejects plain `x @ w`.
  return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def batch_shards(mesh: jax.sharding.Mesh) -> int:
  """The number of shards of a batch of prompts."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
