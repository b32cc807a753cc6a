"""Risk measures of a discrete random variable: reductions of its values under their log-probabilities.

Notation, over the last axis: values d_v (nats), log-probabilities log p_v, and F, the distribution function of d under
p. By default a measure applies to a *cost*: it is at least the mean, and large if the upper tail is heavy.

Every measure

- is exact for discrete distributions: atoms are split in proportion to their probability, so equal values count by
  their probabilities and the order of the entries does not matter;
- ignores entries of probability zero (log p = -inf), whatever their values, in the gradient too;
- has its closed-form gradient, from an envelope theorem; no sort, quantile or maximum is differentiated.

Values that differ by no more than 4e-6 nats (TIE) count as equal where their order matters. With p == q up to rounding,
log-ratios are noise, and a tail picked from noise would add first-order noise to the gradient.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from alignjax import numerics
from alignjax.types import Array

TIE = 4e-6  # nats; float32 log-probabilities above -8 are rounded by up to 5e-7, their differences by a few times that
BISECTIONS = 24  # the quantile is known to 2^-24 of the range of the values, the precision of float32


class Raised(NamedTuple):
  """A measure after one of the values was raised."""

  value: Array  # [...]
  weight: Array  # [...], d value / d (the raised value): its dual weight w*, without gradient


@dataclasses.dataclass(frozen=True, repr=False)
class RiskMeasure:
  """A named reduction (values [..., V], log-probabilities [..., V]) -> [...], in the unit of the values.

  Two measures of one name are the same measure. The name is the expression that builds it again.

  Args:
    name: an expression that builds the measure.
    function: the reduction.
    tail: the tail it is averse to: 'upper' for a cost, 'lower' for a reward, 'neither' for the mean.
    mass: the share of the probability mass that the value depends on, in [0, 1].
    raise_one: (value, d_y, log p_y, shift) -> the measure after d_y was raised by `shift`, all [...], where `value` is
      the measure before; None if that takes all values.
  """

  name: str
  function: Callable[[Array, Array], Array] = dataclasses.field(compare=False)
  tail: str = dataclasses.field(default='upper', compare=False)
  mass: float = dataclasses.field(default=1.0, compare=False)
  raise_one: Callable[[Array, Array, Array, Array], Raised] | None = dataclasses.field(default=None, compare=False)

  def __call__(self, values: Array, log_probs: Array) -> Array:
    values, log_probs = jnp.asarray(values, jnp.float32), jnp.asarray(log_probs, jnp.float32)
    if values.shape != log_probs.shape:
      raise ValueError(f'{self.name}: values {values.shape} and log-probabilities {log_probs.shape} differ in shape')
    return self.function(jnp.where(jnp.isneginf(log_probs), 0.0, values), log_probs)

  def __repr__(self) -> str:
    return self.name


class _Evaluation(NamedTuple):
  """A measure at one point, with its gradient."""

  value: Array  # [...]
  weights: Array  # [..., V], d value / d values: the worst-case distribution w* of the dual form
  slope: Array  # [..., V], d value / d log_probs


_Evaluate = Callable[[Array, Array], _Evaluation]


def _measure(
  name: str,
  evaluate: _Evaluate,
  tail: str,
  mass: float = 1.0,
  raise_one: Callable[[Array, Array, Array, Array], Raised] | None = None,
) -> RiskMeasure:
  """The measure whose value and derivatives `evaluate` computes together."""

  @jax.custom_jvp
  def function(values: Array, log_probs: Array) -> Array:
    return evaluate(values, log_probs).value

  def jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    value, *derivatives = evaluate(*primals)
    # A side without a tangent costs nothing; it is usually the reference's.
    live = [(d, t) for d, t in zip(derivatives, tangents, strict=True) if not isinstance(t, SymbolicZero)]
    return value, sum((jnp.sum(d * t, axis=-1) for d, t in live), start=jnp.zeros_like(value))

  function.defjvp(jvp, symbolic_zeros=True)
  return RiskMeasure(name, function, tail, mass, raise_one)


def _of_tail(name: str, tail: str, upper: _Evaluate, mass: float) -> RiskMeasure:
  """The measure `upper` of the upper tail, or its mirror image -upper(-values) of the lower one."""
  if tail not in ('upper', 'lower'):
    raise ValueError(f"{name}: tail must be 'upper' or 'lower', got {tail!r}")

  def lower(values: Array, log_probs: Array) -> _Evaluation:
    value, weights, slope = upper(-values, log_probs)
    return _Evaluation(-value, weights, -slope)

  averse_to = 'neither' if upper is _mean else tail
  return _measure(name, upper if tail == 'upper' else lower, averse_to, mass)


def _mean(values: Array, log_probs: Array) -> _Evaluation:
  probs = jnp.exp(log_probs)
  return _Evaluation(jnp.sum(probs * values, axis=-1), probs, probs * values)


def _raise_mean(value: Array, entry: Array, log_prob: Array, shift: Array) -> Raised:
  del entry
  prob = jnp.exp(log_prob)
  return Raised(value + prob * shift, jax.lax.stop_gradient(prob))


def expectation() -> RiskMeasure:
  """The mean: the risk-neutral measure.

  value = sum_v p_v d_v

  Use it when:
    you want the risk-neutral baseline: `ra_dpo(risk=expectation())` is `tdpo`.

  Returns:
    A measure; its gradient in the values is p.
  """
  return _measure('expectation()', _mean, 'neither', raise_one=_raise_mean)


def cvar(level: float, tail: str = 'upper') -> RiskMeasure:
  """Conditional value at risk: the mean of the worst `level` of the probability mass.

  value = min_eta eta + E[(d - eta)^+] / level = max { sum_v w_v d_v : 0 <= w <= p / level, sum_v w_v = 1 }
  lower tail: -value(-d) = (1 / level) int_0^level F^-1(u) d u

  The lower tail gives the mean of the lowest `level` of the mass.

  The dual weights are w* = p / level above the quantile and 0 below it. At the quantile itself the remaining mass is
  shared in proportion to p. The quantile is found by bisection: it needs no sort, and for a vocabulary sharded over
  devices only one small sum per step.

  Use it when:
    the worst outcomes matter, and you know which share of the probability mass counts as worst.

  Args:
    level: probability mass of the tail, in (0, 1]; 1 is the expectation, and the limit 0 the worst case.
    tail: 'upper' for a cost, 'lower' for a reward.

  Returns:
    A measure; its gradient in the values is w*: p / level above the quantile, 0 below it, and the remaining mass at it.

  Raises:
    ValueError: if level is outside (0, 1], or tail is unknown.

  Defaults:
    tail 'upper', because a drift is a cost.

  References:
    Rockafellar and Uryasev 2002, Conditional value-at-risk for general loss distributions, J. Banking & Finance 26,
    theorem 10 (the minimum) and proposition 8 (atoms).
  """
  if not 0 < level <= 1:
    raise ValueError(f'cvar: level must be in (0, 1], got {level!r}')
  name = f'cvar(level={level!r}, tail={tail!r})'
  return _of_tail(name, tail, _mean if level == 1 else functools.partial(_upper_cvar, level=level), level)


def _upper_cvar(values: Array, log_probs: Array, level: float) -> _Evaluation:
  probs = jnp.exp(log_probs)
  tail_mass = level * jnp.sum(probs, axis=-1)  # rounding makes the sum a little more or less than 1
  below, quantile = (edge[..., None] for edge in _quantile_bracket(values, probs, tail_mass))
  above = jnp.where(values > quantile + TIE, probs, 0.0)
  # >=, because the bracket may end at the smallest value itself.
  tied = jnp.where((values >= below - TIE) & (values <= quantile + TIE), probs, 0.0)
  left = tail_mass - jnp.sum(above, axis=-1)
  share = jnp.clip(left / jnp.maximum(jnp.sum(tied, axis=-1), jnp.finfo(jnp.float32).tiny), 0.0, 1.0)
  weights = above + share[..., None] * tied
  weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
  excess = probs * jnp.maximum(values - quantile, 0.0) / level
  return _Evaluation(jnp.sum(weights * values, axis=-1), weights, excess)


@jax.jit  # otherwise every call outside a jitted function would compile the loop again
def _quantile_bracket(values: Array, probs: Array, tail_mass: Array) -> tuple[Array, Array]:
  """Two values [...] around the quantile: no more than `tail_mass` lies above the second, but at or above the first."""
  if values.ndim == 1:
    return _bisect(values, probs, tail_mass)
  return jax.lax.platform_dependent(values, probs, tail_mass, cpu=_bisect_by_position, default=_bisect)


def _bisect_by_position(values: Array, probs: Array, tail_mass: Array) -> tuple[Array, Array]:
  """`_bisect` for one position [..., V] of [..., T, V] at a time, so that the loop stays in a CPU's cache."""
  axis = values.ndim - 2

  def one(_: None, position: Array) -> tuple[None, tuple[Array, Array]]:
    at = (jax.lax.dynamic_index_in_dim(x, position, axis, keepdims=False) for x in (values, probs, tail_mass))
    return None, _bisect(*at)

  _, brackets = jax.lax.scan(one, None, jnp.arange(values.shape[axis]))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), brackets)


def _bisect(values: Array, probs: Array, tail_mass: Array) -> tuple[Array, Array]:

  def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bracket
    middle = low + 0.5 * (high - low)
    too_much = jnp.sum(jnp.where(values > middle[..., None], probs, 0.0), axis=-1) > tail_mass
    return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

  return jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.min(values, axis=-1), jnp.max(values, axis=-1)))


def entropic(kappa: float) -> RiskMeasure:
  """The entropic risk measure.

  value = (1 / kappa) log E[exp(kappa d)]

  Of a drift d = log p - log q it is the Renyi divergence of order 1 + kappa of p from q. For small kappa it is E[d] +
  (kappa / 2) Var[d]; kappa = 0 gives the expectation, and kappa -> infinity the largest value.

  Use it when:
    you want a smooth measure: every value counts, large ones exponentially more. Without discount its
    static and nested values agree.

  Args:
    kappa: aversion to high values of a cost, 1/nats. Negative values are averse to low values: for a reward r and kappa
      > 0, entropic(-kappa) is its certainty equivalent -(1 / kappa) log E[exp(-kappa r)].

  Returns:
    A measure; its gradient in the values is the escort distribution softmax(log p + kappa d).

  Raises:
    ValueError: if kappa is not finite.

  References:
    Foellmer and Schied 2002, Convex measures of risk and trading constraints, Finance and Stochastics 6, example 12.
  """
  if not math.isfinite(kappa):
    raise ValueError(f'entropic: kappa must be finite, got {kappa!r}')
  name = f'entropic(kappa={kappa!r})'
  if kappa == 0:
    return _measure(name, _mean, 'neither', raise_one=_raise_mean)
  tail, raise_one = 'upper' if kappa > 0 else 'lower', functools.partial(_raise_entropic, kappa=kappa)
  return _measure(name, functools.partial(_entropic, kappa=kappa), tail, raise_one=raise_one)


def _entropic(values: Array, log_probs: Array, kappa: float) -> _Evaluation:
  exponent, probs = kappa * values, jnp.exp(log_probs)
  largest = jnp.max(jnp.where(jnp.isneginf(log_probs), -jnp.inf, exponent), axis=-1)
  # E[exp] - 1 without the rounding of "1 +", which small kappa would magnify. Where it overflows or cancels, log E[exp]
  # is far from 0 and its plain form is accurate.
  growth = jnp.sum(probs * jnp.expm1(jnp.minimum(exponent, 30.0)), axis=-1)
  near = (growth > -0.5) & (largest < 30.0)
  tilted = log_probs + exponent
  total = jax.nn.logsumexp(tilted, axis=-1)
  escort = jnp.exp(tilted - total[..., None])
  value = jnp.where(near, jnp.log1p(jnp.where(near, growth, 0.0)), total) / kappa
  # (escort - p) / kappa, the gradient for probabilities that stay normalised, again without the cancellation.
  relative = exponent - kappa * value[..., None]
  gap = jnp.where(jnp.abs(relative) < 1.0, probs * jnp.expm1(jnp.clip(relative, -1.0, 1.0)), escort - probs)
  return _Evaluation(value, escort, gap / kappa)


def _raise_entropic(value: Array, entry: Array, log_prob: Array, shift: Array, kappa: float) -> Raised:
  """value + (1 / kappa) log(1 - w + w exp(kappa shift)), with the escort weight w = p_y exp(kappa (d_y - value))."""
  log_weight = jnp.minimum(log_prob + kappa * (entry - value), 0.0)
  exponent = kappa * shift
  small = jnp.abs(exponent) < 1.0
  # log1p and expm1 keep the digits of a small shift; the sum of two terms does not overflow for a large one.
  near = jnp.log1p(jnp.exp(log_weight) * jnp.expm1(jnp.where(small, exponent, 0.0)))
  others = numerics.log1mexp(jnp.minimum(log_weight, -jnp.finfo(jnp.float32).tiny))
  far = jnp.logaddexp(others, log_weight + jnp.where(small, 1.0, exponent))
  growth = jnp.where(small, near, far)
  weight = jnp.exp(jax.lax.stop_gradient(log_weight + exponent - growth))
  return Raised(value + growth / kappa, weight)


def worst_case(tail: str = 'upper') -> RiskMeasure:
  """The largest value with positive probability, or the smallest for the lower tail.

  value = max { d_v : p_v > 0 }

  Use it when:
    no outcome may be ignored, however improbable. The gradient touches only the extreme values, so it is noisy as a
    training signal.

  Args:
    tail: 'upper' for a cost, 'lower' for a reward.

  Returns:
    A measure; its gradient in the values is p restricted to the values at the extreme.

  Raises:
    ValueError: if tail is unknown.

  Defaults:
    tail 'upper', because a drift is a cost.
  """
  return _of_tail(f'worst_case(tail={tail!r})', tail, _maximum, 0.0)


def _maximum(values: Array, log_probs: Array) -> _Evaluation:
  support = ~jnp.isneginf(log_probs)
  value = jnp.max(jnp.where(support, values, -jnp.inf), axis=-1)
  extreme = support & (values >= value[..., None] - TIE)
  weights = jax.nn.softmax(jnp.where(extreme, log_probs, -jnp.inf), axis=-1)
  return _Evaluation(value, weights, jnp.zeros_like(weights))


def mean_semideviation(weight: float) -> RiskMeasure:
  """The mean plus a share of the mean excess over it.

  value = E[d] + weight E[(d - E[d])^+]

  Use it when:
    you want a mild, easily interpreted correction of the mean: it penalises only values above the mean.

  Args:
    weight: share of the excess, in [0, 1]; above 1 the measure would not be monotone, and 0 gives the expectation.

  Returns:
    A measure; its gradient in the values is p (1 + weight (1{d > E[d]} - P(d > E[d]))).

  Raises:
    ValueError: if weight is outside [0, 1].

  References:
    Ogryczak and Ruszczynski 1999, From stochastic dominance to mean-risk models: semideviations as risk measures,
    European Journal of Operational Research 116 (order 1, of a cost).
  """
  if not 0 <= weight <= 1:
    raise ValueError(f'mean_semideviation: weight must be in [0, 1], got {weight!r}')
  evaluate, tail = functools.partial(_semideviation, weight=weight), 'upper' if weight else 'neither'
  return _measure(f'mean_semideviation(weight={weight!r})', evaluate, tail)


def _semideviation(values: Array, log_probs: Array, weight: float) -> _Evaluation:
  probs = jnp.exp(log_probs)
  excess = values - jnp.sum(probs * values, axis=-1, keepdims=True)
  above = excess > TIE
  share = jnp.sum(jnp.where(above, probs, 0.0), axis=-1, keepdims=True)
  weights = probs * (1.0 + weight * (above - share))
  slope = probs * (values + weight * (jnp.where(above, excess, 0.0) - share * values))
  return _Evaluation(jnp.sum(weights * values, axis=-1), weights, slope)
