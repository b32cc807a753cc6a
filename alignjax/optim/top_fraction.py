"""The k-th largest magnitude of a tensor, found by counting alone.

Sorting a sharded tensor gathers it. Counting the entries at or above a candidate takes one pass over each device's
shard and an integer sum over devices, on any mesh, and the result is exact.

The bits of non-negative float32 numbers, read as integers, sort like the numbers. The threshold t is therefore an
integer, and the search maintains a bracket

  low < high,   #{bits(|x|) >= low} >= k > #{bits(|x|) >= high}

Each pass counts three candidates: the expected position of k, interpolated in the logarithm of the counts, and one on
either side of it at about the expected error. Starting from the threshold of the last merge, about five passes are
enough. If a pass does not halve the bracket, the next one divides it evenly, so 31 passes are enough for any tensor;
the first updates of Adam, all nearly equal in magnitude, take up to 20. The search ends when exactly k entries reach
`low`, because any number up to the k-th largest then gives the same result, or when low + 1 = high, because the entries
at `low` are then tied and are all kept.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax.optim import counting
from alignjax.types import Array

_TOP = 2**31 - 1  # above the bits of every float32, infinity included
_COARSE = 2**22  # half an octave: interpolation is unreliable in wider brackets
_STEP = 2**18  # in bits: 3 percent, about as far as a threshold moves between merges


class _Bracket(NamedTuple):
  """The ends of the search interval and the counts there; each int32, with the shape of the threshold."""

  low: Array
  low_count: Array
  high: Array
  high_count: Array
  stalled: Array  # bool: the last pass did not halve the bracket


def magnitude_bits(x: Array) -> Array:
  """int32 that sorts like |x|; NaN sorts above infinity. bfloat16 is converted to float32 first."""
  return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & jnp.int32(_TOP)


def kept_count(fraction: Array | float, size: int) -> Array | int:
  """k = max(1, int(fraction * size)), with the product rounded to float32 if the fraction is traced."""
  if isinstance(fraction, jax.Array):
    return jnp.clip(jnp.floor(fraction.astype(jnp.float32) * size).astype(jnp.int32), 1, size)
  return max(1, int(fraction * size))


def tensor_axes(x: Array, stacked: bool) -> tuple[int, ...]:
  """The axes of one tensor: all of them, or all but the first if `stacked`."""
  return tuple(range(1 if stacked else 0, x.ndim))


def threshold_shape(x: Array, stacked: bool) -> tuple[int, ...]:
  """The shape of `threshold`."""
  axes = tensor_axes(x, stacked)
  return tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))


def threshold(
  x: Array,
  fraction: Array | float,
  *,
  stacked: bool = False,
  previous: Array | None = None,
  known: Array | bool = False,
) -> Array:
  """The bits t such that `magnitude_bits(x) >= t` keeps the given fraction with the largest magnitude.

  If all magnitudes are distinct, exactly max(1, int(fraction * size)) entries are kept. Entries that tie with the
  smallest one kept are all kept.

  Args:
    x: a tensor with fewer than 2^31 entries.
    fraction: fraction of entries to keep, in (0, 1].
    stacked: whether the first axis indexes separate tensors, each with its own threshold.
    previous: an earlier result, from which the search starts; 0 for none. It does not affect the result.
    known: whether `previous` is already the result; then nothing is counted.

  Returns:
    int32, with every axis of x reduced to length 1, except the first if `stacked`.
  """
  axes, shape = tensor_axes(x, stacked), threshold_shape(x, stacked)
  size = math.prod(x.shape[axis] for axis in axes)
  previous = jnp.zeros(shape, jnp.int32) if previous is None else previous
  count = jnp.broadcast_to(jnp.asarray(kept_count(fraction, size), jnp.int32), shape)
  start = _Bracket(
    jnp.where(known, previous, 0),
    jnp.where(known, count, size),
    jnp.full(shape, _TOP, jnp.int32),
    jnp.zeros(shape, jnp.int32),
    jnp.zeros(shape, bool),
  )

  def searching(bracket: _Bracket) -> Array:
    return jnp.any((bracket.low_count > count) & (bracket.high - bracket.low > 1))

  def narrow(bracket: _Bracket) -> _Bracket:
    tried, before = _candidates(bracket, count, previous), bracket.high - bracket.low

    def reaches(x: Array) -> counting.Terms:
      return [magnitude_bits(x) >= candidate for candidate in tried], []

    for candidate, reached in zip(tried, counting.sums(reaches, [x], axes)[0], strict=True):
      bracket = _narrowed(bracket, candidate, reached, count)
    return bracket._replace(stalled=bracket.high - bracket.low > before // 2)

  return jax.lax.while_loop(searching, narrow, start).low


def _candidates(bracket: _Bracket, count: Array, previous: Array) -> list[Array]:
  """Three candidates strictly inside the bracket."""
  low, width = bracket.low, bracket.high - bracket.low
  near, deviation = _expected(bracket, count)
  begins, evenly = (previous > 0) & (width == _TOP), bracket.stalled | (width > _COARSE)
  tried = []
  for step in (-1, 0, 1):
    fine = jnp.clip(near + step * deviation, 0.0, width.astype(jnp.float32)).astype(jnp.int32)
    offset = jnp.where(evenly, jnp.maximum(width // 4, 1) * (step + 2), fine)
    tried.append(jnp.clip(jnp.where(begins, previous + step * _STEP, low + offset), low + 1, bracket.high - 1))
  return tried


def _expected(bracket: _Bracket, count: Array) -> tuple[Array, Array]:
  """The expected distance of the k-th entry from `low`, and the error of that estimate.

  Tail counts decay roughly exponentially. Of c entries inside the bracket, the number above a point that a fraction f
  of them is expected to exceed has a standard deviation of sqrt(f (1 - f) c).
  """
  width = (bracket.high - bracket.low).astype(jnp.float32)
  above = jnp.maximum(bracket.high_count, 1).astype(jnp.float32)
  inside = jnp.maximum(bracket.low_count - bracket.high_count, 1).astype(jnp.float32)
  excess = (bracket.low_count - count).astype(jnp.float32) + 0.5
  share = jnp.log1p(excess / (count.astype(jnp.float32) - 0.5)) / jnp.log1p(inside / above)
  deviation = 1.5 * jnp.sqrt(jnp.clip(share * (1.0 - share), 0.0) * inside) + 0.5
  return width * share, jnp.maximum(1.0, width * deviation / inside)


def _narrowed(bracket: _Bracket, candidate: Array, reached: Array, count: Array) -> _Bracket:
  """The bracket with one end moved to the candidate, if that narrows it."""
  enough = reached >= count
  raises, lowers = enough & (candidate > bracket.low), ~enough & (candidate < bracket.high)
  return bracket._replace(
    low=jnp.where(raises, candidate, bracket.low),
    low_count=jnp.where(raises, reached, bracket.low_count),
    high=jnp.where(lowers, candidate, bracket.high),
    high_count=jnp.where(lowers, reached, bracket.high_count),
  )
