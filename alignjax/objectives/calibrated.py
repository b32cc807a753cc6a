"""Objectives of a preference pair that read the two rewards themselves, not only their difference.

Notation as in `preference`: rho_w = rho(y_w) and rho_l = rho(y_l) are summed log-ratios, in nats; h = rho_w - rho_l. A
function of h alone leaves the level of the rewards free, so both likelihoods may fall together. These losses fix the
level. The label enters as an expectation: q L(rho_0, rho_1) + (1 - q) L(rho_1, rho_0) for q = `batch.label`.
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
  """Noise contrastive alignment on a pair: raises the preferred response and keeps both from drifting up.

  loss = -log sigmoid(beta rho_w) - 1/2 log sigmoid(-beta rho_w) - 1/2 log sigmoid(-beta rho_l)

  The likelihood of y_w itself has an optimum, at rho_w = log 2 / beta, so it cannot fall together with that of y_l.

  Use it when:
    DPO lowers the likelihood of the preferred responses, for example on reasoning or code, and you want to prevent it.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is 2 log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta from TRL's recipe for the method.

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
  """Binary classifier optimisation on a pair, without reward shift: classifies y_w as good and y_l as bad.

  loss = -log sigmoid(beta rho_w) - log sigmoid(-beta rho_l)

  By convexity it is an upper bound of DPO's loss. The paper subtracts a reward shift from both rewards, which tightens
  the bound; `bco` does that, and needs the whole batch for it. Trainers differ on whether their `bco_pair` has the
  shift.

  Use it when:
    you want each response judged on its own, but have pairs and no need for the reward shift of `bco`.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is 2 log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO, like TRL's.

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

  For a label q between 0 and 1 the paper regresses rho to eta (q - 1/2), with eta = 1 / beta. The expectation over the
  label used here differs from it only by a constant, so the gradients agree.

  Use it when:
    you run rounds of self-play: sample pairs from the current policy, label them with a preference model, and make the
    last policy the reference.

  Args:
    beta: inverse of the paper's eta, > 0, 1/nats. The optimum is rho_w = -rho_l = 1 / (2 beta).

  Returns:
    An objective; [B] nats^2. At policy == reference every loss is 1 / (2 beta^2) and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta from the paper's experiments, eta = 1000. Losses are then around 5e5 nats^2.

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

  The 1 shifts the paper's loss so that it is not negative.

  Use it when:
    the preferred responses are better than what the policy writes.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B], in [0, 2]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO, like TRL's.

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

  The 1 shifts the paper's loss so that it is not negative.

  Use it when:
    the preferred responses are worse than what the policy writes, so both should become less likely.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B], in [0, 2]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO, like TRL's.

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
  """Calibrated DPO: a contrastive term, plus a regression of both log-ratios to +-1 / (2 beta).

  loss = -log sigmoid(h) + weight [(rho_w - 1 / (2 beta))^2 + (rho_l + 1 / (2 beta))^2]

  beta enters only through the targets: the contrastive term has slope 1 in h, as in the paper. The regression is that
  of `sppo`.

  Use it when:
    you want the implicit reward on an absolute scale, so the likelihood of preferred responses does not fall.

  Args:
    beta: inverse of the distance between the two targets, > 0, 1/nats.
    weight: weight of the calibration term, >= 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 + weight / (2 beta^2) and every reward, beta rho,
    is 0.

  Raises:
    ValueError: if beta <= 0 or weight < 0.

  Defaults:
    weight 1, the plain sum of the paper; beta is our choice, for targets of +-5 nats.

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
  """Constrained controlled DPO: DPO plus a penalty on probability mass that leaves or enters both responses together.

  loss = -log sigmoid(beta h) + weight (rho_w + rho_l)^2

  The paper's constraint on log-probabilities is relaxed to a penalty: what y_w gains, in nats, y_l should lose.

  Use it when:
    both likelihoods drift down together under DPO, and you want to keep their sum near the reference.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    weight: weight of the penalty, >= 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or weight < 0.

  Defaults:
    beta as for DPO; weight is our choice: a common drift of 10 nats of the sum costs 0.1.

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
