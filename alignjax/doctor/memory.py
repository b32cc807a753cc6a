"""Estimates the memory that a run needs on each device, and compares it with what the device has."""

from collections.abc import Sequence
import dataclasses
import math
import os
from typing import Any

import jax

from alignjax.data.batches import shapes
from alignjax.doctor import findings
from alignjax.training.state import Frozen, TrainState
from alignjax.types import PreferenceBatch

MOST = 0.9  # share of a device's memory that a run may use without a warning

Part = tuple[str, int]
"""A use of memory, and its bytes on each device."""


def bytes_on_device(tree: Any) -> int:
  """Bytes of a tree of placed arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def of_device(device: jax.Device) -> int | None:
  """Bytes of memory of a device: as its backend reports it, or a CPU device's share of the host; None if unknown."""
  stated = (device.memory_stats() or {}).get('bytes_limit')
  if stated or device.platform != 'cpu':
    return stated
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()


def of_state(state: TrainState, frozen: Frozen) -> list[Part]:
  """The arrays that a run keeps, and the gradients. Activations are not included."""
  return [
    ('parameters', bytes_on_device(state.params)),
    ('gradients', bytes_on_device(state.params)),
    ('optimizer state', bytes_on_device(state.opt_state)),
    ('reference, base and delta', bytes_on_device(frozen)),
  ]


def of_program(compiled: jax.stages.Compiled) -> list[Part]:
  """The memory of a compiled training step, activations included; empty if the backend does not report it."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return []
  return [('arguments', analysis.argument_size_in_bytes), ('temporaries', analysis.temp_size_in_bytes)]


def abstract_batch(batch: PreferenceBatch, bucket: shapes.Bucket) -> PreferenceBatch:
  """The shapes and shardings that `batch` would have in another bucket, to compile a step without data."""
  prompt, response = bucket

  def shape(leaf: jax.Array, axis: int, size: int) -> jax.ShapeDtypeStruct:
    sizes = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(sizes, leaf.dtype, sharding=leaf.sharding)

  return dataclasses.replace(
    batch,
    prompt=shape(batch.prompt, 1, prompt),
    response=shape(batch.response, 2, response),
    cached={name: shape(value, 2, response) for name, value in batch.cached.items()},
  )


def examine(parts: Sequence[Part], available: int | None, error: float = 0.0) -> list[findings.Finding]:
  """Examines whether a run fits into a device.

  Args:
    parts: what the run keeps on each device, in bytes.
    available: bytes of memory of a device; None if unknown.
    error: relative error of the parts, if they are estimated.
  """
  needed = sum(size for _, size in parts)
  listed = ' + '.join(f'{in_units(size)} of {what}' for what, size in parts if size)
  seen = f'{in_units(needed)} on each device ({listed})'
  if available is None:
    return [findings.Finding('memory', findings.NOTE, seen, 'The device does not report how much memory it has')]
  seen += f', which has {in_units(available)}'
  if needed > (1 + error) * available:
    advice = 'Split the model over more devices (config.mesh), or use smaller batches (config.microbatches)'
    return [findings.Finding('memory', findings.ERROR, seen, advice)]
  if needed > MOST * available:
    advice = 'Little is left for what the compiler adds: use more microbatches (alignjax plan tries out other changes)'
    return [findings.Finding('memory', findings.WARNING, seen, advice)]
  return [findings.Finding('memory', findings.NOTE, seen, 'This fits')]


def in_units(count: float) -> str:
  """Bytes as text."""
  return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.1f} MiB'
