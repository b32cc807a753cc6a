"""The merge of one tensor: which entries are reserved, who wins an election, and where rounding takes the parameter."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alignjax.optim import consensus, counting, random_bits, top_fraction
from alignjax.types import Array

_CHOICES = {
  'keep': ('random', 'largest'),
  'elect': consensus.ELECTIONS,
  'mask': ('fresh', 'fixed'),
  'rescale': ('none', 'inverse', 'l1'),
}


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One tensor on its way through a merge."""

  index: int
  stacked: bool
  param: Array
  update: Array
  delta: Array
  residual: Array | None
  cache: Array | None
  thresholds: tuple[Array, Array] | None

  @property
  def displacement(self) -> Array:
    """D, float32: of this step, or since the last merge."""
    update = self.update.astype(jnp.float32)
    return update if self.cache is None else self.cache + update


class Reservation(NamedTuple):
  """What is kept of D and of tau."""

  masks: Array | None = None  # uint8, a bit for each of the two, with keep='random'; None keeps all
  thresholds: tuple[Array, Array] | None = None  # bits of magnitudes, with keep='largest'
  scales: tuple[Array | float, Array | float] = (1.0, 1.0)  # of what is kept


@dataclasses.dataclass(frozen=True)
class Rule:
  """The arguments of `online_merge`, and what they do to one tensor."""

  reserve: Array | float
  alpha: Array | float
  keep: str
  elect: str
  mask: str
  rescale: str
  clip: float | None
  every: int

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(f'{name}={getattr(self, name)!r} is not one of {", ".join(map(repr, choices))}')
    # inject_hyperparams hands over arrays, whose values are not known here.
    if not isinstance(self.reserve, jax.Array) and not 0 < self.reserve <= 1:
      raise ValueError(f'reserve={self.reserve} must be in (0, 1]: the share of entries that are kept')
    if not isinstance(self.alpha, jax.Array) and not 0 <= self.alpha <= 1:
      raise ValueError(f'alpha={self.alpha} must be in [0, 1]: the weight of the reference delta')
    if not isinstance(self.every, int) or self.every < 1:
      raise ValueError(
        f'every={self.every!r} must be an int of at least 1; '
        "where optax.inject_hyperparams makes an array of it, name it: static_args=('every',)"
      )
    if self.clip is not None and not isinstance(self.clip, jax.Array) and not self.clip > 0:
      raise ValueError(f'clip={self.clip} must be positive, or None for no bound')
    for name, default in (('mask', 'fresh'), ('rescale', 'none')):
      if self.keep == 'largest' and getattr(self, name) in ('fixed', 'inverse'):
        raise ValueError(f"{name}={getattr(self, name)!r} is for keep='random'; with 'largest' leave it {default!r}")

  def reserve_of(self, leaf: Leaf, key: Array, count: Array) -> Reservation:
    """Decides what is kept of one tensor at the merge after `count` others."""
    if self.keep == 'random':
      reservation = Reservation(masks=self._masks(leaf, key, count))
    else:
      reservation = Reservation(thresholds=self._thresholds(leaf, count))
    if self.rescale == 'inverse':
      return reservation._replace(scales=(1.0 / self.reserve, 1.0 / self.reserve))
    return reservation._replace(scales=self._l1(leaf, reservation)) if self.rescale == 'l1' else reservation

  def summands(self, leaf: Leaf, reservation: Reservation) -> consensus.Summands:
    """The two terms of the merge."""
    return self._summands(leaf.displacement, leaf.delta, reservation)

  def sums(self, leaf: Leaf, reservation: Reservation) -> dict[str, Array]:
    """What metrics need to know of this tensor, [] each."""

    def terms(update: Array, delta: Array, part: Reservation) -> counting.Terms:
      return consensus.terms(update, self._summands(update, delta, part), delta)

    counts, totals = _sums(terms, leaf, reservation, range(leaf.param.ndim))
    return consensus.named(leaf.param.size, [jnp.squeeze(x) for x in (*counts, *totals)])

  def _masks(self, leaf: Leaf, key: Array, count: Array) -> Array | None:
    if not isinstance(self.reserve, jax.Array) and self.reserve >= 1:
      return None
    words = random_bits.bits(random_bits.fold(key, leaf.index, count), leaf.param.shape)
    if self.mask == 'fixed':
      words = (words[0], random_bits.bits(random_bits.fold(key, leaf.index, 0), leaf.param.shape)[1])
    return random_bits.packed([random_bits.bernoulli(word, self.reserve) for word in words])

  def _thresholds(self, leaf: Leaf, count: Array) -> tuple[Array, Array]:
    options = {'fraction': self.reserve, 'stacked': leaf.stacked}
    # tau does not change, nor does its threshold, unless the share of entries that it keeps may.
    known = jnp.asarray(False) if isinstance(self.reserve, jax.Array) else count > 0
    return (
      top_fraction.threshold(leaf.displacement, previous=leaf.thresholds[0], **options),
      top_fraction.threshold(leaf.delta, previous=leaf.thresholds[1], known=known, **options),
    )

  def _l1(self, leaf: Leaf, reservation: Reservation) -> tuple[Array, Array]:
    """What restores the sums of magnitudes of each tensor."""

    def terms(update: Array, delta: Array, part: Reservation) -> counting.Terms:
      return [], [jnp.abs(x) for x in (update, delta, *_kept(update, delta, part))]

    axes = top_fraction.tensor_axes(leaf.param, leaf.stacked)
    _, (*before, update, delta) = _sums(terms, leaf, reservation, axes)
    return tuple(
      jnp.where(after > 0, all_ / jnp.where(after > 0, after, 1.0), 1.0)
      for all_, after in zip(before, (update, delta), strict=True)
    )

  def _summands(self, update: Array, delta: Array, reservation: Reservation) -> consensus.Summands:
    kept, drawn = _kept(update, delta, reservation)
    kept, drawn = (
      x if self.rescale == 'none' else x * s for x, s in zip((kept, drawn), reservation.scales, strict=True)
    )
    drawn = drawn if self.clip is None else jnp.clip(drawn, -self.clip, self.clip)
    return consensus.elected(kept, drawn, self.alpha, self.elect)


def _sums(
  function: Callable[[Array, Array, Reservation], counting.Terms],
  leaf: Leaf,
  reservation: Reservation,
  axes: Sequence[int],
) -> tuple[list[Array], ...]:
  """`counting.sums` of a function of D, tau and what is reserved of them."""

  def terms(update: Array, delta: Array, *masks: Array) -> counting.Terms:
    part = reservation._replace(masks=masks[0]) if masks else reservation
    return function(update, delta.astype(jnp.float32), part)

  masks = [] if reservation.masks is None else [reservation.masks]
  return counting.sums(terms, [leaf.displacement, leaf.delta, *masks], axes)


def _kept(update: Array, delta: Array, reservation: Reservation) -> tuple[Array, Array]:
  """The reserved entries of D and tau, float32, before any scaling; 0 elsewhere."""
  both = (update, delta.astype(jnp.float32))
  if reservation.masks is not None:
    masks = random_bits.unpacked(reservation.masks, 2)
  elif reservation.thresholds is not None:
    masks = [top_fraction.magnitude_bits(x) >= t for x, t in zip(both, reservation.thresholds, strict=True)]
  else:
    return both
  return tuple(jnp.where(mask, x, 0.0) for mask, x in zip(masks, both, strict=True))


def rounded(x: Array, dtype: Any) -> Array:
  """float32 with the values that a float of fewer bits can take: the compiler may undo a pair of conversions."""
  info = jnp.finfo(dtype)
  return x if info.bits >= 32 else jax.lax.reduce_precision(x, info.nexp, info.nmant)


def landed(leaf: Leaf, part: Array, drift: Array) -> tuple[Array, Array | None]:
  """The update that takes the parameter where it belongs after rounding, and the drift that is still owed."""
  out = jnp.promote_types(leaf.update.dtype, leaf.param.dtype)
  if leaf.residual is None:
    total = part + drift
    return (total if leaf.cache is None else total - leaf.cache).astype(out), None
  applied = _applied(leaf, part, drift).astype(out)
  # First the update, then the residual, then (by the caller) the parameters: only in this order can the compiler write
  # all of them in place. It would copy old parameters and old residuals otherwise.
  param, residual, applied = jax.lax.optimization_barrier((leaf.param, leaf.residual, applied))
  owed = _owed(dataclasses.replace(leaf, param=param, residual=residual), part, drift)
  return jax.lax.optimization_barrier((applied, owed))


def _places(leaf: Leaf, part: Array, drift: Array) -> tuple[Array, Array, Array]:
  """Where the parameter would be without drift, where it should be with all drift that is owed, and this drift."""
  param = leaf.param.astype(jnp.float32)
  plain = rounded((param if leaf.cache is None else param - leaf.cache) + part, leaf.param.dtype)
  owed = leaf.residual + drift
  return plain, rounded(plain + owed, leaf.param.dtype), owed


def _applied(leaf: Leaf, part: Array, drift: Array) -> Array:
  plain, target, _ = _places(leaf, part, drift)
  param = leaf.param.astype(jnp.float32)
  return jnp.where(target == plain, part if leaf.cache is None else plain - param, target - param)


def _owed(leaf: Leaf, part: Array, drift: Array) -> Array:
  plain, target, owed = _places(leaf, part, drift)
  return owed - (target - plain)
