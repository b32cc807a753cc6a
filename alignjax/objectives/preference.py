"""What the objectives of a preference pair share: the expectation over its label, and the metrics of a reward.

Notation, for prompt x with preferred response y_w (response 0) and dispreferred y_l (response 1):

  rho(y) = log pi(y|x) - log pi_ref(y|x)     log-ratio, summed over the tokens of y, nats
  h      = rho(y_w) - rho(y_l)               margin
  q                                          P(y_w is preferred), `batch.label`, after label smoothing
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base
from alignjax.types import Array, PreferenceBatch, Term

LOG_RATIO_NEEDS = frozenset({stats.logp, stats.reference_logp})


def expected(loss: Callable[[Array], Array], margin: Array, preferred: Array) -> Array:
  """[B]: q f(h) + (1 - q) f(-h) for q = `preferred`."""
  return preferred * loss(margin) + (1.0 - preferred) * loss(-margin)


def reward_metrics(reward: Array) -> dict[str, Array]:
  """Metrics of an implicit reward, [B, 2]; at a tie the pair counts as half right."""
  chosen, rejected = reward[:, 0], reward[:, 1]
  metrics = {
    'reward_chosen': chosen,
    'reward_rejected': rejected,
    'reward_margin': chosen - rejected,
    'reward_accuracy': accuracy(chosen - rejected),
  }
  return jax.lax.stop_gradient(metrics)


def accuracy(margin: Array) -> Array:
  """[B]: 1 where the margin is positive, 0 where it is negative, and one half at a tie."""
  return 0.5 * (1.0 + jnp.sign(margin))


def logistic(margin: Array) -> Array:
  """-log sigmoid(margin): how surprising a preference is under the Bradley-Terry model, nats."""
  return -jax.nn.log_sigmoid(margin)


def of_reward(
  name: str,
  needs: frozenset[stats.TokenStat],
  reward: Callable[[stats.StatTable, PreferenceBatch], Array],
  loss: Callable[[Array], Array] = logistic,
) -> base.Objective:
  """The objective E_q[f(r(y_w) - r(y_l))] of a reward, [B, 2] from the table and the batch."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    rewards = reward(table, batch)
    margin = rewards[:, 0] - rewards[:, 1]
    return Term(expected(loss, margin, jnp.asarray(batch.label)), reward_metrics(rewards))

  return base.Objective(needs, apply)


def of_two_log_ratios(name: str, beta: float, loss: Callable[[Array, Array], Array]) -> base.Objective:
  """The objective E_q[L(rho(y_w), rho(y_l))] of a loss that is no function of the margin, with reward beta * rho(y)."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    log_ratio, label = table.log_ratio(), jnp.asarray(batch.label)
    first, second = log_ratio[:, 0], log_ratio[:, 1]
    total = label * loss(first, second) + (1.0 - label) * loss(second, first)
    return Term(total, reward_metrics(beta * log_ratio))

  return base.Objective(LOG_RATIO_NEEDS, apply)


def of_log_ratio(name: str, beta: float, loss: Callable[[Array], Array], smoothing: float = 0.0) -> base.Objective:
  """The objective E_q[f(h)] of the log-ratio margin h, with implicit reward beta * rho(y)."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    log_ratio = table.log_ratio()
    label = jnp.asarray(batch.label)
    preferred = (1.0 - smoothing) * label + smoothing * (1.0 - label)
    margin = log_ratio[:, 0] - log_ratio[:, 1]
    return Term(expected(loss, margin, preferred), reward_metrics(beta * log_ratio))

  return base.Objective(LOG_RATIO_NEEDS, apply)
