"""Objectives whose margin or strength follows the margins of the batch: each pair is judged against the others.

Notation as in `preference`. The drift margin G = rho(y_w) - rho(y_l) is the margin of log-ratios, averaged over the
tokens of a response if the objective normalises by length, and summed otherwise. `moving_average` defines its mean and
deviation, over the batch or over the batches so far; they carry no gradient. All rows of a step are one batch, whatever
the microbatches and devices. Rows of weight 0 are excluded.

A soft label is an expectation over swapping the two responses, in the loss and in the statistics.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import stats
from alignjax.objectives import base, draws, moving_average, preference
from alignjax.types import Array, PreferenceBatch, Term

_DECAY = 0.9  # every moving average here uses it, as does the released code of both methods
_SMALLEST_BETA = 1e-3  # beta-DPO's, as in its released code

_Read = Callable[[stats.StatTable, PreferenceBatch], moving_average.Moments]


class _Normaliser(NamedTuple):
  """Where the moments of the margins come from."""

  average: moving_average.MarginAverage  # of which margin
  read: _Read
  memory: base.Memory


def _normaliser(kind: str, length_normalised: bool) -> _Normaliser:
  average = moving_average.MarginAverage(_DECAY, length_normalised)
  if kind == 'batch':
    return _Normaliser(average, average.present, base.NO_MEMORY)
  return _Normaliser(average, average.corrected, average.memory)


def _released_normaliser(rows: int | None) -> _Normaliser:
  """As the released code has it, without correction."""
  average = moving_average.MarginAverage(_DECAY, length_normalised=True)
  source = average if rows is None else moving_average.GroupedAverage(average, rows)
  return _Normaliser(average, source.uncorrected, source.memory)


_NORMALISERS = ('batch', 'ema')


@base.factory
def alpha_dpo(
  beta: float = 2.5,
  gamma: float = 1.5,
  alpha: float = 0.5,
  length_normalised: bool = True,
  normaliser: str = 'batch',
) -> base.Objective:
  """alpha-DPO: SimPO whose target margin adapts to how far a pair has moved from the reference, as in the paper.

  loss = -log sigmoid(u - sg[gamma + alpha M*]),   u = beta (l_w - l_l),   M* = (M - mean(M)) / deviation(M)
  M = beta ((l_w - r_w) - (l_l - r_l))
  where l and r are the log-probabilities per token of policy and reference

  A pair that has improved on the reference by more than the average gets a larger target and keeps training. A pair
  that lags behind, perhaps because its label is wrong, gets a smaller one. M* does not depend on beta, so objectives
  with different beta can share the average. alpha = 0 gives SimPO. `alpha_dpo_released` follows the authors' code.

  Use it when:
    you like SimPO but want its target margin to depend on the pair, and you can afford a reference model.

  Args:
    beta: scale of the reward, > 0, tokens/nat (1/nat without length normalisation).
    gamma: target reward margin, >= 0.
    alpha: shift of the target per deviation of M, >= 0, in units of reward.
    length_normalised: whether l and r are means over tokens; with sums SimPO becomes reference-free DPO.
    normaliser: 'batch' for the mean and deviation of the current batch; 'ema' for their moving averages (decay 0.9,
      corrected for starting at zero), which are updated before use in training and only read in evaluation.

  Returns:
    An objective; [B] nats. At policy == reference it is SimPO.

  Raises:
    ValueError: if beta <= 0, gamma < 0 or alpha < 0, or normaliser is unknown.

  Defaults:
    the released setting for Llama-3-8B-Instruct, beta 2.5, gamma / beta 0.6 and alpha 0.2, converted to the paper's
    units, in which alpha is 0.2 beta.

  References:
    Wu et al. 2024, alpha-DPO: Adaptive Reward Margin is What Direct Preference Optimization Needs,
    https://arxiv.org/abs/2410.10148.
  """
  name = 'alpha_dpo'
  base.require(normaliser in _NORMALISERS, name, f'normaliser must be one of {", ".join(_NORMALISERS)}', normaliser)
  base.require(0 < beta < math.inf, name, 'beta must be positive', beta)
  base.require(0 <= gamma < math.inf, name, 'gamma must not be negative', gamma)
  base.require(0 <= alpha < math.inf, name, 'alpha must not be negative', alpha)
  return _adaptive_margin(name, beta, gamma, alpha, 0.0, _normaliser(normaliser, length_normalised))


@base.factory
def alpha_dpo_released(
  beta: float = 2.5,
  gamma_beta_ratio: float = 0.6,
  alpha: float = 0.2,
  label_smoothing: float = 0.0,
  statistics_rows: int | None = None,
) -> base.Objective:
  """alpha-DPO as the authors' released code computes it, to reproduce published runs.

  loss = -(1 - e) log sigmoid(v) - e log sigmoid(-v),   v = beta (l_w - l_l - sg[gamma_beta_ratio + alpha z])
  z = (G - mean(G)) / deviation(G),   G = (l_w - r_w) - (l_l - r_l),   e = label_smoothing
  where l and r are the log-probabilities per token of policy and reference

  It is the paper's form with gamma = gamma_beta_ratio beta and with alpha beta for alpha. Mean and deviation are moving
  averages (decay 0.9, of the deviation and not of the variance). They start at zero, are updated before use and are not
  corrected for their start: after t updates they are 1 - 0.9^t of their limit, so z begins ten times too large.

  In the code, each microbatch of all devices updates the averages and then uses them: 8 pairs in the released settings,
  so that a step of 128 pairs makes 16 updates. `statistics_rows=8` does this with the consecutive groups of 8 pairs of
  a batch, whatever the microbatches and devices here; the loss then depends on the order of the pairs in the batch. By
  default, a step is one update.

  It differs from the code in three ways. (1) In the code, evaluation also updates the averages and checkpoints do not
  contain them; here evaluation only reads them, and checkpoints save them. (2) In the code, a deviation of zero (policy
  == reference, or a single pair) gives NaN; here z is 0, and a single pair updates nothing. (3) In the code, the
  reported reward mixes in the reference's log-probability; here it is SimPO's.

  Use it when:
    you reproduce published alpha-DPO runs; otherwise use `alpha_dpo`.

  Args:
    beta: scale of the reward, > 0, tokens/nat.
    gamma_beta_ratio: target margin divided by beta, >= 0, nats/token.
    alpha: shift of the target per deviation of G, divided by beta, >= 0, nats/token.
    label_smoothing: probability e in [0, 0.5) that a label is flipped; it flips the sign of v as a whole.
    statistics_rows: pairs per update of the averages, at least 2; None for one update per step.

  Returns:
    An objective; [B] nats. At policy == reference it is SimPO.

  Raises:
    ValueError: if beta <= 0, gamma_beta_ratio < 0 or alpha < 0, if label_smoothing is outside [0, 0.5), or if
      statistics_rows is not None or an integer of at least 2.

  Defaults:
    the released setting for Llama-3-8B-Instruct.

  References:
    Wu et al. 2024, alpha-DPO: Adaptive Reward Margin is What Direct Preference Optimization Needs,
    https://arxiv.org/abs/2410.10148, released code (junkangwu/alpha-DPO).
  """
  name = 'alpha_dpo_released'
  base.require(0 < beta < math.inf, name, 'beta must be positive', beta)
  base.require(0 <= gamma_beta_ratio < math.inf, name, 'gamma_beta_ratio must not be negative', gamma_beta_ratio)
  base.require(0 <= alpha < math.inf, name, 'alpha must not be negative', alpha)
  base.require(0 <= label_smoothing < 0.5, name, 'label_smoothing must be in [0, 0.5)', label_smoothing)
  groups = statistics_rows is None or (type(statistics_rows) is int and statistics_rows >= 2)
  base.require(groups, name, 'statistics_rows must be None or an integer of at least 2', statistics_rows)
  normaliser = _released_normaliser(statistics_rows)
  whole = _adaptive_margin(name, beta, gamma_beta_ratio * beta, alpha * beta, label_smoothing, normaliser)
  return dataclasses.replace(whole, ordered=statistics_rows is not None)


def _adaptive_margin(
  name: str,
  beta: float,
  gamma: float,
  alpha: float,
  smoothing: float,
  normaliser: _Normaliser,
) -> base.Objective:
  """The family: -log sigmoid(u - sg[gamma + alpha z]), with label smoothing of the whole."""
  average = normaliser.average

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    reward = beta * (table.mean(stats.logp) if average.length_normalised else table.sum(stats.logp))
    margin, moments = average.margin(table), normaliser.read(table, batch)

    def target(sign: float) -> Array:
      return gamma + alpha * moments.standardise(sign * margin)

    def loss(sign: float) -> Array:
      logit = sign * (reward[:, 0] - reward[:, 1]) - target(sign)
      return preference.expected(lambda v: -jax.nn.log_sigmoid(v), logit, 1.0 - smoothing)

    label = jnp.asarray(batch.label)
    metrics = preference.reward_metrics(reward, label) | {
      'drift_margin': preference.mixed(margin, -margin, label),
      'target_margin': gamma + alpha * preference.mixed(*map(moments.standardise, (margin, -margin)), label),
    }
    return Term(label * loss(1.0) + (1.0 - label) * loss(-1.0), metrics)

  return base.Objective(
    preference.LOG_RATIO_NEEDS,
    apply,
    reads=base.LABEL_AND_WEIGHT,
    responses=2,
    couples_rows=True,
    memory=normaliser.memory,
  )


@base.factory
def beta_dpo(beta: float = 0.1, alpha: float = 0.6, ratio: float = 0.8) -> base.Objective:
  """beta-DPO: DPO on a share of the batch's pairs, with a strength that follows the size of their margins.

  loss = -log sigmoid(b h) if the pair is kept, else 0,   b = sg[max(beta (1 + alpha (mean_kept[h] - m)), 0.001)]
  where m and s are moving averages of the mean and the deviation of h

  A share `ratio` of the pairs is kept, drawn without replacement with probability proportional to exp(-((h - m) / s)^2
  / 2). So pairs with a margin far from m, in units of s, are treated as outliers and mostly left out. Losses are scaled
  so that the mean over the batch is the mean over the kept pairs. A batch with larger margins than usual is fitted more
  conservatively. The strength is one number for the whole batch.

  The averages have decay 0.9, are updated before use in training and only read in evaluation. Here they are corrected
  for starting at zero. In the authors' code they are not, so the first batch is compared with a tenth of its own mean,
  and the loss is averaged over the kept pairs of each device separately. The draw depends on the content of the rows
  and the number of batches seen, not on the order of rows, the mesh or the microbatches; rows with equal content are
  kept or left out together. Evaluation also leaves pairs out, as in the code.

  Use it when:
    the quality of pairs varies a lot, and no single beta fits: easy pairs need a larger beta than hard ones, and
    outliers should not count.

  Args:
    beta: strength of the KL constraint to the reference at the average margin, at least 0.001, 1/nats.
    alpha: how strongly the strength follows the margins, >= 0, 1/nats.
    ratio: share of pairs to keep, in (0, 1]; rounded down to whole pairs, at least one.

  Returns:
    An objective; [B] nats. At policy == reference the mean loss of a batch is log 2 and every reward 0. The implicit
    reward is reported at the given beta, so that it can be compared over batches.

  Raises:
    ValueError: if beta < 0.001 or alpha < 0, or ratio is outside (0, 1].

  Defaults:
    the authors' example on Anthropic HH.

  References:
    Wu et al. 2024, beta-DPO: Direct Preference Optimization with Dynamic beta, https://arxiv.org/abs/2407.08639
    (released code: junkangwu/beta-DPO).
  """
  name = 'beta_dpo'
  base.require(_SMALLEST_BETA <= beta < math.inf, name, f'beta must be at least {_SMALLEST_BETA}', beta)
  base.require(0 <= alpha < math.inf, name, 'alpha must not be negative', alpha)
  base.require(0 < ratio <= 1, name, 'ratio must be in (0, 1]', ratio)
  average = moving_average.MarginAverage(_DECAY, length_normalised=False)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    log_ratio, label = table.log_ratio(), jnp.asarray(batch.label)
    margin, moments = average.margin(table), average.corrected(table, batch)
    keys = jax.vmap(jax.random.fold_in, (0, None))(draws.row_keys(batch), average.count(table).astype(jnp.uint32))
    kept = _draw(_log_likeness(margin, label, moments), keys, batch.weight, ratio)
    weight = jnp.asarray(batch.weight)
    kept_weight = jnp.sum(jnp.where(kept, weight, 0.0))
    kept_mean = jnp.sum(jnp.where(kept, weight * (2.0 * label - 1.0) * margin, 0.0)) / _divisor(kept_weight)
    strength = jnp.maximum(beta * (1.0 + alpha * (kept_mean - moments.mean)), _SMALLEST_BETA)
    loss = preference.expected(lambda h: -jax.nn.log_sigmoid(strength * h), log_ratio[:, 0] - log_ratio[:, 1], label)
    metrics = preference.reward_metrics(beta * log_ratio, label) | {
      'beta': jnp.broadcast_to(strength, margin.shape),
      'kept': kept.astype(jnp.float32),
    }
    return Term(jnp.where(kept, jnp.sum(weight) / _divisor(kept_weight), 0.0) * loss, metrics)

  return base.Objective(
    preference.LOG_RATIO_NEEDS,
    apply,
    reads=base.LABEL_AND_WEIGHT | draws.READS,
    responses=2,
    couples_rows=True,
    memory=average.memory,
  )


def _divisor(weight: Array) -> Array:
  return jnp.where(weight > 0, weight, 1.0)


def _log_likeness(margin: Array, label: Array, moments: moving_average.Moments) -> Array:
  """[B]: the log of exp(-z^2 / 2), in expectation over the label."""

  def log_gaussian(value: Array) -> Array:
    return -0.5 * jnp.square(moments.standardise(value))

  return jnp.logaddexp(jnp.log(label) + log_gaussian(margin), jnp.log1p(-label) + log_gaussian(-margin))


def _draw(log_weight: Array, keys: Array, row_weight: Array, ratio: float) -> Array:
  """[B] bool: a share `ratio` of rows without replacement, by exp(log_weight): Gumbel noise, then a sort.

  References:
    Kool et al. 2019, Stochastic Beams and Where to Find Them, https://arxiv.org/abs/1903.06059.
  """
  real = jnp.asarray(row_weight) > 0
  score = jnp.where(real, log_weight + jax.vmap(jax.random.gumbel)(keys), -jnp.inf)
  # Computed in Python floats, because a float32 product can round up to the next whole number.
  sizes = np.asarray([max(1, math.floor(ratio * rows + 1e-9)) for rows in range(score.size + 1)])
  size = jnp.asarray(sizes)[jnp.sum(real)]
  return real & (score >= jnp.sort(score, descending=True)[size - 1])
