"""Preference objectives without a reference model: functions of the policy's own likelihoods.

Notation: log pi(y|x) is summed over the tokens of y, and divided by |y| where an equation says so. Soft labels enter as
in `pairwise`.
"""

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import PreferenceBatch, Term


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

  Defaults:
    beta of the paper's Base setting; gamma in the middle of its range 0.3 to 1.6.

  References:
    Meng et al. 2024, SimPO, https://arxiv.org/abs/2405.14734, equation 6.
  """
  base.require(beta > 0, 'simpo', 'beta must be positive', beta)
  base.require(gamma >= 0, 'simpo', 'gamma must not be negative', gamma)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('simpo', table)
    reward = beta * table.mean(stats.logp)
    margin = reward[:, 0] - reward[:, 1]
    loss = preference.expected(lambda m: -jax.nn.log_sigmoid(m - gamma), margin, jnp.asarray(batch.label))
    return Term(loss, preference.reward_metrics(reward))

  return base.Objective(frozenset({stats.logp}), apply)
