"""Copies arrays from the devices to the host of process 0, piece by piece.

A gathered array is whole on every device. A model is too large for that, and so may one of its stacked leaves be.
Therefore an array leaves the devices in pieces of at most `PIECE` bytes, each freed before the next one is gathered.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import operator
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from alignjax.types import Array

PIECE = 128 * 2**20  # largest piece in bytes, unless one row is larger; gathering takes up to 3 times as much


@dataclasses.dataclass(frozen=True)
class Deferred:
  """An array on disk that is read when it is written elsewhere.

  Attributes:
    shape: its shape.
    dtype: its dtype.
    load: reads it; returns an array, or a kernel with adapters or quantised.
    checksum: the checksum of the array, if it is known.
  """

  shape: tuple[int, ...]
  dtype: Any
  load: Callable[[], Any]
  checksum: int | None = None

  def astype(self, dtype: Any) -> 'Deferred':
    """Returns the array unchanged.

    Raises:
      ValueError: it has another dtype.
    """
    if dtype != self.dtype:
      raise ValueError(f'a deferred array of {self.dtype} cannot be read as {dtype}')
    return self


def loaded(tree: Any) -> Any:
  """A tree whose deferred arrays are loaded."""
  return jax.tree.map(lambda leaf: leaf.load() if isinstance(leaf, Deferred) else leaf, tree)


def fetch(array: Any, start: Sequence[int], sizes: Sequence[int]) -> np.ndarray | None:
  """Copies the block array[start : start + sizes] to the host of process 0.

  Args:
    array: an array with any sharding. If it is sharded over processes, all of them must call this function.
    start: the index of the first entry.
    sizes: the shape of the block.

  Returns:
    The block on process 0; None on the other processes.
  """
  start, sizes = tuple(start), tuple(sizes)
  if not isinstance(array, jax.Array):
    return np.asarray(array)[_part(start, sizes)] if jax.process_index() == 0 else None
  if local(array):
    return _from_shards(array, start, sizes) if jax.process_index() == 0 else None
  piece = gather(array, start, sizes).block_until_ready()  # no second piece is in flight
  return np.asarray(piece.addressable_data(0)) if jax.process_index() == 0 else None


def fetch_all(array: Any, place: tuple[int, ...] = ()) -> np.ndarray | None:
  """Copies array[place] to the host of process 0, in blocks of rows. Returns: see `fetch`."""
  shape = array.shape[len(place) :]
  whole = np.empty(shape, array.dtype) if jax.process_index() == 0 else None
  rows, rest = (shape or (1,))[0], shape[1:]
  step = max(1, PIECE // max(1, math.prod(rest) * array.dtype.itemsize))
  for first in range(0, rows, step):
    count = min(step, rows - first)
    start, sizes = ((first, *(0 for _ in rest)), (count, *rest)) if shape else ((), ())
    block = fetch(array, (*place, *start), (*(1 for _ in place), *sizes))
    if whole is not None:
      whole[slice(first, first + count) if shape else ()] = block.reshape(sizes)
  return whole


def local(array: Array) -> bool:
  """Whether this process has all of an array, so that its blocks need not be gathered."""
  return array.is_fully_addressable


def gather(array: Array, start: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
  """The block array[start : start + sizes], whole on every device that holds a part of the array."""
  if isinstance(array.sharding, NamedSharding):
    return _gather_program(array.sharding, array.ndim, sizes)(array, np.asarray(start, np.int32))
  return multihost_utils.process_allgather(_slice(array, start, sizes), tiled=True)


def _from_shards(array: Array, start: tuple[int, ...], sizes: tuple[int, ...]) -> np.ndarray:
  """The block array[start : start + sizes], copied from the shards that hold parts of it."""
  whole = np.empty(sizes, array.dtype)
  for shard in array.addressable_shards:
    if shard.replica_id:
      continue
    origin = [part.indices(size)[0] for part, size in zip(shard.index, array.shape, strict=True)]
    ends = [at + size for at, size in zip(origin, shard.data.shape, strict=True)]
    first = tuple(map(max, start, origin))
    counts = tuple(min(at + size, end) - begin for at, size, end, begin in zip(start, sizes, ends, first, strict=True))
    if all(count > 0 for count in counts):
      part = counts != shard.data.shape  # a whole shard needs no program
      held = _slice(shard.data, tuple(map(operator.sub, first, origin)), counts) if part else shard.data
      whole[_part(tuple(map(operator.sub, first, start)), counts)] = held
  return whole


def _part(start: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[slice, ...]:
  return tuple(slice(first, first + size) for first, size in zip(start, sizes, strict=True))


@functools.partial(jax.jit, static_argnums=2)
def _slice(array: Array, start: Array, sizes: tuple[int, ...]) -> Array:
  return jax.lax.dynamic_slice(array, [start[axis] for axis in range(len(sizes))], sizes)


@functools.lru_cache(maxsize=256)
def _gather_program(sharding: NamedSharding, ndim: int, sizes: tuple[int, ...]) -> Any:
  """The program of `gather`, written for each device, so that no device ever holds more than the block.

  The compiler would gather the whole array for a slice along a sharded axis that begins at a variable index.
  """
  mesh = sharding.mesh
  names = [_as_tuple(name) for name in sharding.spec] + [()] * (ndim - len(sharding.spec))
  parts = [math.prod(mesh.shape[name] for name in axis) for axis in names]

  def local(shard: Array, start: Array) -> Array:
    dtype, shard = shard.dtype, _bits(shard)
    whole = [size == own * count for size, own, count in zip(sizes, shard.shape, parts, strict=True)]
    for axis in range(ndim):  # nothing is gathered before every axis is cut
      if parts[axis] == 1:
        shard = jax.lax.dynamic_slice_in_dim(shard, start[axis], sizes[axis], axis)
      elif not whole[axis]:
        shard = _select(shard, start[axis], sizes[axis], axis, names[axis])
    for axis in range(ndim):
      if parts[axis] > 1 and whole[axis]:
        shard = jax.lax.all_gather(shard, names[axis], axis=axis, tiled=True)
    return jax.lax.bitcast_convert_type(shard, dtype)

  specs = (sharding.spec, PartitionSpec())
  return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False))


def _as_tuple(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else names or ()


def _bits(array: Array) -> Array:
  """The bits of an array as integers, which no device rounds: -0.0 + 0.0 = 0.0, and some flush subnormal numbers."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[array.dtype.itemsize]
  return jax.lax.bitcast_convert_type(array, unsigned)


def _select(shard: Array, start: Array, size: int, axis: int, names: tuple[str, ...]) -> Array:
  """Rows start : start + size of an axis that is sharded over `names`.

  Each device contributes the rows that it holds, and 0 for the others.
  """
  own = shard.shape[axis]
  place = start + jnp.arange(size) - jax.lax.axis_index(names) * own
  rows = jnp.take(shard, jnp.clip(place, 0, own - 1), axis=axis)
  held = jnp.expand_dims((place >= 0) & (place < own), [other for other in range(shard.ndim) if other != axis])
  parts = jnp.where(held, rows, 0).astype(jnp.promote_types(shard.dtype, jnp.uint32))
  return jax.lax.psum(parts, names).astype(shard.dtype)
