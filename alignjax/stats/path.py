"""Path statistics: one number per token that also depends on the tokens after it, computed from the last one back.

The nested risk of a response is such a statistic. At each position, a recursion reads either a few token statistics or
both distributions over the vocabulary. The first kind runs on the finished table. The second kind runs in the head,
while the logits of a chunk of positions exist, and only its result for each response passes to the previous chunk.
"""

from collections.abc import Callable
import dataclasses
import operator
from typing import Any, ClassVar, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from alignjax import risk
from alignjax.stats import token
from alignjax.types import Array


class Logits(NamedTuple):
  """The logits of the next token under both models, with the observed token."""

  policy: Array | None  # [..., V]
  reference: Array | None  # [..., V]
  target: Array  # [...] token ids


class PathValue(NamedTuple):
  """The result of a recursion at one position, each [...]."""

  value: Array  # V_t
  horizon: Array  # sum_{u >= t} dV_t / dV_u, tokens: how much of the future V_t sees; without gradient

  @classmethod
  def zeros(cls, shape: tuple[int, ...]) -> 'PathValue':
    """The result after the last token."""
    return cls(jnp.zeros(shape), jnp.zeros(shape))


@dataclasses.dataclass(frozen=True)
class Recursion:
  """A named recursion over token statistics: V_t = step(inputs_t, V_{t+1}), and 0 after the last token.

  Args:
    name: identifies the recursion.
    tokens: the token statistics that are the inputs.
    step: maps (inputs, V_{t+1}) to (V_t, dV_t / dV_{t+1}), each [...].
  """

  name: str
  tokens: tuple[token.TokenStat, ...] = dataclasses.field(compare=False)
  step: Callable[[tuple[Array, ...], Array], tuple[Array, Array]] = dataclasses.field(compare=False, repr=False)

  def run(self, inputs: tuple[Array, ...], mask: Array) -> PathValue:
    """The result at every position, [T, ...], from inputs [T, ...]; a masked position passes on that of the next."""

    def backward(later: PathValue, position: tuple[Any, Array]) -> tuple[PathValue, PathValue]:
      inputs, kept = position
      now = _unless_masked(kept, *self.step(inputs, later.value), later)
      return now, now

    return jax.lax.scan(backward, PathValue.zeros(mask.shape[1:]), (inputs, mask), reverse=True)[1]


class Step(NamedTuple):
  """One step of a `VocabularyRecursion`, with its derivatives."""

  value: Array  # [...], V_t
  slope: Array  # [...], dV_t / dV_{t+1}
  gradient: Array  # [..., V], dV_t / d policy logits


@dataclasses.dataclass(frozen=True)
class VocabularyRecursion:
  """A named recursion over distributions: V_t = step(logits_t, V_{t+1}).value, and 0 after the last token.

  Because a step returns its derivatives, the backward pass scans over one number per response, and the gradient in the
  logits is one product for all positions together. No gradient enters the reference.
  """

  name: str
  step: Callable[[Logits, Array], Step] = dataclasses.field(compare=False, repr=False)
  tokens: ClassVar[tuple[token.TokenStat, ...]] = ()

  def run(self, inputs: Logits, mask: Array, later: PathValue) -> tuple[PathValue, PathValue]:
    """Runs the recursion over a chunk of positions.

    Args:
      inputs: [T, ..., V] and [T, ...].
      mask: [T, ...] bool; a masked position passes on the result of the next.
      later: the result after the last position, [...].

    Returns:
      The result of the first position, [...], and of all, [T, ...].
    """

    def evaluate(inputs: Logits, mask: Array, later: PathValue) -> tuple[Any, Step]:
      def backward(later: PathValue, position: tuple[Logits, Array]) -> tuple[PathValue, tuple[PathValue, Step]]:
        inputs, kept = position
        step = self.step(inputs, later.value)
        now = _unless_masked(kept, step.value, step.slope, later)
        return now, (now, step)

      first, (found, steps) = jax.lax.scan(backward, later, (inputs, mask), reverse=True)
      return (first, found), steps

    @jax.custom_jvp
    def values(inputs: Logits, mask: Array, later: PathValue) -> tuple[PathValue, PathValue]:
      return evaluate(inputs, mask, later)[0]

    def jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
      (first, found), steps = evaluate(*primals)
      mask = primals[1]
      d_later, d_policy = tangents[2].value, tangents[0].policy
      d_own = jnp.zeros(mask.shape) if _is_zero(d_policy) else jnp.sum(steps.gradient * d_policy, axis=-1)
      d_later = jnp.zeros(mask.shape[1:]) if _is_zero(d_later) else d_later

      def backward(later: Array, position: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        own, slope, kept = position
        now = jnp.where(kept, own + slope * later, later)
        return now, now

      d_first, d_found = jax.lax.scan(backward, d_later, (d_own, steps.slope, mask), reverse=True)
      none = jax.tree.map(jnp.zeros_like, (first.horizon, found.horizon))
      return (first, found), (PathValue(d_first, none[0]), PathValue(d_found, none[1]))

    values.defjvp(jvp, symbolic_zeros=True)
    return values(inputs, mask, later)


def _unless_masked(kept: Array, value: Array, slope: Array, later: PathValue) -> PathValue:
  horizon = 1.0 + jax.lax.stop_gradient(slope) * later.horizon
  return PathValue(jnp.where(kept, value, later.value), jnp.where(kept, horizon, later.horizon))


def _is_zero(tangent: Any) -> bool:
  return isinstance(tangent, SymbolicZero)


@dataclasses.dataclass(frozen=True)
class PathStat:
  """A named output of a recursion: [B, N, R], entry t is about tokens t, t + 1, ... of a response.

  Two statistics with the same name are the same statistic. Its value for a whole response is entry 0, `table.first`.
  """

  name: str
  recursion: Recursion | VocabularyRecursion = dataclasses.field(compare=False, repr=False)
  output: Callable[[PathValue], Array] = dataclasses.field(compare=False, repr=False)
  policy: ClassVar[bool] = True
  reference: ClassVar[bool] = True


def nested_risk(measure: risk.RiskMeasure, discount: float = 1.0, off_path: float = 1.0) -> PathStat:
  """The nested risk of the drift from token t to the end of the response, nats.

  D_t(v) = log pi_ref(v | x, y_<t) - log pi(v | x, y_<t)
  V_t = measure_{v ~ pi_ref}[ D_t(v) + discount (off_path + (1 - off_path) 1{v = y_t}) V_{t+1} ],   V_T = 0

  It is the nested value on the tree in which the observed response is a spine, and the drift after a token that leaves
  the spine has `off_path` times the risk of the spine's own; see `risk.path_value`.

  Args:
    measure: the one-step risk measure; translation equivariant, as all exported ones are.
    discount: factor per token, in [0, 1].
    off_path: share of the future's risk after a token that leaves the response, in [0, 1].

  Raises:
    ValueError: if discount or off_path is outside [0, 1].
  """
  recursion = _nested(measure, discount, off_path)
  return PathStat(recursion.name, recursion, operator.attrgetter('value'))


def nested_horizon(measure: risk.RiskMeasure, discount: float = 1.0, off_path: float = 1.0) -> PathStat:
  """How many of the tokens from t on the nested risk of token t sees: sum_{u >= t} dV_t / dV_u, without gradient.

  A token u counts by prod_{t <= s < u} discount (off_path + (1 - off_path) w*_s(y_s)), where w*_s is the dual weight of
  the measure at step s. It is the number of tokens left if both shares are 1.

  Args and Raises as for `nested_risk`.
  """
  recursion = _nested(measure, discount, off_path)
  return PathStat(recursion.name.replace('nested_risk', 'nested_horizon', 1), recursion, operator.attrgetter('horizon'))


def _nested(measure: risk.RiskMeasure, discount: float, off_path: float) -> Recursion | VocabularyRecursion:
  risk.require_share('discount', discount)
  risk.require_share('off_path', off_path)
  name = f'nested_risk({measure.name}, discount={discount!r}, off_path={off_path!r})'
  one_step = token.forward_kl if measure == risk.expectation() else token.risk_ratio(measure)
  everywhere, on_path = discount * off_path, discount * (1.0 - off_path)

  def without_path(inputs: tuple[Array], later: Array) -> tuple[Array, Array]:
    (now,) = inputs
    return now + everywhere * later, jnp.full_like(later, everywhere)

  def from_scalars(inputs: tuple[Array, Array, Array], later: Array) -> tuple[Array, Array]:
    now, logp, reference_logp = inputs
    possible = ~jnp.isneginf(reference_logp)
    drift = jnp.where(possible, reference_logp - logp, 0.0)
    found = measure.raise_one(now, drift, reference_logp, on_path * later)
    return found.value + everywhere * later, everywhere + on_path * found.weight

  def from_distributions(inputs: Logits, later: Array) -> Step:
    reference = jax.nn.log_softmax(inputs.reference)

    def raised(policy: Array) -> risk.Raised:
      return risk.raise_one(measure, reference - jax.nn.log_softmax(policy), reference, inputs.target, on_path * later)

    found, pull = jax.vjp(raised, inputs.policy)
    (gradient,) = pull(risk.Raised(jnp.ones_like(later), jnp.zeros_like(later)))
    return Step(found.value + everywhere * later, everywhere + on_path * found.weight, gradient)

  if on_path == 0:
    return Recursion(name, (one_step,), without_path)
  if measure.raise_one is not None:
    return Recursion(name, (one_step, token.logp, token.reference_logp), from_scalars)
  return VocabularyRecursion(name, from_distributions)
