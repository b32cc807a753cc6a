"""The merge of one tensor: which entries are reserved, who wins an election, and where rounding takes the parameter."""

import dataclasses
from typing import Any

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
  measure: int

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(f'{name}={getattr(self, name)!r} is not one of {", ".join(map(repr, choices))}')
    # inject_hyperparams hands over arrays, whose values are not known here.
    if not isinstance(self.reserve, jax.Array) and not 0 < self.reserve <= 1:
      raise ValueError(f'reserve={self.reserve} must be in (0, 1]: the share of entries that are kept')
    if not isinstance(self.alpha, jax.Array) and not 0 <= self.alpha <= 1:
      raise ValueError(f'alpha={self.alpha} must be in [0, 1]: the weight of the reference delta')
    for name, least in (('every', 1), ('measure', 0)):
      value = getattr(self, name)
      if not isinstance(value, int) or value < least:
        raise ValueError(
          f'{name}={value!r} must be an int of at least {least}; '
          "under optax.inject_hyperparams, name it in static_args=('every', 'measure')"
        )
    if self.clip is not None and not isinstance(self.clip, jax.Array) and not self.clip > 0:
      raise ValueError(f'clip={self.clip} must be positive, or None for no bound')
    for name, default in (('mask', 'fresh'), ('rescale', 'none')):
      if self.keep == 'largest' and getattr(self, name) in ('fixed', 'inverse'):
        raise ValueError(f"{name}={getattr(self, name)!r} is for keep='random'; with 'largest' leave it {default!r}")

  def marks(self, leaf: Leaf, key: Array, count: Array) -> Any:
    """What the reservation keeps: None for all, a byte for each entry, or the thresholds of D and tau."""
    traced = isinstance(self.reserve, jax.Array)
    if self.keep == 'random':
      if not traced and self.reserve >= 1:
        return None
      words = random_bits.bits(random_bits.fold(key, leaf.index, count), leaf.param.shape)
      if self.mask == 'fixed':
        words = (words[0], random_bits.bits(random_bits.fold(key, leaf.index, 0), leaf.param.shape)[1])
      return random_bits.packed([random_bits.bernoulli(word, self.reserve) for word in words])
    options = {'fraction': self.reserve, 'stacked': leaf.stacked}
    # tau does not change, nor does its threshold, unless the share of entries that it keeps may.
    known = jnp.asarray(False) if traced else count > 0
    return (
      top_fraction.threshold(leaf.displacement, previous=leaf.thresholds[0], **options),
      top_fraction.threshold(leaf.delta, previous=leaf.thresholds[1], known=known, **options),
    )

  def summands(self, leaf: Leaf, marks: Any) -> consensus.Summands:
    """The two terms of the merge."""
    update, delta = leaf.displacement, leaf.delta.astype(jnp.float32)
    if marks is None:
      masks = (None, None)
    elif self.keep == 'random':
      masks = random_bits.unpacked(marks, 2)
    else:
      masks = tuple(top_fraction.magnitude_bits(x) >= t for x, t in zip((update, delta), marks, strict=True))
    axes = top_fraction.tensor_axes(update, leaf.stacked)
    kept, drawn = self._reserved(update, masks[0], axes), self._reserved(delta, masks[1], axes)
    drawn = drawn if self.clip is None else jnp.clip(drawn, -self.clip, self.clip)
    return consensus.elected(kept, drawn, self.alpha, self.elect)

  def sums(self, leaf: Leaf, marks: Any) -> dict[str, Array]:
    """What metrics need to know of this tensor."""
    return consensus.sums(leaf.displacement, self.summands(leaf, marks), leaf.delta.astype(jnp.float32))

  def _reserved(self, x: Array, mask: Array | None, axes: tuple[int, ...]) -> Array:
    if mask is None:
      return x
    kept = jnp.where(mask, x, 0.0)
    if self.rescale == 'inverse':
      return kept / self.reserve
    if self.rescale == 'l1':
      before, after = (counting.total(jnp.abs(values), axes) for values in (x, kept))
      return kept * jnp.where(after > 0, before / jnp.where(after > 0, after, 1.0), 1.0)
    return kept


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
