"""Objectives that train a reward model: r(x, y) is one number from the state after the last token of the response.

Notation: r_n = r(x, y_n) is `stats.reward`, a linear score of the final hidden state after the end token of y_n. No
reference is read, and no logits: training such an objective alone needs no output head. Rewards are in nats: in the
Bradley-Terry model exp(r) is the strength of a response, and a difference of 1 means odds of e.

Metrics, besides those of every pairwise objective:

- `reward_mean` and `reward_std` over all responses;
- `reward_length_correlation`, between the reward and the number of tokens; near 1 if the model has learnt only length;
- `reward_confidence`, the mean of max(p, 1 - p) for p = sigmoid(r_0 - r_1). In a calibrated model it equals the
  accuracy; if it is higher, the model is overconfident.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, declarations, preference
from alignjax.types import Array, PreferenceBatch, Term

_NEEDS = frozenset({stats.reward})
_LISTS = declarations.at_least(2)
_TINY = 1e-12


@base.factory
def bradley_terry(margin: bool = False, centre: float = 0.0) -> base.Objective:
  """The Bradley-Terry reward model: the likelihood of the preferences of pairs.

  loss = E_q[-log sigmoid(r_w - r_l - m)] + centre (r_w + r_l)^2,   m = score_w - score_l if margin else 0

  The loss determines rewards up to a constant per prompt. With a small `centre` they have mean 0. With `margin`, pairs
  that raters judge as very different must be further apart; the score is the rating.

  Use it when:
    you need a reward model of pairs, for policy gradients, best-of-n or to label data.

  Args:
    margin: whether the batch's scores give the margin, in nats.
    centre: the weight of the squared sum of both rewards, >= 0, 1/nats.

  Returns:
    An objective; [B] nats. If both rewards are 0, every loss is log 2 without a margin.

  Raises:
    ValueError: if centre < 0.

  Defaults:
    no margin and no centring. Eisenstein et al. use centre=0.01.

  References:
    Bradley and Terry 1952, Rank Analysis of Incomplete Block Designs: I. The Method of Paired Comparisons,
    https://doi.org/10.2307/2334029.
    Touvron et al. 2023, Llama 2: Open Foundation and Fine-Tuned Chat Models, https://arxiv.org/abs/2307.09288,
    equation 2 (the margin).
    Eisenstein et al. 2023, Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking,
    https://arxiv.org/abs/2312.09244, equation 2 (centring).
  """
  base.require(centre >= 0, 'bradley_terry', 'centre must not be negative', centre)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('bradley_terry', table)
    reward, label = table[stats.reward], jnp.asarray(batch.label)
    gap = reward[:, 0] - reward[:, 1]
    if margin:
      score = base.require_score('bradley_terry', batch)
      gap = gap - (score[:, 0] - score[:, 1])
    loss = preference.expected(preference.logistic, gap, label)
    if centre:
      loss = loss + centre * jnp.square(reward[:, 0] + reward[:, 1])
    return Term(loss, _metrics(table, label))

  reads = base.LABEL | base.SCORE if margin else base.LABEL
  return base.Objective(_NEEDS, apply, reads=reads, responses=2, summary=_summary)


@base.factory
def plackett_luce() -> base.Objective:
  """The Plackett-Luce reward model: the likelihood of a ranking of all N responses.

  loss = -sum_{i < N} [r_i - log sum_{j >= i} exp r_j]

  Responses are ordered, the best first: the best of all is chosen, then the best of the rest, and so on. The label is
  the probability that the first two are in this order; the loss is its expectation. For N = 2 this is
  `bradley_terry()`.

  Use it when:
    raters ranked more than two responses to each prompt.

  Returns:
    An objective; [B] nats. If all rewards are equal, every loss is log N!.

  References:
    Plackett 1975, The Analysis of Permutations, https://doi.org/10.2307/2346567.
  """

  def likelihood(reward: Array) -> Array:
    rest = jax.lax.cumlogsumexp(reward, axis=1, reverse=True)
    return -jnp.sum(reward[:, :-1] - rest[:, :-1], axis=1)

  return _of_ranking('plackett_luce', likelihood)


@base.factory
def all_pairs() -> base.Objective:
  """A reward model of all pairs in a ranking.

  loss = 2 / (N (N - 1)) sum_{i < j} -log sigmoid(r_i - r_j)

  Responses are ordered, the best first. Every prompt counts the same, whatever the number of its pairs. The label is
  the probability that the first two are in this order; the loss is its expectation. For N = 2 this is
  `bradley_terry()`.

  Use it when:
    raters ranked more than two responses to each prompt, and each pair should count the same.

  Returns:
    An objective; [B] nats. If all rewards are equal, every loss is log 2.

  References:
    Ouyang et al. 2022, Training Language Models to Follow Instructions with Human Feedback,
    https://arxiv.org/abs/2203.02155, equation 1.
  """

  def likelihood(reward: Array) -> Array:
    first, second = jnp.triu_indices(reward.shape[1], 1)
    return jnp.mean(preference.logistic(reward[:, first] - reward[:, second]), axis=1)

  return _of_ranking('all_pairs', likelihood)


@base.factory
def reward_regression() -> base.Objective:
  """Regression of the reward on known scores.

  loss = 1 / N sum_n (r_n - score_n)^2

  Labels are not read, and the order of the responses is arbitrary.

  Use it when:
    responses have absolute ratings, or to distil another reward model.

  Returns:
    An objective; [B] units of score squared.

  References:
    Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, https://arxiv.org/abs/2110.14168, the mean
    squared error of a scalar head (there at every token).
  """

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    reward, score = table[stats.reward], base.require_score('reward_regression', batch)
    loss = jnp.mean(jnp.square(reward - score), axis=1)
    metrics = _moments(table)
    if reward.shape[1] > 1:
      metrics['reward_accuracy'] = _ordered(reward, jnp.sign(_differences(score)))
    return Term(loss, jax.lax.stop_gradient(metrics))

  return base.Objective(_NEEDS, apply, reads=base.SCORE, summary=_summary)


def _of_ranking(name: str, likelihood: Callable[[Array], Array]) -> base.Objective:
  """The objective of a loss of rewards [B, N] of ordered responses, in expectation over the order of the first two."""

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    reward, label = table[stats.reward], jnp.asarray(batch.label)
    if reward.shape[1] < 2:
      raise ValueError(f'{name} ranks responses: it needs N >= 2 responses to a prompt, got N = {reward.shape[1]}')
    swapped = jnp.concatenate([reward[:, 1::-1], reward[:, 2:]], axis=1)
    return Term(preference.mixed(likelihood(reward), likelihood(swapped), label), _metrics(table, label))

  return base.Objective(_NEEDS, apply, reads=base.LABEL, responses=_LISTS, summary=_summary)


def _metrics(table: stats.StatTable, label: Array) -> dict[str, Array]:
  """Metrics of ordered responses, [B] each, without gradient."""
  reward = table[stats.reward]
  probability = jax.nn.sigmoid(reward[:, 0] - reward[:, 1])
  metrics = {**_moments(table), 'reward_confidence': jnp.maximum(probability, 1.0 - probability)}
  if reward.shape[1] == 2:
    metrics |= preference.reward_metrics(reward, label)
  else:
    wanted = jnp.ones(_differences(reward).shape).at[:, 0].set(2.0 * label - 1.0)  # the first pair is that of 0 and 1
    metrics |= {'reward_accuracy': _ordered(reward, wanted), 'reward_margin': reward[:, 0] - reward[:, -1]}
  return jax.lax.stop_gradient(metrics)


def _differences(values: Array) -> Array:
  """[B, pairs]: values_i - values_j for i < j."""
  first, second = jnp.triu_indices(values.shape[1], 1)
  return values[:, first] - values[:, second]


def _ordered(reward: Array, wanted: Array) -> Array:
  """[B]: the share of pairs whose rewards differ in the direction `wanted`, [B, pairs]; a tie counts one half."""
  return jnp.mean(preference.accuracy(_differences(reward) * wanted), axis=1)


def _moments(table: stats.StatTable) -> dict[str, Array]:
  """[B] each: what `_summary` needs of rewards and lengths."""
  reward, length = table[stats.reward], table.length.astype(jnp.float32)
  moments = {
    'reward_mean': reward,
    'reward_square': jnp.square(reward),
    'reward_length': reward * length,
    'length_mean': length,
    'length_square': jnp.square(length),
  }
  return {name: jnp.mean(value, axis=1) for name, value in moments.items()}


def _summary(means: Mapping[str, Array]) -> Mapping[str, Array]:
  """Standard deviation and correlation with the length, from the means of `_moments`."""
  deviation = jnp.sqrt(jnp.maximum(means['reward_square'] - jnp.square(means['reward_mean']), 0.0))
  spread = jnp.sqrt(jnp.maximum(means['length_square'] - jnp.square(means['length_mean']), 0.0))
  covariance = means['reward_length'] - means['reward_mean'] * means['length_mean']
  return {'reward_std': deviation, 'reward_length_correlation': covariance / jnp.maximum(deviation * spread, _TINY)}
