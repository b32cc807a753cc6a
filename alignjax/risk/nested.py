"""Nested (Markov) risk: a one-step measure applied token by token, from the last token back to the first.

Tokens are the only randomness of a response: prefix s and token z lead to the prefix s + z. A nested measure is
time-consistent. A static measure of the whole return is not, except for the undiscounted entropic ones.

References:
  Ruszczynski 2010, Risk-averse dynamic programming for Markov decision processes, Mathematical Programming 125,
  theorem 2 (the recursion).
  Du, Wang and Huang 2022, Risk-Sensitive Reinforcement Learning: Iterated CVaR and its Worst Path Limit,
  https://arxiv.org/abs/2206.02678, equation 1.
"""

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from alignjax.risk import measures
from alignjax.types import Array


def path_value(
  values: Array, log_probs: Array, mask: Array, measure: measures.RiskMeasure, discount: float = 1.0
) -> Array:
  """The nested value along one observed path of tokens.

  V_t = measure_{z ~ p_t}[ values_t(z) + discount V_{t+1} ],   V_T = 0

  Whatever token z is drawn at step t, the observed prefix's value V_{t+1} is used for the future, because along a path
  the values of other prefixes are unknown. For a translation-equivariant measure this gives V_0 = sum_t discount^t
  measure(values_t): with log-ratios as values and no discount, the sequential risk ratio.

  Args:
    values: [..., T, V], the value of each token that could come at step t.
    log_probs: [..., T, V], nats.
    mask: [..., T] bool; a masked step passes on V_{t+1}, undiscounted.
    measure: the one-step risk measure.
    discount: factor per step, in [0, 1].

  Returns:
    [..., T], V_t of each step, in the unit of the values.

  Raises:
    ValueError: if discount is outside [0, 1].
  """
  _require_discount(discount)
  chex.assert_equal_shape([values, log_probs])
  chex.assert_shape(mask, values.shape[:-1])

  def backward(later: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    values, log_probs, observed = step
    value = jnp.where(observed, measure(values + discount * later[..., None], log_probs), later)
    return value, value

  steps = (jnp.moveaxis(values, -2, 0), jnp.moveaxis(log_probs, -2, 0), jnp.moveaxis(jnp.asarray(mask), -1, 0))
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
  _require_discount(discount)
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


def _require_discount(discount: float) -> None:
  if not 0 <= discount <= 1:
    raise ValueError(f'discount must be in [0, 1], got {discount!r}')


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
