"""Objectives that learn a distribution or a reward from pairs: the policy's own likelihood is the preference model.

Notation: pi* is the target policy, and preferences follow P(y_0 is preferred to y_1) = sigmoid(gamma (log pi*(y_0|x) -
log pi*(y_1|x))), where log pi(y|x) is summed over the tokens of y. Conversely, gamma log pi is the reward implied by a
policy, up to a constant per prompt. There is no reference inside the margin: these objectives learn pi* itself, whereas
DPO with coefficient gamma on the same pairs learns pi_ref pi*, normalised. A penalty against a reference is a separate
term: `pmle(gamma=0.01) + kl_penalty(beta=1e-05)` (`on_policy.kl_penalty` explains which responses that takes).
"""

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import Array, PreferenceBatch, Term


@base.factory
def pmle(gamma: float = 0.01) -> base.Objective:
  """Preference maximum likelihood: the policy itself is the preference model, without a reference.

  loss = -log sigmoid(gamma (log pi(y_w|x) - log pi(y_l|x)))

  The population optimum is pi*, for any distribution of pairs that compares all responses; a wrong gamma' finds
  pi*^(gamma / gamma'), normalised. Log-likelihoods are summed over tokens without length normalisation; a small gamma
  sets the scale. The paper adds beta KL(pi || pi_ref), estimated on the policy's own samples: `+ kl_penalty(beta)`.

  Use it when:
    you have labelled pairs and want DPO without the reference in the margin. On summarisation the paper reports half
    the KL of DPO at a slightly higher win rate. With few pairs, add a regulariser.

  Args:
    gamma: how strongly log pi* determines the preferences, > 0, 1/nats.

  Returns:
    An objective; [B] nats. If both responses are equally likely, as under a uniform policy, every loss is log 2.

  Raises:
    ValueError: if gamma <= 0.

  Defaults:
    gamma from the paper's summarisation (TL;DR) experiments; its chat experiments use 0.005.

  References:
    Yun et al. 2025, Alignment as Distribution Learning, https://arxiv.org/abs/2506.01523, preference maximum
    likelihood estimation.
  """
  base.require(gamma > 0, 'pmle', 'gamma must be positive', gamma)

  return preference.of_reward('pmle', frozenset({stats.logp}), lambda table, batch: gamma * table.sum(stats.logp))


@base.factory
def preference_distillation(gamma: float = 0.1) -> base.Objective:
  """Preference distillation: the policy's preferences imitate those of a reward model.

  loss = KL(Bernoulli(q) || Bernoulli(p))
  q = sigmoid(score_0 - score_1),   p = sigmoid(gamma (log pi(y_0|x) - log pi(y_1|x)))

  Its gradient is that of `pmle` in expectation over a label drawn from Bernoulli(q). The two losses differ by the
  entropy of q, so here 0 is a perfect fit. Labels are not read, the order of the two responses is arbitrary, and adding
  a constant to all scores of a prompt changes nothing. All logarithms are log-sigmoids, so q may round to 0 or 1.

  Use it when:
    you have a reward model, score pairs from the current policy with it, and want the policy to match its preferences
    instead of maximising it.

  Args:
    gamma: how strongly log pi determines the preferences, > 0, 1/nats. The scores are on the scale of gamma log pi.

  Returns:
    An objective; [B] nats. Every loss is 0 if gamma log pi and the score differ by a constant per prompt.

  Raises:
    ValueError: if gamma <= 0.

  Defaults:
    gamma from the paper's summarisation (TL;DR) experiments, on pairs sampled from the current policy.

  References:
    Yun et al. 2025, Alignment as Distribution Learning, https://arxiv.org/abs/2506.01523, preference distillation.
  """
  base.require(gamma > 0, 'preference_distillation', 'gamma must be positive', gamma)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('preference_distillation', table)
    reward = gamma * table.sum(stats.logp)
    score_margin = _score_margin('preference_distillation', batch)
    margin = reward[:, 0] - reward[:, 1]

    def excess(sign: float) -> Array:
      log_taught = jax.nn.log_sigmoid(sign * score_margin)
      return jnp.exp(log_taught) * (log_taught - jax.nn.log_sigmoid(sign * margin))

    return Term(excess(1.0) + excess(-1.0), _metrics(reward, score_margin, batch.label))

  return base.Objective(frozenset({stats.logp}), apply, reads=base.SCORE, responses=2)


@base.factory
def rebel(eta: float = 1.0) -> base.Objective:
  """Regression of relative rewards: fits the log-ratio margin to the difference of two scores.

  loss = (h / eta - (score_0 - score_1))^2,   h = rho(y_0) - rho(y_1)
  rho(y) = log pi(y|x) - log pi_ref(y|x)

  In the paper the reference is the policy of the last round; with a fixed reference this is one round. The released
  code multiplies the loss by eta^2, (h - eta (score_0 - score_1))^2, which has the same optimum. Labels are not read,
  and the order of the two responses is arbitrary.

  Use it when:
    you have a reward model and want the stability of a regression instead of policy gradients: sample pairs, score
    them, regress, and repeat.

  Args:
    eta: step size, > 0, nats per unit of score: at the optimum pi is proportional to pi_ref exp(eta score).

  Returns:
    An objective; [B] units of score squared. At policy == reference every loss is (score_0 - score_1)^2 and every
    reward 0.

  Raises:
    ValueError: if eta <= 0.

  Defaults:
    eta from the summarisation (TL;DR) experiments of Yun et al. 2025 (2506.01523); the authors' released code for a
    chat model (UltraFeedback) sets 1e6. Tune it to the scale of the scores.

  References:
    Gao et al. 2024, REBEL: Reinforcement Learning via Regressing Relative Rewards,
    https://arxiv.org/abs/2404.16767, the square loss of its algorithm 1.
  """
  base.require(eta > 0, 'rebel', 'eta must be positive', eta)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('rebel', table)
    score_margin = _score_margin('rebel', batch)
    reward = table.log_ratio() / eta
    loss = jnp.square(reward[:, 0] - reward[:, 1] - score_margin)
    return Term(loss, _metrics(reward, score_margin, batch.label))

  return base.Objective(preference.LOG_RATIO_NEEDS, apply, reads=base.SCORE, responses=2)


def _score_margin(name: str, batch: PreferenceBatch) -> Array:
  """[B]: score_0 - score_1."""
  score = base.require_score(name, batch)
  return score[:, 0] - score[:, 1]


def _metrics(reward: Array, score_margin: Array, label: Array) -> dict[str, Array]:
  """Metrics of an implicit reward [B, 2] that imitates a score: does it order the pair as the score does?"""
  label = jnp.asarray(label)
  agreement = preference.accuracy((reward[:, 0] - reward[:, 1]) * jnp.sign(score_margin))
  return {
    **preference.reward_metrics(reward, label),
    'score_margin': preference.mixed(score_margin, -score_margin, label),
    'score_agreement': jax.lax.stop_gradient(agreement),
  }
