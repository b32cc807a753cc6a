"""The device mesh: axes (data, fsdp, tensor), over one or several slices."""

import collections
from collections.abc import Sequence
import math

import jax
from jax.experimental import mesh_utils
import numpy as np

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # the axes that shard prompts


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
  slices: int = 0,
  allow_dcn_fsdp: bool = False,
) -> jax.sharding.Mesh:
  """Arranges the devices as (data, fsdp, tensor).

  `data` replicates parameters, `fsdp` shards parameters and optimizer state, `tensor` shards heads, feed-forward width
  and vocabulary. Prompts are sharded over data x fsdp.

  The network between slices is slower than the network inside a slice. So slices are the outermost part of `data`, and
  only the sum of the gradients crosses them. TPUs name their slices. GPU nodes serve as slices if their number divides
  `data`; otherwise any axis may cross nodes. On other devices, `slices` makes each process a slice.

  Args:
    data: size of the data axis. One of the three sizes may be -1, which takes all remaining devices.
    fsdp: size of the fsdp axis.
    tensor: size of the tensor axis.
    devices: the devices to use; by default all devices of all processes.
    slices: number of slices; 0 for as many as the devices have.
    allow_dcn_fsdp: accept an fsdp axis that crosses slices.

  Raises:
    ValueError: the product of the sizes is not the number of devices, an axis other than `data` would cross slices, or
      the devices cannot be arranged.
  """
  devices = jax.devices() if devices is None else devices
  shape = _shape((data, fsdp, tensor), len(devices))
  attribute, count = _slices(devices, shape, slices)
  grid = _by_place(_arrange(devices, shape, _outer(shape, count, allow_dcn_fsdp), attribute))
  # Auto lets the compiler propagate shardings. JAX's default, Explicit, rejects plain `x @ w`.
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(grid, AXES, axis_types=auto)


def abstract_mesh(
  sizes: Sequence[int], devices: int, slices: int = 1, allow_dcn_fsdp: bool = False
) -> jax.sharding.AbstractMesh:
  """The mesh that `make_mesh` would arrange, without devices: enough for shapes and shardings.

  Args:
    sizes: sizes of the axes data, fsdp and tensor; one may be -1.
    devices: number of devices.
    slices: number of slices of equal size.
    allow_dcn_fsdp: accept an fsdp axis that crosses slices.

  Raises:
    ValueError: the product of the sizes is not the number of devices, or an axis other than `data` crosses slices.
  """
  shape = _shape(tuple(sizes), devices)
  _outer(shape, slices, allow_dcn_fsdp)
  return jax.sharding.AbstractMesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def fsdp_as_tensor(mesh: jax.sharding.Mesh, split: int) -> jax.sharding.Mesh:
  """The same devices in the same order as (data * fsdp / split, 1, tensor * split).

  Args:
    mesh: a mesh of `make_mesh`.
    split: a divisor of its fsdp axis, the number of neighbours on this axis that join the tensor axis.
  """
  return jax.sharding.Mesh(
    mesh.devices.reshape(-1, 1, split * mesh.shape['tensor']), mesh.axis_names, axis_types=mesh.axis_types
  )


def batch_shards(mesh: jax.sharding.Mesh) -> int:
  """The number of shards of a batch of prompts."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def describe_division(mesh: jax.sharding.Mesh, microbatches: int) -> str:
  """Why a number of rows must be a multiple of shards times microbatches, for messages."""
  shards = batch_shards(mesh)
  axes = ' x '.join(f'mesh.{axis}={mesh.shape[axis]}' for axis in BATCH_AXES)
  into = f'into {microbatches} microbatches' if microbatches > 1 else ''
  over = f'over {shards} shards ({axes})' if shards > 1 else ''
  return f'the batch is divided {" and each of them ".join(filter(None, (into, over)))}'


def batch_shards_of(mesh: jax.sharding.Mesh, process: int | None = None) -> tuple[tuple[int, ...], int]:
  """The batch shards that the devices of a process hold, in ascending order, and the number of all shards.

  They need not be neighbours: on a TPU torus, a host may hold the shards 0, 1, 8 and 9. Processes hold the same shards
  where the tensor axis spans them.

  Args:
    mesh: the mesh shared by all processes.
    process: index of the process; None for this one.

  Raises:
    ValueError: the process has no device in the mesh.
  """
  process = jax.process_index() if process is None else process
  shards = mesh.devices.reshape(batch_shards(mesh), -1)
  own = tuple(
    shard for shard, holders in enumerate(shards) if any(device.process_index == process for device in holders)
  )
  if not own:
    raise ValueError(f'process {process} has no device in the mesh of {mesh.size} devices, so it has no rows to feed')
  return own, len(shards)


def first_holders(mesh: jax.sharding.Mesh) -> list[int]:
  """The first process that holds each batch shard: what it does for the shard is done once."""
  return [min(device.process_index for device in holders) for holders in mesh.devices.reshape(batch_shards(mesh), -1)]


def _described(shape: Sequence[int]) -> str:
  return ', '.join(f'{axis}={size}' for axis, size in zip(AXES, shape, strict=True))


def _shape(sizes: Sequence[int], count: int) -> tuple[int, ...]:
  """The sizes of the axes, with -1 replaced by what is left of `count` devices."""
  if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
    raise ValueError(f'mesh axes must be positive, except that one may be -1; got {_described(sizes)}')
  rest = count // math.prod(size for size in sizes if size != -1)
  shape = tuple(rest if size == -1 else size for size in sizes)
  if not count or math.prod(shape) != count:
    raise ValueError(
      f'a mesh of {_described(sizes)} does not fit {count} devices: choose mesh.data, mesh.fsdp and mesh.tensor such '
      f'that their product is {count}'
    )
  return shape


def _slices(devices: Sequence[jax.Device], shape: Sequence[int], slices: int) -> tuple[str, int]:
  """The attribute that names the slice of a device, and the number of slices that the mesh is made of.

  It is made of 1 if every axis may cross slices.
  """
  platform = devices[0].platform
  nodes = {getattr(device, 'slice_index', 0) for device in devices}
  attribute = 'slice_index' if platform == 'tpu' or len(nodes) > 1 else 'process_index'
  sizes = collections.Counter(getattr(device, attribute, 0) for device in devices)
  found, equal = len(sizes), len(set(sizes.values())) == 1
  if slices == 0:
    together = platform == 'gpu' and equal and shape[0] % found == 0
    slices = found if platform == 'tpu' or together else 1
  if slices != found and (slices != 1 or platform == 'tpu'):
    counted = 'slices' if attribute == 'slice_index' else 'processes, which serve as slices here,'
    raise ValueError(f'mesh.slices={slices}, but the number of {counted} is {found}: set mesh.slices={found}')
  if slices > 1 and not equal:
    raise ValueError(f'the slices have {sorted(sizes.values())} devices: use slices of one size')
  return attribute, slices


def _outer(shape: Sequence[int], slices: int, allow_dcn_fsdp: bool) -> tuple[int, ...]:
  """How many slices each axis spans: `data` as many as its size allows, then `fsdp`."""
  data, fsdp, tensor = shape
  across_data = math.gcd(data, slices)
  across_fsdp = slices // across_data
  fits = fsdp % across_fsdp == 0
  if across_fsdp == 1 or (allow_dcn_fsdp and fits):
    return across_data, across_fsdp, 1
  size = math.prod(shape) // slices
  if size % tensor == 0:
    advice = f'make mesh.data a multiple of {slices}, such as mesh.data={slices} and mesh.fsdp={size // tensor}'
  else:
    advice = f'make mesh.data a multiple of {slices} and mesh.tensor a divisor of {size}'
  if fits:
    advice += ', or accept the slow network with mesh.allow_dcn_fsdp=true'
  crossing = f'fsdp={fsdp}' if fits else f'tensor={tensor}'
  raise ValueError(
    f'a mesh of {_described(shape)} over {slices} slices of {size} devices: {crossing} would cross slices, and the '
    f'network between slices is slow. To avoid this, {advice}'
  )


def _arrange(devices: Sequence[jax.Device], shape: Sequence[int], outer: Sequence[int], attribute: str) -> np.ndarray:
  """The devices as an array of this shape, of which `outer` is across slices."""
  # Some meshes on a TPU torus, such as 16 x 4 on an 8 x 8 slice, require splitting a physical axis.
  options = {'devices': devices, 'allow_split_physical_axes': True}
  try:
    if math.prod(outer) == 1:
      return mesh_utils.create_device_mesh(shape, **options)
    inner = [size // across for size, across in zip(shape, outer, strict=True)]
    by_process = attribute == 'process_index'
    return mesh_utils.create_hybrid_device_mesh(inner, outer, process_is_granule=by_process, **options)
  except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
    raise ValueError(
      f'{len(devices)} devices of kind {devices[0].device_kind!r} cannot be arranged as a mesh of {_described(shape)}: '
      'use all chips of a slice, one device per chip, and choose mesh.data, mesh.fsdp and mesh.tensor such that they '
      'divide its topology'
    ) from error


def _by_place(grid: np.ndarray) -> np.ndarray:
  """The devices of each fsdp axis in the order of the dimensions of a TPU's torus; JAX arranges some axes as a ring.

  `kernels.Parts` needs this order.
  """
  if not all(hasattr(device, 'coords') for device in grid.flat):
    return grid

  def place(column: np.ndarray) -> tuple[int, ...]:
    return getattr(column[0], 'slice_index', 0), *column[0].coords

  return np.stack([np.stack(sorted(replica, key=place)) for replica in grid])
