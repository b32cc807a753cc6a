"""The k entries of largest magnitude of a tensor, found by counting alone.

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
at `low` are then tied.

Tied entries are ordered by pseudorandom ranks, all distinct, that depend only on a key and on the position. A second
search of the same kind finds the rank that keeps as many of them as are missing. Without ties it takes no pass.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax.optim import counting, random_bits
from alignjax.types import Array

COUNTED = 2**31  # a tensor must have fewer entries, because they are counted in int32
_TOP = 2**31 - 1  # above the bits of every float32, infinity included
_RANKS = 2.0**31 - 2.0**7  # the number of ranks, rounded to a float32 that fits into int32
_COARSE = 2**22  # half an octave: interpolation is unreliable in wider brackets
_STEP = 2**18  # in bits: 3 percent, about as far as a threshold moves between merges


class Cut(NamedTuple):
  """The smallest entry kept: larger magnitudes are kept, and equal ones if their rank is at least as high.

  Each int32, with every axis of the tensor reduced to length 1, except the first for stacked tensors.
  """

  bits: Array  # of the magnitude
  rank: Array  # among entries of this magnitude; 0 keeps all of them


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


def no_cut(x: Array, stacked: bool) -> Cut:
  """The cut that keeps everything."""
  axes = tensor_axes(x, stacked)
  shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
  return Cut(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))


def keeps(x: Array, words: Array, cut: Cut) -> Array:
  """bool, shaped like x: the entries that a cut keeps, given the key that it was found with."""
  bits = magnitude_bits(x)
  return (bits > cut.bits) | ((bits == cut.bits) & (random_bits.ranks(words, x.shape) >= cut.rank))


def find(
  x: Array,
  fraction: Array | float,
  words: Array,
  *,
  stacked: bool = False,
  previous: Cut | None = None,
  known: Array | bool = False,
) -> Cut:
  """The cut that keeps exactly `kept_count(fraction, size)` entries: those of largest magnitude.

  Args:
    x: a tensor with fewer than 2^31 entries.
    fraction: fraction of entries to keep, in (0, 1].
    words: [2] uint32, the key of the order among entries of equal magnitude.
    stacked: whether the first axis indexes separate tensors, each with its own cut.
    previous: an earlier result, from which the search starts. It does not affect what is kept.
    known: whether `previous` is already the result; then nothing is counted.
  """
  axes, none = tensor_axes(x, stacked), no_cut(x, stacked)
  size = math.prod(x.shape[axis] for axis in axes)
  previous = none if previous is None else previous
  count = jnp.broadcast_to(jnp.asarray(kept_count(fraction, size), jnp.int32), none.bits.shape)

  def reach(tried: Sequence[Array]) -> list[Array]:
    return counting.sums(lambda x: ([magnitude_bits(x) >= bits for bits in tried], []), [x], axes)[0]

  start = _whole(jnp.where(known, previous.bits, 0), jnp.where(known, count, size))
  found = _search(reach, start, count, _Guess(previous.bits, jnp.full_like(count, _STEP)))

  tied = found.low_count > count  # then low + 1 = high
  among = jnp.where(tied, found.low_count - found.high_count, 0)
  missing = jnp.where(tied, count - found.high_count, size + 1)  # no rank is reached by so many

  def reach_tied(tried: Sequence[Array]) -> list[Array]:
    def terms(x: Array, ranks: Array) -> counting.Terms:
      equal = magnitude_bits(x) == found.low
      return [equal & (ranks >= rank) for rank in tried], []

    return counting.sums(terms, [x, random_bits.ranks(words, x.shape)], axes)[0]

  start = _whole(jnp.where(known, previous.rank, 0), among)
  return Cut(found.low, _search(reach_tied, start, missing, _of_uniform(missing, among)).low)


class _Guess(NamedTuple):
  """Where a search starts; each int32."""

  value: Array  # 0 for none
  spread: Array


def _of_uniform(count: Array, among: Array) -> _Guess:
  """The expected rank of the count-th largest of `among` ranks, and twice its standard deviation."""
  among = jnp.maximum(among, 1).astype(jnp.float32)
  share = jnp.clip(count.astype(jnp.float32) / among, 0.0, 1.0)
  value = (_RANKS * (1.0 - share)).astype(jnp.int32)
  spread = (_RANKS * jnp.minimum(2.0 * jnp.sqrt(share * (1.0 - share) / among), 1.0)).astype(jnp.int32)
  return _Guess(value, jnp.clip(spread, 1, _TOP - value))


def _whole(low: Array, low_count: Array) -> _Bracket:
  """The bracket before the first pass."""
  zero = jnp.zeros_like(low)
  return _Bracket(low, low_count, jnp.full_like(low, _TOP), zero, zero.astype(bool))


def _search(reach: Callable[[Sequence[Array]], list[Array]], start: _Bracket, count: Array, guess: _Guess) -> _Bracket:
  """Narrows a bracket until exactly `count` entries reach `low`, or low + 1 = high.

  Args:
    reach: counts the entries that reach each of the candidates.
    start: the bracket before the first pass.
    count: the number of entries wanted, from each tensor.
    guess: the candidates of the first pass.
  """

  def searching(bracket: _Bracket) -> Array:
    return jnp.any((bracket.low_count > count) & (bracket.high - bracket.low > 1))

  def narrow(bracket: _Bracket) -> _Bracket:
    tried, before = _candidates(bracket, count, guess), bracket.high - bracket.low
    for candidate, reached in zip(tried, reach(tried), strict=True):
      bracket = _narrowed(bracket, candidate, reached, count)
    return bracket._replace(stalled=bracket.high - bracket.low > before // 2)

  return jax.lax.while_loop(searching, narrow, start)


def _candidates(bracket: _Bracket, count: Array, guess: _Guess) -> list[Array]:
  """Three candidates strictly inside the bracket."""
  low, width = bracket.low, bracket.high - bracket.low
  near, deviation = _expected(bracket, count)
  begins, evenly = (guess.value > 0) & (width == _TOP), bracket.stalled | (width > _COARSE)
  tried = []
  for step in (-1, 0, 1):
    fine = jnp.clip(near + step * deviation, 0.0, width.astype(jnp.float32)).astype(jnp.int32)
    offset = jnp.where(evenly, jnp.maximum(width // 4, 1) * (step + 2), fine)
    tried.append(
      jnp.clip(jnp.where(begins, guess.value + step * guess.spread, low + offset), low + 1, bracket.high - 1)
    )
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
