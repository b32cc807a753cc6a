"""Counts and sums over large tensors: exact or accurate, fast on every backend, and without moving the tensor.

Sums run along one axis first, so that no running float32 sum meets millions of summands. Truth values are packed
several to an integer before they are added: a reduction of what lies in memory is fast everywhere, but XLA for CPU adds
values that are computed on the way one by one. The barriers keep those two apart.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from alignjax.types import Array

_BITS = 31  # of a packed integer: the sign stays clear
_SHORTEST = 64  # an axis below this length would leave much to be added afterwards


def counts(conditions: Sequence[Array], axes: Sequence[int]) -> list[Array]:
  """How many entries of each condition hold, int32, with the `axes` kept at length 1.

  Args:
    conditions: bool arrays of one shape, of fewer than 2^31 entries.
    axes: over which to count.
  """
  shape, conditions = conditions[0].shape, list(conditions)
  if not axes:
    return [condition.astype(jnp.int32) for condition in conditions]
  along = _axis(shape, axes)
  field = max(shape[along].bit_length(), 1)
  together, found = max(_BITS // field, 1), []
  for start in range(0, len(conditions), together):
    part = conditions[start : start + together]
    packed = sum(condition.astype(jnp.int32) << (field * place) for place, condition in enumerate(part))
    packed = jnp.sum(jax.lax.optimization_barrier(packed), axis=along, keepdims=True)
    for place in range(len(part)):
      one = (packed >> (field * place)) & (2**field - 1)
      found.append(jnp.sum(one, axis=tuple(axes), keepdims=True))
  return found


def total(x: Array, axes: Sequence[int]) -> Array:
  """The sum over `axes`, kept at length 1."""
  if not axes:
    return x
  rows = jnp.sum(x, axis=_axis(x.shape, axes), keepdims=True)
  return jnp.sum(jax.lax.optimization_barrier(rows), axis=tuple(axes), keepdims=True)


def _axis(shape: tuple[int, ...], axes: Sequence[int]) -> int:
  """The shortest axis that is long enough, or else the longest."""
  long_enough = [axis for axis in axes if shape[axis] >= _SHORTEST]
  return min(long_enough, key=lambda axis: shape[axis]) if long_enough else max(axes, key=lambda axis: shape[axis])
