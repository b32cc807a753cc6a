"""Objectives of a preference pair: functions of one margin between the preferred and the dispreferred response.

Notation, for prompt x with preferred response y_w (response 0) and dispreferred y_l (response 1):

  rho(y) = log pi(y|x) - log pi_ref(y|x)     log-ratio, summed over the tokens of y, nats
  h      = rho(y_w) - rho(y_l)               margin

Every loss f(h) is taken in expectation over the label: with q = P(y_w is preferred) from `batch.label`, it is
q f(h) + (1 - q) f(-h); a hard label gives f(h).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base
from alignjax.types import Array, PreferenceBatch, Term

_LOG_RATIO_NEEDS = frozenset({stats.logp, stats.reference_logp})


def _expected(loss: Callable[[Array], Array], margin: Array, preferred: Array) -> Array:
  """[B]: q f(h) + (1 - q) f(-h) for q = `preferred`."""
  return preferred * loss(margin) + (1.0 - preferred) * loss(-margin)


def _reward_metrics(reward: Array) -> dict[str, Array]:
  """Metrics of an implicit reward, [B, 2]; at a tie the pair counts as half right."""
  chosen, rejected = reward[:, 0], reward[:, 1]
  metrics = {
    'reward_chosen': chosen,
    'reward_rejected': rejected,
    'reward_margin': chosen - rejected,
    'reward_accuracy': 0.5 * (1.0 + jnp.sign(chosen - rejected)),
  }
  return jax.lax.stop_gradient(metrics)


def _of_log_ratio(name: str, beta: float, loss: Callable[[Array], Array], smoothing: float = 0.0) -> base.Objective:
  """The objective E_q[f(h)] of the log-ratio margin h, with implicit reward beta * rho(y)."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    log_ratio = table.log_ratio()
    label = jnp.asarray(batch.label)
    preferred = (1.0 - smoothing) * label + smoothing * (1.0 - label)
    margin = log_ratio[:, 0] - log_ratio[:, 1]
    return Term(_expected(loss, margin, preferred), _reward_metrics(beta * log_ratio))

  return base.Objective(_LOG_RATIO_NEEDS, apply)


@base.factory
def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> base.Objective:
  """Direct preference optimisation, -log sigmoid(beta h); with label smoothing, conservative DPO.

  loss = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),   e = label_smoothing

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    label_smoothing: probability e in [0, 0.5) that a label is flipped.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: for beta <= 0 or a label_smoothing outside [0, 0.5).

  References:
    Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290, equation 7.
    Mitchell 2023, A note on DPO with noisy preferences & relationship to IPO,
    https://ericmitchell.ai/cdpo.pdf, equation 3.
  """
  base.require(beta > 0, 'dpo', 'beta must be positive', beta)
  base.require(0 <= label_smoothing < 0.5, 'dpo', 'label_smoothing must lie in [0, 0.5)', label_smoothing)
  return _of_log_ratio('dpo', beta, lambda margin: -jax.nn.log_sigmoid(beta * margin), label_smoothing)


@base.factory
def ipo(tau: float = 0.1) -> base.Objective:
  """Identity preference optimisation, (h - 1 / (2 tau))^2.

  h is made of log-probabilities summed over tokens, as in the paper; several trainers average them over tokens instead.

  Args:
    tau: strength of the KL constraint to the reference, > 0, 1/nats. The optimum lies at h = 1 / (2 tau).

  Returns:
    An objective; [B] nats^2. At policy == reference every loss is 1 / (4 tau^2). The implicit reward is tau * rho.

  Raises:
    ValueError: for tau <= 0.

  References:
    Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human Preferences,
    https://arxiv.org/abs/2310.12036, equation 17.
  """
  base.require(tau > 0, 'ipo', 'tau must be positive', tau)
  return _of_log_ratio('ipo', tau, lambda margin: jnp.square(margin - 1.0 / (2.0 * tau)))


@base.factory
def hinge(beta: float = 0.1) -> base.Objective:
  """Hinge loss on the log-ratio margin, max(0, 1 - beta h).

  Args:
    beta: inverse of the margin, in nats, beyond which a pair no longer counts; > 0.

  Returns:
    An objective; [B]. At policy == reference every loss is 1.

  Raises:
    ValueError: for beta <= 0.

  References:
    Liu et al. 2023, Statistical Rejection Sampling Improves Preference Optimization (RSO),
    https://arxiv.org/abs/2309.06657, equation 10 (the hinge loss normalised by the reference, gamma = beta).
  """
  base.require(beta > 0, 'hinge', 'beta must be positive', beta)
  return _of_log_ratio('hinge', beta, lambda margin: jax.nn.relu(1.0 - beta * margin))


@base.factory
def simpo(beta: float = 2.0, gamma: float = 1.0) -> base.Objective:
  """Simple preference optimisation: a length-normalised reward without reference, and a target margin.

  loss = -log sigmoid(beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma)

  Args:
    beta: scale of the reward, > 0, tokens/nat.
    gamma: target reward margin, >= 0. The paper tunes gamma / beta in [0, 1].

  Returns:
    An objective; [B] nats. Where both responses have the same mean log-probability, the loss is log(1 + exp(gamma)).

  Raises:
    ValueError: for beta <= 0 or gamma < 0.

  References:
    Meng et al. 2024, SimPO, https://arxiv.org/abs/2405.14734, equation 6.
  """
  base.require(beta > 0, 'simpo', 'beta must be positive', beta)
  base.require(gamma >= 0, 'simpo', 'gamma must not be negative', gamma)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('simpo', table)
    reward = beta * table.mean(stats.logp)
    margin = reward[:, 0] - reward[:, 1]
    loss = _expected(lambda m: -jax.nn.log_sigmoid(m - gamma), margin, jnp.asarray(batch.label))
    return Term(loss, _reward_metrics(reward))

  return base.Objective(frozenset({stats.logp}), apply)
