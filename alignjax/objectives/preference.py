"""Shared by the objectives of a preference pair: the expectation over the label, and the metrics of a reward.

Notation for a prompt x with preferred response y_w (response 0) and dispreferred response y_l (response 1):

  rho(y) = log pi(y|x) - log pi_ref(y|x)   log-ratio, summed over the tokens of y, in nats
  h = rho(y_w) - rho(y_l)                  margin
  q = P(y_w is preferred)                  `batch.label`, after label smoothing
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


def by_label(values: Array, label: Array) -> tuple[Array, Array]:
  """[B] each, of [B, 2]: the value of the preferred and of the dispreferred response, in expectation over the label."""
  first, second = values[:, 0], values[:, 1]
  return mixed(first, second, label), mixed(second, first, label)


def mixed(as_given: Array, swapped: Array, label: Array) -> Array:
  """[B]: q as_given + (1 - q) swapped, for q = `label`: an expectation over which response is preferred."""
  return label * as_given + (1.0 - label) * swapped


def reward_metrics(reward: Array, label: Array) -> dict[str, Array]:
  """Metrics of an implicit reward, in expectation over which response is preferred.

  Args:
    reward: [B, 2].
    label: [B], P(response 0 is preferred).

  Returns:
    `reward_chosen` and `reward_rejected`, their difference `reward_margin`, and `reward_accuracy`, the probability that
    the rewards order the pair as the label does; a tie counts one half. [B] each, without gradient.
  """
  label = jnp.asarray(label)
  chosen, rejected = by_label(reward, label)
  margin = reward[:, 0] - reward[:, 1]
  metrics = {
    'reward_chosen': chosen,
    'reward_rejected': rejected,
    'reward_margin': (2.0 * label - 1.0) * margin,  # exact for hard labels
    'reward_accuracy': labelled_accuracy(margin, label),
  }
  return jax.lax.stop_gradient(metrics)


def labelled_accuracy(margin: Array, label: Array) -> Array:
  """[B]: the probability that the sign of the margin agrees with the label; one half at a tie."""
  return mixed(accuracy(margin), accuracy(-margin), label)


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
  reads: frozenset[str] = base.LABEL,
) -> base.Objective:
  """The objective E_q[f(r(y_w) - r(y_l))] of a reward, [B, 2] from the table and the fields `reads` of the batch."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    rewards = reward(table, batch)
    margin, label = rewards[:, 0] - rewards[:, 1], jnp.asarray(batch.label)
    return Term(expected(loss, margin, label), reward_metrics(rewards, label))

  return base.Objective(needs, apply, reads=reads, responses=2)


def of_two_log_ratios(name: str, beta: float, loss: Callable[[Array, Array], Array]) -> base.Objective:
  """The objective E_q[L(rho(y_w), rho(y_l))] of any loss of two log-ratios, with implicit reward beta * rho(y)."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    log_ratio, label = table.log_ratio(), jnp.asarray(batch.label)
    first, second = log_ratio[:, 0], log_ratio[:, 1]
    total = label * loss(first, second) + (1.0 - label) * loss(second, first)
    return Term(total, reward_metrics(beta * log_ratio, label))

  return base.Objective(LOG_RATIO_NEEDS, apply, reads=base.LABEL, responses=2)


def mean_log_ratio(table: stats.StatTable) -> Array:
  """[B, N]: rho(y) / |y|, the log-ratio per token."""
  return table.mean(stats.logp) - table.mean(stats.reference_logp)


def of_log_ratio(
  name: str,
  beta: float,
  loss: Callable[[Array], Array],
  smoothing: float = 0.0,
  ratio: Callable[[stats.StatTable], Array] = stats.StatTable.log_ratio,
) -> base.Objective:
  """The objective E_q[f(h)] of the margin h of log-ratios, summed or as given, with implicit reward beta * rho(y)."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    log_ratio = ratio(table)
    label = jnp.asarray(batch.label)
    preferred = (1.0 - smoothing) * label + smoothing * (1.0 - label)
    margin = log_ratio[:, 0] - log_ratio[:, 1]
    return Term(expected(loss, margin, preferred), reward_metrics(beta * log_ratio, label))

  return base.Objective(LOG_RATIO_NEEDS, apply, reads=base.LABEL, responses=2)
