"""Nested (Markov) risk: a one-step measure applied token by token, from the last token back to the first.

Tokens are the only randomness of a response: prefix s and token z lead to the prefix s + z. A nested measure is
time-consistent. A static measure of the whole return is not, except for the undiscounted entropic ones.

References:
  Ruszczynski 2010, Risk-averse dynamic programming for Markov decision processes, Mathematical Programming 125,
  theorem 2 (the recursion).
  Du, Wang and Huang 2022, Risk-Sensitive Reinforcement Learning: Iterated CVaR and its Worst Path Limit,
  https://arxiv.org/abs/2206.02678, equation 1.
"""

from typing import Any

import chex
import jax
import jax.core
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
import numpy as np

from alignjax.risk import measures
from alignjax.types import Array


def raise_one(
  measure: measures.RiskMeasure, values: Array, log_probs: Array, index: Array, shift: Array
) -> measures.Raised:
  """A measure of values of which one was raised, with the dual weight of that one.

  value = measure(values + shift 1{v = index}),   weight = d value / d shift

  One evaluation of the measure gives both, and the derivatives of the value: the dual weights in `values`, and the
  weight in `shift`. The weight itself carries no gradient.

  Args:
    measure: the risk measure.
    values: [..., V].
    log_probs: [..., V], nats.
    index: [...] int, the value that is raised.
    shift: [...], in the unit of the values.

  Returns:
    The value and the weight, [...].
  """

  def evaluate(
    values: Array, log_probs: Array, index: Array, shift: Array
  ) -> tuple[measures.Raised, tuple[Array, Array]]:
    is_raised = jax.lax.broadcasted_iota(index.dtype, values.shape, values.ndim - 1) == index[..., None]
    value, pull = jax.vjp(measure, values + jnp.where(is_raised, shift[..., None], 0.0), log_probs)
    weights, slope = pull(jnp.ones_like(value))
    return measures.Raised(value, jnp.sum(jnp.where(is_raised, weights, 0.0), axis=-1)), (weights, slope)

  @jax.custom_jvp
  def raised(values: Array, log_probs: Array, index: Array, shift: Array) -> measures.Raised:
    return evaluate(values, log_probs, index, shift)[0]

  def jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[measures.Raised, measures.Raised]:
    found, (weights, slope) = evaluate(*primals)
    of_values, of_log_probs, _, of_shift = tangents
    tangent = jnp.zeros_like(found.value)
    # A side without a tangent costs nothing; it is usually the reference's.
    for derivative, side in ((weights, of_values), (slope, of_log_probs)):
      if not isinstance(side, SymbolicZero):
        tangent += jnp.sum(derivative * side, axis=-1)
    if not isinstance(of_shift, SymbolicZero):
      tangent += found.weight * of_shift
    return found, measures.Raised(tangent, jnp.zeros_like(found.weight))

  raised.defjvp(jvp, symbolic_zeros=True)
  return raised(values, log_probs, index, shift)


def path_value(
  values: Array,
  log_probs: Array,
  mask: Array,
  measure: measures.RiskMeasure,
  discount: float = 1.0,
  observed: Array | None = None,
  off_path: float = 1.0,
) -> Array:
  """The nested value along one observed path of tokens y_0, y_1, ...

  V_t = measure_{z ~ p_t}[ values_t(z) + discount (off_path + (1 - off_path) 1{z = y_t}) V_{t+1} ],   V_T = 0

  Along a path, the values of other prefixes are unknown. `off_path` is the assumption about them: after a token that
  leaves the path, the future is worth this share of the path's own. With off_path = 1, a translation-equivariant
  measure gives V_0 = sum_t discount^t measure(values_t): with log-ratios as values and no discount, the sequential risk
  ratio. With off_path = 0, it is the value of a process that ends with the first token that leaves the path, which
  `markov_value` computes on the path's own states.

  Args:
    values: [..., T, V], the value of each token that could come at step t.
    log_probs: [..., T, V], nats.
    mask: [..., T] bool; a masked step passes on V_{t+1}, undiscounted.
    measure: the one-step risk measure; translation equivariant.
    discount: factor per step, in [0, 1].
    observed: [..., T] int, the tokens of the path; only read if off_path < 1.
    off_path: share of the future's value after a token that leaves the path, in [0, 1].

  Returns:
    [..., T], V_t of each step, in the unit of the values.

  Raises:
    ValueError: if discount or off_path is outside [0, 1], or `observed` is missing and off_path < 1.
  """
  require_share('discount', discount)
  require_share('off_path', off_path)
  if off_path < 1 and observed is None:
    raise ValueError(f'off_path={off_path!r} needs `observed`, the tokens of the path')
  chex.assert_equal_shape([values, log_probs])
  chex.assert_shape(mask, values.shape[:-1])
  share = discount * (1.0 - off_path)

  def backward(later: Array, step: Any) -> tuple[Array, Array]:
    one_step, observed, kept = step
    if share:
      values, log_probs = one_step
      one_step = raise_one(measure, values, log_probs, observed, share * later).value
    # What all tokens share is added outside the measure, where it costs no digits of the values.
    value = jnp.where(kept, discount * off_path * later + one_step, later)
    return value, value

  if share:
    tokens = jnp.asarray(observed)
    chex.assert_shape(tokens, mask.shape)
    inputs = (jnp.moveaxis(values, -2, 0), jnp.moveaxis(log_probs, -2, 0)), jnp.moveaxis(tokens, -1, 0)
  else:
    inputs = jnp.moveaxis(measure(values, log_probs), -1, 0), None
  steps = (*inputs, jnp.moveaxis(jnp.asarray(mask), -1, 0))
  _, path = jax.lax.scan(backward, jnp.zeros(values.shape[:-2]), steps, reverse=True)
  return jnp.moveaxis(path, 0, -1)


def markov_value(
  rewards: Array, log_probs: Array, next_state: Array, measure: measures.RiskMeasure, discount: float = 1.0
) -> Array:
  """The nested value of every state of a finite token MDP.

  V(s) = measure_{z ~ p(.|s)}[ rewards(s, z) + discount V(next_state(s, z)) ],   V(end) = 0

  States are numbered so that every token leads to a later state, as for prefixes ordered by length; the number S is the
  end. One reverse scan over the states then solves the recursion exactly.

  Args:
    rewards: [S, V], the reward of token z in state s.
    log_probs: [S, V], nats, the policy's.
    next_state: [S, V] int, greater than its row and at most S.
    measure: the one-step risk measure: of the lower tail for rewards, of the upper tail for costs.
    discount: factor per step, in [0, 1].

  Returns:
    [S + 1], the value of each state, followed by the 0 of the end.

  Raises:
    ValueError: if discount is outside [0, 1], or a next state is not later (checked if its values are known at trace
      time).
  """
  require_share('discount', discount)
  chex.assert_rank(rewards, 2)
  chex.assert_equal_shape([rewards, log_probs, next_state])
  states = rewards.shape[0]
  _require_order(next_state, states)

  def backward(value: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
    number, rewards, log_probs, following = state
    returns = rewards + discount * value[following]
    return value.at[number].set(measure(returns, log_probs)), None

  numbers = jnp.arange(states)
  value, _ = jax.lax.scan(
    backward, jnp.zeros(states + 1), (numbers, rewards, log_probs, jnp.asarray(next_state)), reverse=True
  )
  return value


def advantage(
  rewards: Array, log_probs: Array, next_state: Array, measure: measures.RiskMeasure, discount: float = 1.0
) -> Array:
  """The advantage of each token: its nested value minus that of its state.

  A(s, z) = rewards(s, z) + discount V(next_state(s, z)) - V(s)

  Along any path s_0, z_0, s_1, ... to the end the advantages telescope, for every measure:
  sum_t discount^t A(s_t, z_t) = sum_t discount^t rewards(s_t, z_t) - V(s_0).

  Args and Raises as for `markov_value`.

  Returns:
    [S, V], in the unit of the rewards.
  """
  value = markov_value(rewards, log_probs, next_state, measure, discount)
  return rewards + discount * value[jnp.asarray(next_state)] - value[:-1, None]


def require_share(name: str, share: float) -> None:
  """Raises a ValueError unless a number is in [0, 1]."""
  if not 0 <= share <= 1:
    raise ValueError(f'{name} must be in [0, 1], got {share!r}')


def _require_order(next_state: Array, states: int) -> None:
  if isinstance(next_state, jax.core.Tracer):
    return
  following = np.asarray(next_state)
  wrong = np.argwhere((following <= np.arange(states)[:, None]) | (following > states))
  if len(wrong):
    state, token = wrong[0]
    raise ValueError(
      f'next_state[{state}, {token}] is {following[state, token]}: every token must lead to a later state, or to the '
      f'end, {states}; number the states in order of their length'
    )
