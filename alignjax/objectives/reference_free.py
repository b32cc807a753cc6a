"""Preference objectives without a reference model: functions of the policy's own likelihoods.

Notation: log pi(y|x) is summed over the tokens of y, and divided by |y| where an equation shows it; m_w and m_l are
such means, in nats/token. Soft labels enter as an expectation over which of the two responses is preferred.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax import numerics, stats
from alignjax.objectives import base, preference
from alignjax.types import Array, PreferenceBatch, Term

# A response of probability 1 has infinite odds. The only mean of float32 log-probabilities above this value is 0.
_LARGEST_MEAN_LOGP = -1e-12
_LARGEST_EXPONENT = 30.0


def _mean_logp(table: stats.StatTable) -> Array:
  return table.mean(stats.logp)


def _of_reward(
  name: str,
  reward: Callable[[stats.StatTable], Array],
  loss: Callable[[Array], Array],
  imitation: Callable[[stats.StatTable], Array] | None = None,
) -> base.Objective:
  """The objective E_q[f(reward_w - reward_l) - imitation_w] of two functions of the policy's likelihoods, [B, N]."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    preferred = jnp.asarray(batch.label)
    value = reward(table)
    total = preference.expected(loss, value[:, 0] - value[:, 1], preferred)
    metrics = preference.reward_metrics(value, preferred)
    if imitation is not None:
      likelihood = imitation(table)
      regulariser = -(preferred * likelihood[:, 0] + (1.0 - preferred) * likelihood[:, 1])
      total = total + regulariser
      metrics['imitation_loss'] = jax.lax.stop_gradient(regulariser)
    return Term(total, metrics)

  return base.Objective(frozenset({stats.logp}), apply, reads=base.LABEL, responses=2)


@base.factory
def simpo(beta: float = 2.0, gamma: float = 1.0) -> base.Objective:
  """Simple preference optimisation: a length-normalised reward without a reference, and a target margin.

  loss = -log sigmoid(beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma)

  Use it when:
    you want no reference model in memory and no length bias. It is sensitive to beta, gamma and the learning rate, so
    plan to tune them.

  Args:
    beta: scale of the reward, > 0, tokens/nat.
    gamma: target reward margin, >= 0. The paper tunes gamma / beta in [0, 1].

  Returns:
    An objective; [B] nats. Where both responses have the same mean log-probability, the loss is log(1 + exp(gamma)).

  Raises:
    ValueError: if beta <= 0 or gamma < 0.

  Defaults:
    beta from the paper's Base setting; gamma in the middle of its range 0.3 to 1.6.

  References:
    Meng et al. 2024, SimPO, https://arxiv.org/abs/2405.14734, equation 6.
  """
  base.require(beta > 0, 'simpo', 'beta must be positive', beta)
  base.require(gamma >= 0, 'simpo', 'gamma must not be negative', gamma)
  return _of_reward('simpo', lambda table: beta * _mean_logp(table), lambda margin: preference.logistic(margin - gamma))


@base.factory
def alpha_po(beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25) -> base.Objective:
  """AlphaPO (not alpha-DPO): SimPO with the shape of the reward bent by alpha.

  loss = -log sigmoid(beta (R_w - R_l) - gamma),   R = (1 - p^-alpha) / alpha,   p = exp(log pi(y|x) / |y|)

  alpha = 0 is the limit R = log p, which is SimPO. A positive alpha raises the reward's slope where a response is
  improbable; a negative one lowers it. The exponent -alpha log p is clipped at 30: a response whose mean is below -30 /
  alpha nats/token has no gradient. alpha-DPO (2410.10148) has a similar name but is a different method: it shifts
  SimPO's margin by the reference.

  Use it when:
    SimPO lowers both likelihoods too far or too little, and you want to control how strongly improbable responses are
    pushed.

  Args:
    beta: scale of the reward, > 0, tokens/nat.
    gamma: target reward margin, >= 0.
    alpha: bend of the reward, any finite number; 0 gives SimPO.

  Returns:
    An objective; [B] nats. Where both responses have the same mean log-probability, the loss is log(1 + exp(gamma)).

  Raises:
    ValueError: if beta <= 0, gamma < 0, or alpha is not finite.

  Defaults:
    the paper's values for Mistral-Instruct, as TRL's recipe quotes them.

  References:
    Gupta et al. 2025, AlphaPO: Reward Shape Matters for LLM Alignment, https://arxiv.org/abs/2501.03884, its loss.
  """
  base.require(beta > 0, 'alpha_po', 'beta must be positive', beta)
  base.require(gamma >= 0, 'alpha_po', 'gamma must not be negative', gamma)
  base.require(abs(alpha) < float('inf'), 'alpha_po', 'alpha must be finite', alpha)

  def reward(table: stats.StatTable) -> Array:
    mean = _mean_logp(table)
    if alpha == 0:
      return beta * mean
    return -beta * jnp.expm1(jnp.minimum(-alpha * mean, _LARGEST_EXPONENT)) / alpha

  return _of_reward('alpha_po', reward, lambda margin: preference.logistic(margin - gamma))


@base.factory
def repo(gamma: float = 0.6) -> base.Objective:
  """ReLU-based preference optimisation: SimPO's margin under a hinge, without a scale beta to tune.

  loss = max(0, gamma - (m_w - m_l))

  SimPO's loss with target margin beta gamma, divided by beta, tends to it as beta -> infinity: pairs beyond the margin
  have no gradient, and all others have the same.

  Use it when:
    you want SimPO with one hyper-parameter.

  Args:
    gamma: target margin, >= 0, nats/token. The paper tunes it in [0, 1].

  Returns:
    An objective; [B] nats/token. Where both responses have the same mean log-probability, the loss is gamma.

  Raises:
    ValueError: if gamma < 0.

  Defaults:
    gamma from the released configuration for Llama-3-8B-Instruct.

  References:
    Wu et al. 2025, RePO: ReLU-based Preference Optimization, https://arxiv.org/abs/2503.07426, the RePO loss.
  """
  base.require(gamma >= 0, 'repo', 'gamma must not be negative', gamma)
  return _of_reward('repo', _mean_logp, lambda margin: jax.nn.relu(gamma - margin))


@base.factory
def simper() -> base.Objective:
  """SimPER: raises the inverse perplexity of the preferred response and lowers that of the dispreferred one.

  loss = -exp(m_w) + exp(m_l)

  It has no hyper-parameters, and no logarithm that would let an ever less probable y_l dominate.

  Use it when:
    you cannot tune hyper-parameters, or tuning is too expensive.

  Returns:
    An objective; [B], in [-1, 1]. Where both responses have the same mean log-probability, the loss is 0.

  References:
    Xiao et al. 2025, SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters,
    https://arxiv.org/abs/2502.00883, its loss.
  """
  return _of_reward('simper', lambda table: jnp.exp(_mean_logp(table)), lambda margin: -margin)


@base.factory
def cpo(beta: float = 0.1, weight: float = 1.0) -> base.Objective:
  """Contrastive preference optimisation: DPO under a uniform reference, plus imitation of the preferred response.

  loss = -log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x))) - weight log pi(y_w|x)

  The likelihood is summed over tokens, as in the paper; several trainers average over tokens.

  Use it when:
    you want DPO without a reference model and the preferred responses are good enough to imitate, as in machine
    translation.

  Args:
    beta: scale of the reward, > 0, 1/nats.
    weight: weight of the negative log-likelihood, >= 0.

  Returns:
    An objective; [B] nats.

  Raises:
    ValueError: if beta <= 0 or weight < 0.

  Defaults:
    beta as for DPO; weight 1, the plain sum of the paper.

  References:
    Xu et al. 2024, Contrastive Preference Optimization, https://arxiv.org/abs/2401.08417, the sum of the preference
    and the negative log-likelihood loss.
  """
  base.require(beta > 0, 'cpo', 'beta must be positive', beta)
  base.require(weight >= 0, 'cpo', 'weight must not be negative', weight)
  return _of_reward(
    'cpo',
    lambda table: beta * table.sum(stats.logp),
    preference.logistic,
    lambda table: weight * table.sum(stats.logp),
  )


@base.factory
def orpo(weight: float = 0.1) -> base.Objective:
  """Odds ratio preference optimisation: fine-tuning on y_w, plus a contrast of the log-odds of the two responses.

  loss = -m_w - weight log sigmoid(o(m_w) - o(m_l)),   o(m) = m - log(1 - exp(m))
  where o(m) is the log-odds of exp(m)

  The implicit reward is o(m). Means above -1e-12 nats/token, which are probabilities of 1 in float32, are replaced by
  -1e-12.

  Use it when:
    you want to train a base model on preferences in one stage, without supervised fine-tuning first and without a
    reference.

  Args:
    weight: weight of the odds ratio, the paper's lambda, >= 0.

  Returns:
    An objective; [B] nats. Where both responses have the mean log-probability m, the loss is -m + weight log 2.

  Raises:
    ValueError: if weight < 0.

  Defaults:
    TRL's weight; TRL calls it beta.

  References:
    Hong et al. 2024, ORPO: Monolithic Preference Optimization without Reference Model,
    https://arxiv.org/abs/2403.07691, the sum of its fine-tuning and odds ratio losses.
  """
  base.require(weight >= 0, 'orpo', 'weight must not be negative', weight)

  def log_odds(table: stats.StatTable) -> Array:
    mean = jnp.minimum(_mean_logp(table), _LARGEST_MEAN_LOGP)
    return mean - numerics.log1mexp(mean)

  return _of_reward('orpo', log_odds, lambda margin: weight * preference.logistic(margin), _mean_logp)


@base.factory
def rrhf(weight: float = 1.0) -> base.Objective:
  """Rank responses to align human feedback, on a pair: a ranking hinge without margin, plus imitation of y_w.

  loss = max(0, m_l - m_w) - weight log pi(y_w|x)

  Responses are ranked by their mean log-probability, and imitated by its sum over tokens, as in the paper.

  Use it when:
    you want a simple ranking baseline whose main force is imitation of the better response.

  Args:
    weight: weight of the negative log-likelihood, >= 0.

  Returns:
    An objective; [B] nats.

  Raises:
    ValueError: if weight < 0.

  Defaults:
    weight 1, the plain sum of the paper.

  References:
    Yuan et al. 2023, RRHF: Rank Responses to Align Language Models with Human Feedback without tears,
    https://arxiv.org/abs/2304.05302, the sum of its ranking and fine-tuning losses, for two responses.
  """
  base.require(weight >= 0, 'rrhf', 'weight must not be negative', weight)
  return _of_reward(
    'rrhf', _mean_logp, lambda margin: jax.nn.relu(-margin), lambda table: weight * table.sum(stats.logp)
  )


@base.factory
def slic_hf(margin: float = 1.0, weight: float = 0.1) -> base.Objective:
  """Sequence likelihood calibration: a hinge on the difference of log-likelihoods, plus imitation of y_w.

  loss = max(0, margin - log pi(y_w|x) + log pi(y_l|x)) - weight log pi(y_w|x)

  The paper imitates the targets of supervised fine-tuning; here these are the preferred responses, because a pair has
  no other target.

  Use it when:
    you want calibration by a fixed likelihood margin, with imitation as the regulariser instead of a reference.

  Args:
    margin: difference beyond which a pair has no gradient, the paper's delta, >= 0, nats.
    weight: weight of the negative log-likelihood, >= 0.

  Returns:
    An objective; [B] nats.

  Raises:
    ValueError: if margin < 0 or weight < 0.

  Defaults:
    our choice, within the ranges that comparisons of the method tune over.

  References:
    Zhao et al. 2023, SLiC-HF: Sequence Likelihood Calibration with Human Feedback, https://arxiv.org/abs/2305.10425,
    its calibration loss with the likelihood as regulariser.
  """
  base.require(margin >= 0, 'slic_hf', 'margin must not be negative', margin)
  base.require(weight >= 0, 'slic_hf', 'weight must not be negative', weight)
  return _of_reward(
    'slic_hf',
    lambda table: table.sum(stats.logp),
    lambda difference: jax.nn.relu(margin - difference),
    lambda table: weight * table.sum(stats.logp),
  )
