"""DPO with another margin: one that depends on scores, or that weighs the two responses unequally.

Every loss is L(y_w, y_l) = -log sigmoid(margin) for a margin of its own. If the margin is not antisymmetric in the two
responses, a soft label q = P(y_w is preferred) gives q L(y_w, y_l) + (1 - q) L(y_l, y_w). Notation as in `preference`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import Array, PreferenceBatch, Term

MIN_SCORE_GAP = 1e-6


def _logistic_of(name: str, beta: float, margin: Callable[[Array, Array], Array]) -> base.Objective:
  """The objective -log sigmoid(beta margin(rho(y_w), rho(y_l))), in expectation over which response is preferred."""
  return preference.of_two_log_ratios(
    name, beta, lambda chosen, rejected: preference.logistic(beta * margin(chosen, rejected))
  )


@base.factory
def odpo(beta: float = 0.1, alpha: float = 1.0) -> base.Objective:
  """DPO with an offset: the further apart the scores of a pair, the larger the margin that it asks for.

  loss = -log sigmoid(beta h - alpha log(score(y_w) - score(y_l)))

  The paper takes labels from the scores, so the difference of scores is positive. As the difference goes to 0 the
  offset goes to -infinity and the loss to 0: such a pair asks for nothing. A difference below 1e-6, such as a tie or a
  score that contradicts the label, is replaced by 1e-6, which continues this: for alpha = 1 the pair hardly counts. The
  metric `score_agreement` is 1 where the scores agree with the order of the responses, and 0 where they contradict it.

  Use it when:
    responses have scores, and a clear win should move the policy more than a narrow one.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    alpha: strength of the offset, >= 0; 0 gives DPO.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log(1 + (score(y_w) - score(y_l))^alpha) and every
    reward 0.

  Raises:
    ValueError: if beta <= 0 or alpha < 0; at trace time, if the batch has no scores.

  Defaults:
    beta as for DPO; alpha from the paper's main experiments.

  References:
    Amini et al. 2024, Direct Preference Optimization with an Offset, https://arxiv.org/abs/2402.10571, with the
    logarithm as the scaling function of the offset.
  """
  base.require(beta > 0, 'odpo', 'beta must be positive', beta)
  base.require(alpha >= 0, 'odpo', 'alpha must not be negative', alpha)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('odpo', table)
    score = base.require_score('odpo', batch)
    log_ratio = table.log_ratio()
    logit = beta * (log_ratio[:, 0] - log_ratio[:, 1])
    gap = score[:, 0] - score[:, 1]
    label = jnp.asarray(batch.label)
    as_given, swapped = (alpha * jnp.log(jnp.maximum(side, MIN_SCORE_GAP)) for side in (gap, -gap))
    loss = label * preference.logistic(logit - as_given) + (1.0 - label) * preference.logistic(-logit - swapped)
    metrics = {
      'offset': preference.mixed(as_given, swapped, label),
      'score_agreement': preference.labelled_accuracy(gap, label),
    }
    return Term(loss, {**preference.reward_metrics(beta * log_ratio, label), **jax.lax.stop_gradient(metrics)})

  return base.Objective(preference.LOG_RATIO_NEEDS, apply, reads=base.LABEL | base.SCORE, responses=2)


@base.factory
def mmpo(beta: float = 0.1, gamma: float = 1.0) -> base.Objective:
  """Margin matching preference optimisation: DPO with the label that the Bradley-Terry model assigns to the scores.

  loss = -p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h),   p = sigmoid(gamma (score(y_w) - score(y_l)))

  The label of the batch is not read: p takes its place, even where the scores contradict it. Swapping the responses
  does not change the loss.

  Use it when:
    responses have scores that you trust more than a hard label: near-ties then ask for a small margin.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    gamma: log-odds of the preference per unit of score difference, > 0, 1/score.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or gamma <= 0; at trace time, if the batch has no scores.

  Defaults:
    beta as for DPO; gamma is our choice, right for scores that are log-odds. Scale it to your scores.

  References:
    Kim et al. 2024, Margin Matching Preference Optimization, https://arxiv.org/abs/2410.03145.
  """
  base.require(beta > 0, 'mmpo', 'beta must be positive', beta)
  base.require(gamma > 0, 'mmpo', 'gamma must be positive', gamma)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('mmpo', table)
    score = base.require_score('mmpo', batch)
    log_ratio = table.log_ratio()
    target = jax.nn.sigmoid(gamma * (score[:, 0] - score[:, 1]))
    loss = preference.expected(preference.logistic, beta * (log_ratio[:, 0] - log_ratio[:, 1]), target)
    label = jnp.asarray(batch.label)  # only metrics read it
    metrics = {'target': preference.mixed(target, 1.0 - target, label)}
    return Term(loss, {**preference.reward_metrics(beta * log_ratio, label), **metrics})

  return base.Objective(preference.LOG_RATIO_NEEDS, apply, reads=base.SCORE, responses=2)


@base.factory
def dpop(beta: float = 0.3, penalty: float = 50.0) -> base.Objective:
  """DPO-Positive: DPO with a penalty where the preferred response has become less likely than under the reference.

  loss = -log sigmoid(beta (h - penalty max(0, -rho(y_w))))

  Use it when:
    the two responses differ in few tokens, as in mathematics, so DPO also lowers the likelihood of the preferred one.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    penalty: weight of the lost log-likelihood, >= 0; 0 gives DPO. The paper calls it lambda.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or penalty < 0.

  Defaults:
    beta and penalty from the paper's experiments.

  References:
    Pal et al. 2024, Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive,
    https://arxiv.org/abs/2402.13228, equation 3.
  """
  base.require(beta > 0, 'dpop', 'beta must be positive', beta)
  base.require(penalty >= 0, 'dpop', 'penalty must not be negative', penalty)
  return _logistic_of('dpop', beta, lambda chosen, rejected: chosen - rejected - penalty * jax.nn.relu(-chosen))


@base.factory
def dpo_shift(beta: float = 0.1, shift: float = 0.75) -> base.Objective:
  """DPO-Shift: DPO that counts the dispreferred response less, so that the preferred one keeps its likelihood.

  loss = -log sigmoid(beta rho(y_w) - shift beta rho(y_l))

  The paper also varies the shift during training; here it is fixed.

  Use it when:
    preferred responses lose likelihood under DPO, and you accept a slightly smaller margin to prevent it.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    shift: weight of the dispreferred response, in (0, 1]; 1 gives DPO. The paper calls it f(lambda).

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0, or shift is outside (0, 1].

  Defaults:
    beta as for DPO; shift is our choice.

  References:
    Yang et al. 2025, DPO-Shift: Shifting the Distribution of Direct Preference Optimization,
    https://arxiv.org/abs/2502.07599.
  """
  base.require(beta > 0, 'dpo_shift', 'beta must be positive', beta)
  base.require(0 < shift <= 1, 'dpo_shift', 'shift must be in (0, 1]', shift)
  return _logistic_of('dpo_shift', beta, lambda chosen, rejected: chosen - shift * rejected)


@base.factory
def h_dpo(beta: float = 0.1, alpha: float = 0.9) -> base.Objective:
  """H-DPO: DPO with a separate weight for the entropy of the policy; alpha < 1 sharpens the policy.

  loss = -log sigmoid(alpha beta (log pi(y_w|x) - log pi(y_l|x)) - beta (log pi_ref(y_w|x) - log pi_ref(y_l|x)))

  The KL constraint is split into entropy and cross-entropy, and alpha weighs the entropy. The implicit reward is beta
  (alpha log pi - log pi_ref).

  Use it when:
    you want to control how peaked the trained policy is, independently of its distance to the reference.

  Args:
    beta: strength of the constraint to the reference, > 0, 1/nats.
    alpha: weight of the entropy, > 0; 1 gives DPO.

  Returns:
    An objective; [B] nats. At policy == reference the loss depends on the likelihoods, unless alpha = 1.

  Raises:
    ValueError: if beta <= 0 or alpha <= 0.

  Defaults:
    beta as for DPO; alpha is our choice, a little below 1 as the paper advises.

  References:
    Omura et al. 2024, Entropy Controllable Direct Preference Optimization, https://arxiv.org/abs/2411.07595.
  """
  base.require(beta > 0, 'h_dpo', 'beta must be positive', beta)
  base.require(alpha > 0, 'h_dpo', 'alpha must be positive', alpha)

  def reward(table: stats.StatTable, batch: PreferenceBatch) -> Array:
    del batch
    return beta * (alpha * table.sum(stats.logp) - table.sum(stats.reference_logp))

  return preference.of_reward('h_dpo', preference.LOG_RATIO_NEEDS, reward)


@base.factory
def bpo(beta: float = 0.1, factor: float = 0.3) -> base.Objective:
  """Balanced preference optimisation: the margin is the smaller of the gains on the two responses.

  loss = -log sigmoid(beta min(rho(y_w), -factor rho(y_l)))

  Only the response that lags behind has a gradient, so neither can be sacrificed for the other. At policy == reference
  both have one, half each.

  Use it when:
    DPO improves the margin mostly by pushing the dispreferred response down, and you want both sides to contribute.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    factor: balance between the two responses, > 0: the larger it is, the sooner the dispreferred response stops
      limiting the margin. The paper calls it the gap adaptor.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or factor <= 0.

  Defaults:
    beta as for DPO; factor from the released code's comparison of losses.

  References:
    Sun et al. 2025, BPO: Revisiting Preference Modeling in Direct Preference Optimization,
    https://arxiv.org/abs/2506.03557.
  """
  base.require(beta > 0, 'bpo', 'beta must be positive', beta)
  base.require(factor > 0, 'bpo', 'factor must be positive', factor)
  return _logistic_of('bpo', beta, lambda chosen, rejected: jnp.minimum(chosen, -factor * rejected))


@base.factory
def minor_dpo(beta: float = 0.1) -> base.Objective:
  """MinorDPO: DPO that pushes the dispreferred response down only until it is as unlikely as under the reference.

  loss = -log sigmoid(beta (rho(y_w) - max(0, rho(y_l))))

  Use it when:
    training degrades because the penalty on dispreferred responses keeps growing.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Xie et al. 2024, Minor DPO reject penalty to increase training robustness, https://arxiv.org/abs/2408.09834.
  """
  base.require(beta > 0, 'minor_dpo', 'beta must be positive', beta)
  return _logistic_of('minor_dpo', beta, lambda chosen, rejected: chosen - jax.nn.relu(rejected))
