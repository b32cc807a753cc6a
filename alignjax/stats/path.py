"""Path statistics: one number per token that also depends on the tokens after it, computed from the last one back.

The nested risk of a response is such a statistic. At each position, a recursion reads either a few token statistics or
both distributions over the vocabulary. The first kind runs on the finished table. The second kind runs in the head,
while the logits of a chunk of positions exist, and only its result for each response passes to the previous chunk.
"""

from collections.abc import Callable
import dataclasses
import functools
import operator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from alignjax import risk
from alignjax.stats import token
from alignjax.types import Array


class Distributions(NamedTuple):
  """The next-token distributions of one position, with the observed token."""

  policy: Array  # [..., V] log-probabilities, nats
  reference: Array  # [..., V]
  target: Array  # [...] token ids


class PathValue(NamedTuple):
  """The result of a recursion at one position, each [...]."""

  value: Array  # V_t
  horizon: Array  # sum_{u >= t} dV_t / dV_u, tokens: how much of the future V_t sees; without gradient


@dataclasses.dataclass(frozen=True)
class Recursion:
  """A named recursion V_t = step(inputs_t, V_{t+1}) over the tokens of a response; 0 after the last one.

  Args:
    name: identifies the recursion.
    step: maps (inputs, V_{t+1}) to (V_t, dV_t / dV_{t+1}), each [...].
    tokens: the token statistics that are the inputs; if empty, the inputs are `Distributions`.
  """

  name: str
  step: Callable[[Any, Array], tuple[Array, Array]] = dataclasses.field(compare=False, repr=False)
  tokens: tuple[token.TokenStat, ...] = dataclasses.field(default=(), compare=False)

  def run(self, inputs: Any, mask: Array, later: PathValue) -> tuple[PathValue, PathValue]:
    """Runs the recursion from the last position to the first.

    Args:
      inputs: arrays [T, ...], the inputs of `step`.
      mask: [T, ...] bool; a masked position passes on the value of the next.
      later: the result after the last position, [...].

    Returns:
      The result of the first position, [...], and of all, [T, ...].
    """

    def backward(later: PathValue, position: tuple[Any, Array]) -> tuple[PathValue, PathValue]:
      inputs, kept = position
      value, slope = self.step(inputs, later.value)
      now = PathValue(value, 1.0 + jax.lax.stop_gradient(slope) * later.horizon)
      now = jax.tree.map(functools.partial(jnp.where, kept), now, later)
      return now, now

    return jax.lax.scan(backward, later, (inputs, mask), reverse=True)


@dataclasses.dataclass(frozen=True)
class PathStat:
  """A named output of a recursion: [B, N, R], entry t is about tokens t, t + 1, ... of a response.

  Two statistics with the same name are the same statistic. Its value for a whole response is entry 0, `table.first`.
  """

  name: str
  recursion: Recursion = dataclasses.field(compare=False, repr=False)
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


def _nested(measure: risk.RiskMeasure, discount: float, off_path: float) -> Recursion:
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

  def from_distributions(inputs: Distributions, later: Array) -> tuple[Array, Array]:
    drift = inputs.reference - inputs.policy
    found = risk.raise_one(measure, drift, inputs.reference, inputs.target, on_path * later)
    return found.value + everywhere * later, everywhere + on_path * found.weight

  if on_path == 0:
    return Recursion(name, without_path, (one_step,))
  if measure.raise_one is not None:
    return Recursion(name, from_scalars, (one_step, token.logp, token.reference_logp))
  return Recursion(name, from_distributions)
