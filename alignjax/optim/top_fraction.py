"""The k-th largest magnitude of a tensor, found by counting alone.

Sorting a tensor that is split over devices gathers it. Counting how many entries reach a candidate costs one pass over
what each device holds and a sum of integers over devices, whatever the mesh, and the answer is exact.

The bits of a non-negative float32, read as an integer, are in the order of the numbers. So the threshold t is an
integer, and the search keeps a bracket

  low < high,   #{bits(|x|) >= low} >= k > #{bits(|x|) >= high}

Each pass counts three candidates: the place where k should be, by interpolation of the logarithm of the counts, and one
on either side of it, about as far away as it may be off. Begun at the threshold of the last merge, about five passes
are enough. Where a pass does not halve the bracket, the next one divides it evenly, so that 31 passes are enough for
any tensor: those of the first updates of Adam, all nearly equal in magnitude, take up to 20. The search ends
where exactly k entries reach `low`, for then any number up to the k-th largest is as good, or where low + 1 = high, for
then several entries tie at `low`: all of them reach it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax.optim import counting
from alignjax.types import Array

_TOP = 2**31 - 1  # above the bits of every float32, infinity included
_COARSE = 2**22  # half a factor of two: in a wider bracket, interpolation says nothing
_STEP = 2**18  # of bits: 3 percent, about as far as a threshold moves from merge to merge


class _Bracket(NamedTuple):
  """Bits, and how many entries reach them; each int32, with the shape of the threshold."""

  low: Array
  low_count: Array
  high: Array
  high_count: Array
  stalled: Array  # bool: has the last pass left more than half of it?


def magnitude_bits(x: Array) -> Array:
  """int32 in the order of |x|; NaN is above infinity. A bfloat16 is read as the float32 that it is."""
  return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & jnp.int32(_TOP)


def kept_count(fraction: Array | float, size: int) -> Array | int:
  """k = max(1, int(fraction * size)); to float32 rounding of the product where the fraction is traced."""
  if isinstance(fraction, jax.Array):
    return jnp.clip(jnp.floor(fraction.astype(jnp.float32) * size).astype(jnp.int32), 1, size)
  return max(1, int(fraction * size))


def tensor_axes(x: Array, stacked: bool) -> tuple[int, ...]:
  """The axes of one tensor: all, or all but the first where it counts separate tensors."""
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
  """The bits t such that `magnitude_bits(x) >= t` keeps the fraction of largest magnitude.

  Exactly max(1, int(fraction * size)) entries are kept where magnitudes are distinct. Entries that tie with the
  smallest one kept are all kept.

  Args:
    x: a tensor of fewer than 2^31 entries.
    fraction: in (0, 1].
    stacked: is the first axis one of separate tensors, each with a threshold of its own?
    previous: an earlier answer, where the search begins; 0 for none. What is kept does not depend on it.
    known: is `previous` the answer itself? Then nothing is counted.

  Returns:
    int32, with all axes of x of length 1, the first one excepted if `stacked`.
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
  """Three places strictly inside the bracket."""
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
  """How far from `low` the k-th entry should be, and how far off that may well be.

  Counts of the tail of a distribution fall about exponentially. Of c entries between the ends, the number above a place
  that a share f of them should exceed deviates by sqrt(f (1 - f) c).
  """
  width = (bracket.high - bracket.low).astype(jnp.float32)
  above = jnp.maximum(bracket.high_count, 1).astype(jnp.float32)
  inside = jnp.maximum(bracket.low_count - bracket.high_count, 1).astype(jnp.float32)
  excess = (bracket.low_count - count).astype(jnp.float32) + 0.5
  share = jnp.log1p(excess / (count.astype(jnp.float32) - 0.5)) / jnp.log1p(inside / above)
  deviation = 1.5 * jnp.sqrt(jnp.clip(share * (1.0 - share), 0.0) * inside) + 0.5
  return width * share, jnp.maximum(1.0, width * deviation / inside)


def _narrowed(bracket: _Bracket, candidate: Array, reached: Array, count: Array) -> _Bracket:
  """The bracket with one of its ends moved to the candidate, if that is an improvement."""
  enough = reached >= count
  raises, lowers = enough & (candidate > bracket.low), ~enough & (candidate < bracket.high)
  return bracket._replace(
    low=jnp.where(raises, candidate, bracket.low),
    low_count=jnp.where(raises, reached, bracket.low_count),
    high=jnp.where(lowers, candidate, bracket.high),
    high_count=jnp.where(lowers, reached, bracket.high_count),
  )
