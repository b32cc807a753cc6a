"""Objectives of a preference pair that read the two rewards themselves, not only their difference.

Notation as in `preference`: rho_w = rho(y_w) and rho_l = rho(y_l) are summed log-ratios, nats; h = rho_w - rho_l. A
function of h alone leaves their level free, and both likelihoods may fall together; these losses pin the level down.
Every loss L(rho_w, rho_l) is taken in expectation over the label: q L(rho_0, rho_1) + (1 - q) L(rho_1, rho_0) for
q = `batch.label`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax.objectives import base, preference
from alignjax.types import Array


def _of_log_ratios(name: str, beta: float, loss: Callable[[Array, Array], Array]) -> base.Objective:
  """The objective E_q[L(rho_w, rho_l)], with implicit reward beta * rho(y)."""
  base.require(beta > 0, name, 'beta must be positive', beta)
  return preference.of_two_log_ratios(name, beta, loss)


def _distance_to_targets(chosen: Array, rejected: Array, target: float) -> Array:
  """(rho_w - target)^2 + (rho_l + target)^2."""
  return jnp.square(chosen - target) + jnp.square(rejected + target)


@base.factory
def nca(beta: float = 0.01) -> base.Objective:
  """Noise contrastive alignment on a pair: raises the preferred response, and keeps both from drifting up.

  loss = -log sigmoid(beta rho_w) - 1/2 log sigmoid(-beta rho_w) - 1/2 log sigmoid(-beta rho_l)

  The likelihood of y_w itself has an optimum, at rho_w = log 2 / beta: it is not free to fall with that of y_l.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is 2 log 2 and every reward 0.

  Raises:
    ValueError: for beta <= 0.

  Defaults:
    beta as in TRL's recipe for the method.

  References:
    Chen et al. 2024, Noise Contrastive Alignment of Language Models with Explicit Rewards,
    https://arxiv.org/abs/2402.05369, the NCA loss for K = 2 responses and hard preferences.
  """

  def loss(chosen: Array, rejected: Array) -> Array:
    noise = jax.nn.log_sigmoid(-beta * chosen) + jax.nn.log_sigmoid(-beta * rejected)
    return -jax.nn.log_sigmoid(beta * chosen) - 0.5 * noise

  return _of_log_ratios('nca', beta, loss)


@base.factory
def bco_pair(beta: float = 0.1) -> base.Objective:
  """Binary classifier optimisation on a pair, without reward shift: y_w is classified as good, y_l as bad.

  loss = -log sigmoid(beta rho_w) - log sigmoid(-beta rho_l)

  By convexity it is an upper bound of DPO's loss. The paper subtracts a reward shift from both rewards, which tightens
  the bound: that is `bco`, which needs the whole batch for it. Trainers differ on whether their `bco_pair` has the
  shift.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is 2 log 2 and every reward 0.

  Raises:
    ValueError: for beta <= 0.

  Defaults:
    beta as for DPO, as TRL's.

  References:
    Jung et al. 2024, Binary Classifier Optimization for Large Language Model Alignment,
    https://arxiv.org/abs/2404.04656, the binary cross-entropy loss before the reward shift.
  """
  return _of_log_ratios(
    'bco_pair',
    beta,
    lambda chosen, rejected: -jax.nn.log_sigmoid(beta * chosen) - jax.nn.log_sigmoid(-beta * rejected),
  )


@base.factory
def sppo(beta: float = 0.001) -> base.Objective:
  """Self-play preference optimisation with hard labels: regresses both log-ratios to +-1 / (2 beta).

  loss = (rho_w - 1 / (2 beta))^2 + (rho_l + 1 / (2 beta))^2

  With a label q in between, the paper regresses rho to eta (q - 1/2), eta = 1 / beta; the expectation over the label
  that is taken here differs from it only by a constant, so gradients are the same.

  Args:
    beta: inverse of the paper's eta, > 0, 1/nats. The optimum lies at rho_w = -rho_l = 1 / (2 beta).

  Returns:
    An objective; [B] nats^2. At policy == reference every loss is 1 / (2 beta^2) and every reward 0.

  Raises:
    ValueError: for beta <= 0.

  Defaults:
    beta of the paper's experiments, eta = 1000. Losses are then of the order of 5e5 nats^2.

  References:
    Wu et al. 2024, Self-Play Preference Optimization for Language Model Alignment, https://arxiv.org/abs/2405.00675,
    the loss of its algorithm 1 for P(y_w beats y_l) = 1.
  """
  return _of_log_ratios(
    'sppo', beta, lambda chosen, rejected: _distance_to_targets(chosen, rejected, 1.0 / (2.0 * beta))
  )


@base.factory
def apo_zero(beta: float = 0.1) -> base.Objective:
  """Anchored preference optimisation, zero: raises the preferred response and lowers the dispreferred one.

  loss = 1 - sigmoid(beta rho_w) + sigmoid(beta rho_l)

  For preferred responses that are better than what the policy writes. The 1 only shifts the paper's loss, so that it is
  not negative.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B], in [0, 2]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: for beta <= 0.

  Defaults:
    beta as for DPO, as TRL's.

  References:
    D'Oosterlinck et al. 2024, Anchored Preference Optimization and Contrastive Revisions,
    https://arxiv.org/abs/2408.06266, the APO-zero loss.
  """
  return _of_log_ratios(
    'apo_zero', beta, lambda chosen, rejected: jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)
  )


@base.factory
def apo_down(beta: float = 0.1) -> base.Objective:
  """Anchored preference optimisation, down: lowers both responses, the dispreferred one more.

  loss = sigmoid(beta rho_w) + 1 - sigmoid(beta h)

  For preferred responses that are worse than what the policy writes. The 1 only shifts the paper's loss, so that it is
  not negative.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B], in [0, 2]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: for beta <= 0.

  Defaults:
    beta as for DPO, as TRL's.

  References:
    D'Oosterlinck et al. 2024, Anchored Preference Optimization and Contrastive Revisions,
    https://arxiv.org/abs/2408.06266, the APO-down loss.
  """
  return _of_log_ratios(
    'apo_down',
    beta,
    lambda chosen, rejected: jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected)),
  )


@base.factory
def cal_dpo(beta: float = 0.1, weight: float = 1.0) -> base.Objective:
  """Calibrated DPO: a contrastive term, and both log-ratios regressed to +-1 / (2 beta).

  loss = -log sigmoid(h) + weight [(rho_w - 1 / (2 beta))^2 + (rho_l + 1 / (2 beta))^2]

  beta enters through the targets only: the contrastive term has the slope 1 in h, as in the paper. The regression is
  that of `sppo`.

  Args:
    beta: inverse distance of the two targets, > 0, 1/nats.
    weight: of the calibration, >= 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 + weight / (2 beta^2) and every reward, which is
    beta rho, 0.

  Raises:
    ValueError: for beta <= 0 or a negative weight.

  Defaults:
    weight 1, the plain sum of the paper; beta ours, for targets of +-5 nats.

  References:
    Xiao et al. 2024, Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment,
    https://arxiv.org/abs/2412.14516, its full loss.
  """
  base.require(weight >= 0, 'cal_dpo', 'weight must not be negative', weight)
  return _of_log_ratios(
    'cal_dpo',
    beta,
    lambda chosen, rejected: (
      -jax.nn.log_sigmoid(chosen - rejected) + weight * _distance_to_targets(chosen, rejected, 1.0 / (2.0 * beta))
    ),
  )


@base.factory
def c2_dpo(beta: float = 0.1, weight: float = 1e-3) -> base.Objective:
  """Constrained controlled DPO: DPO, and a penalty on probability mass that leaves both responses, or enters both.

  loss = -log sigmoid(beta h) + weight (rho_w + rho_l)^2

  The constraint is the paper's on log-probabilities, relaxed to a penalty: what y_w gains, in nats, y_l loses.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    weight: of the penalty, >= 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: for beta <= 0 or a negative weight.

  Defaults:
    beta as for DPO; weight ours, so that a common drift of 10 nats of the sum costs 0.1.

  References:
    Asadi et al. 2025, C2-DPO: Constrained Controlled Direct Preference Optimization, https://arxiv.org/abs/2502.17507,
    the loss with the logarithmic constraint.
  """
  base.require(weight >= 0, 'c2_dpo', 'weight must not be negative', weight)
  return _of_log_ratios(
    'c2_dpo',
    beta,
    lambda chosen, rejected: -jax.nn.log_sigmoid(beta * (chosen - rejected)) + weight * jnp.square(chosen + rejected),
  )
