"""The merge of one tensor: which entries are reserved, which sign is elected, and how the parameter is rounded."""

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
  """One tensor and its merge state."""

  index: int
  stacked: bool
  param: Array
  update: Array
  delta: Array
  residual: Array | None
  cache: Array | None
  cuts: tuple[top_fraction.Cut, top_fraction.Cut] | None

  @property
  def displacement(self) -> Array:
    """D, float32: the update of this step, or the displacement since the last merge."""
    update = self.update.astype(jnp.float32)
    return update if self.cache is None else self.cache + update


class Reservation(NamedTuple):
  """Which entries of D and tau are kept, and how they are scaled."""

  masks: Array | None = None  # uint8, one bit each for D and tau; None keeps all
  cuts: tuple[top_fraction.Cut, top_fraction.Cut] | None = None  # of D and tau, with keep='largest'
  scales: tuple[Array | float, Array | float] = (1.0, 1.0)  # factors applied to the kept entries


@dataclasses.dataclass(frozen=True)
class Rule:
  """The arguments of `online_merge`, and how they apply to one tensor."""

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
    # inject_hyperparams passes traced arrays, whose values are unknown here.
    if not isinstance(self.reserve, jax.Array) and not 0 < self.reserve <= 1:
      raise ValueError(f'reserve={self.reserve} must be in (0, 1]: the fraction of entries to keep')
    if not isinstance(self.alpha, jax.Array) and not 0 <= self.alpha <= 1:
      raise ValueError(f'alpha={self.alpha} must be in [0, 1]: the weight of the reference delta')
    if not isinstance(self.every, int) or self.every < 1:
      raise ValueError(
        f"every={self.every!r} must be an int of at least 1; with optax.inject_hyperparams, pass static_args=('every',)"
      )
    if self.clip is not None and not isinstance(self.clip, jax.Array) and not self.clip > 0:
      raise ValueError(f'clip={self.clip} must be positive, or None for no bound')
    for name, default in (('mask', 'fresh'), ('rescale', 'none')):
      if self.keep == 'largest' and getattr(self, name) in ('fixed', 'inverse'):
        raise ValueError(f"{name}={getattr(self, name)!r} requires keep='random'; with keep='largest' use {default!r}")

  def reserve_of(self, leaf: Leaf, key: Array, count: Array) -> Reservation:
    """Decides which entries of one tensor are kept at merge number `count`, counted from 0."""
    if self.keep == 'random':
      reservation = Reservation(self._random(leaf, key, count))
    else:
      reservation = self._largest(leaf, key, count)
    if self.rescale == 'inverse':
      return reservation._replace(scales=(1.0 / self.reserve, 1.0 / self.reserve))
    return reservation._replace(scales=self._l1(leaf, reservation)) if self.rescale == 'l1' else reservation

  def summands(self, leaf: Leaf, reservation: Reservation) -> consensus.Summands:
    """The two terms of the merge."""
    return self._summands(leaf.displacement, leaf.delta, reservation)

  def sums(self, leaf: Leaf, reservation: Reservation) -> dict[str, Array]:
    """The sums over this tensor that the metrics need, [] each."""

    def terms(update: Array, delta: Array, part: Reservation) -> counting.Terms:
      return consensus.terms(update, self._summands(update, delta, part), delta)

    # Counts of a large stack fit into an integer layer by layer only.
    stacked = leaf.stacked and leaf.param.size >= top_fraction.COUNTED
    counts, totals = _sums(terms, leaf, reservation, top_fraction.tensor_axes(leaf.param, stacked))
    return consensus.named(leaf.param.size, [jnp.sum(x.astype(jnp.float32)) for x in (*counts, *totals)])

  @property
  def _keeps_all(self) -> bool:
    return not isinstance(self.reserve, jax.Array) and self.reserve >= 1

  def _random(self, leaf: Leaf, key: Array, count: Array) -> Array | None:
    if self._keeps_all:
      return None
    words = random_bits.bits(random_bits.fold(key, leaf.index, count), leaf.param.shape)
    if self.mask == 'fixed':
      words = (words[0], random_bits.bits(random_bits.fold(key, leaf.index, 0), leaf.param.shape)[1])
    return random_bits.packed([random_bits.bernoulli(word, self.reserve) for word in words])

  def _largest(self, leaf: Leaf, key: Array, count: Array) -> Reservation:
    if self._keeps_all:
      return Reservation(cuts=leaf.cuts)
    # The order among ties in D changes at every merge, as DARE's masks do. tau is constant, and so is what is kept of
    # it, unless the fraction of entries to keep is traced.
    words = (random_bits.fold(key, leaf.index, count), random_bits.fold(key, leaf.index))
    known = (False, jnp.asarray(False) if isinstance(self.reserve, jax.Array) else count > 0)
    both = (leaf.displacement, leaf.delta)
    cuts = tuple(
      top_fraction.find(x, self.reserve, order, stacked=leaf.stacked, previous=previous, known=is_known)
      for x, order, previous, is_known in zip(both, words, leaf.cuts, known, strict=True)
    )
    masks = [top_fraction.keeps(x, order, cut) for x, order, cut in zip(both, words, cuts, strict=True)]
    return Reservation(random_bits.packed(masks), cuts)

  def _l1(self, leaf: Leaf, reservation: Reservation) -> tuple[Array, Array]:
    """The factors that restore the L1 norms of D and tau."""

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
  """`counting.sums` of a function of D, tau and their reservation."""

  def terms(update: Array, delta: Array, *masks: Array) -> counting.Terms:
    part = reservation._replace(masks=masks[0]) if masks else reservation
    return function(update, delta.astype(jnp.float32), part)

  masks = [] if reservation.masks is None else [reservation.masks]
  return counting.sums(terms, [leaf.displacement, leaf.delta, *masks], axes)


def _kept(update: Array, delta: Array, reservation: Reservation) -> tuple[Array, Array]:
  """The reserved entries of D and tau, float32, before any scaling; 0 elsewhere."""
  both = (update, delta.astype(jnp.float32))
  if reservation.masks is None:
    return both
  masks = random_bits.unpacked(reservation.masks, 2)
  return tuple(jnp.where(mask, x, 0.0) for mask, x in zip(masks, both, strict=True))


def rounded(x: Array, dtype: Any) -> Array:
  """Rounds float32 values to `dtype` and keeps them in float32; the compiler could elide a pair of casts."""
  info = jnp.finfo(dtype)
  return x if info.bits >= 32 else jax.lax.reduce_precision(x, info.nexp, info.nmant)


def landed(leaf: Leaf, part: Array, drift: Array) -> tuple[Array, Array | None]:
  """The update that moves the parameter to its rounded target, and the drift left for later merges."""
  out = jnp.promote_types(leaf.update.dtype, leaf.param.dtype)
  if leaf.residual is None:
    total = part + drift
    return (total if leaf.cache is None else total - leaf.cache).astype(out), None
  applied = _applied(leaf, part, drift).astype(out)
  # The order is update, residual, then parameters (by the caller), so that the compiler can write all of them in place.
  # Any other order makes it copy the old parameters and residuals.
  param, residual, applied = jax.lax.optimization_barrier((leaf.param, leaf.residual, applied))
  owed = _owed(dataclasses.replace(leaf, param=param, residual=residual), part, drift)
  return jax.lax.optimization_barrier((applied, owed))


def _places(leaf: Leaf, part: Array, drift: Array) -> tuple[Array, Array, Array]:
  """The parameter after D alone, its target after D and all accumulated drift, and that drift."""
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
