"""Sums of elementwise expressions over large tensors, in one pass over memory and without moving the tensor.

On GPU and TPU, XLA fuses a sum with the computation of its summands. On CPU it does too, but then adds serially. There,
an axis is divided into parts, and a loop adds whole blocks to an accumulator that fits in the cache. Each part takes
entries from all along the axis, so a tensor that is sharded along it needs no communication. Booleans are packed,
several per integer, before they are added.
"""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp

from alignjax.types import Array

Terms = tuple[Sequence[Array], Sequence[Array]]

_BITS = 31  # usable bits of a packed int32; the sign bit stays clear
_CACHED = 2**19  # target number of accumulator entries
_SLACK = 4  # the accumulator may be smaller by up to this factor, if that divides the axis better


def sums(function: Callable[..., Terms], arrays: Sequence[Array], axes: Sequence[int]) -> tuple[list[Array], ...]:
  """Counts of conditions and sums of values, with the `axes` kept at length 1.

  Args:
    function: an elementwise function of the arrays (or of equal parts of them) that returns (conditions, values): bool
      and float32 arrays with the shape of its arguments. It may close over arrays with length 1 along `axes`.
    arrays: arrays with the same shape, and fewer than 2^31 entries along `axes`.
    axes: the axes to sum over.

  Returns:
    (counts, totals): exact int32 for each condition, float32 for each value.
  """
  axes = tuple(axes)

  def at_once(*arrays: Array) -> tuple[list[Array], ...]:
    return tuple([_sum(x, axes) for x in terms] for terms in function(*arrays))

  division = _division(arrays[0].shape, axes)
  if division is None:
    return at_once(*arrays)
  return jax.lax.platform_dependent(
    *arrays, cpu=lambda *arrays: _in_parts(function, arrays, axes, *division), default=at_once
  )


def _division(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int] | None:
  """An axis and the number of parts to divide it into; None if that is unnecessary or no axis divides well.

  The last axis is never divided, because its entries are contiguous. The parts have as many factors of 2 as possible,
  so that the number of devices along the axis divides them.
  """
  need = math.prod(shape) / _CACHED
  if need <= 1:
    return None
  ways = [
    (axis, parts)
    for axis in axes
    if axis != len(shape) - 1
    for parts in range(math.ceil(need), min(shape[axis], int(_SLACK * need)) + 1)
    if shape[axis] % parts == 0
  ]

  def worth(way: tuple[int, int]) -> tuple[int, int]:
    rest = shape[way[0]] // way[1]
    return rest & -rest, -way[1]

  return max(ways, key=worth, default=None)


def _in_parts(
  function: Callable[..., Terms], arrays: Sequence[Array], axes: tuple[int, ...], axis: int, parts: int
) -> tuple[list[Array], ...]:
  shape = arrays[0].shape
  divided = [x.reshape(*shape[:axis], shape[axis] // parts, parts, *shape[axis + 1 :]) for x in arrays]
  field = parts.bit_length()  # bits that hold a count of up to `parts`
  together = max(_BITS // field, 1)

  def part(index: Array | int) -> Terms:
    blocks = [jax.lax.dynamic_index_in_dim(x, index, axis + 1, keepdims=False) for x in divided]
    conditions, values = function(*blocks)
    groups = [conditions[start : start + together] for start in range(0, len(conditions), together)]
    packed = [sum(x.astype(jnp.int32) << (field * place) for place, x in enumerate(group)) for group in groups]
    return packed, list(values)

  start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, 0))
  packed, values = jax.lax.fori_loop(0, parts, lambda i, total: jax.tree.map(jnp.add, total, part(i)), start)
  unpacked = [(x >> (field * place)) & (2**field - 1) for x in packed for place in range(together)]
  conditions, _ = jax.eval_shape(function, *arrays)
  return [_sum(x, axes) for x in unpacked[: len(conditions)]], [_sum(x, axes) for x in values]


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
  return jnp.sum(x, axis=axes, keepdims=True, dtype=jnp.int32 if x.dtype == bool else None)
