"""Token-level DPO and its risk-aware form: the DPO margin, corrected by how far each prefix's distribution has drifted.

Notation as in `preference`, and for a response y to prompt x:

  D_t(v) = log pi_ref(v|x, y_<t) - log pi(v|x, y_<t)   drift, in nats: positive where the policy has lost mass
  K(y) = sum_t measure_{v ~ pi_ref}[ D_t(v) ]          sequential risk ratio; for the mean, the sequential forward KL
  K(y) = V_0                                           with discount or off_path below 1: the nested risk, where
  V_t = measure_{v ~ pi_ref}[ D_t(v) + discount (off_path + (1 - off_path) 1{v = y_t}) V_{t+1} ],   V_T = 0

  variant 1: l = h - (K(y_l) - K(y_w))
  variant 2: l = h - alpha (K(y_l) - sg[K(y_w)])
  loss = -log sigmoid(beta l),   reward(y) = beta (rho(y) + K(y))

The loss and the reward hold in both variants. Variant 1 rewards drift along the preferred response; variant 2 only
penalises it along the dispreferred one. A soft label is an expectation over swapping the two responses.

Each method reports its own reward, so accuracies by reward do not compare methods. `log_ratio_accuracy`, by rho alone,
does.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import numerics, stats
from alignjax.objectives import base, preference
from alignjax.risk import measures
from alignjax.types import Array, PreferenceBatch, Term

_CVAR_97 = measures.cvar(0.97)


@base.factory
def tdpo(
  beta: float = 0.1, alpha: float = 0.5, variant: int = 2, discount: float = 1.0, off_path: float = 1.0
) -> base.Objective:
  """Token-level direct preference optimisation (TDPO): DPO with the sequential forward KL of both responses.

  loss = -log sigmoid(beta (h - alpha (K(y_l) - sg[K(y_w)])))
  variant 1: -log sigmoid(beta (h - (K(y_l) - K(y_w))))
  K(y) = sum_t KL(pi_ref(.|x, y_<t) || pi(.|x, y_<t))

  The released configuration trains variant 1 by default; the paper recommends variant 2.

  Use it when:
    DPO drifts too far from the reference, and you want to penalise the KL at every prefix.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    alpha: weight of the correction in variant 2, >= 0; variant 1 does not read it.
    variant: 1 or 2, as in the equations.
    discount: factor of the nested value per token, in [0, 1], as for `ra_dpo`; 1 in the paper.
    off_path: share of the KL of the observed future that remains after another token, in [0, 1], as for `ra_dpo`; 1 in
      the paper.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or alpha < 0, variant is unknown, or discount or off_path is outside [0, 1].

  Defaults:
    beta, alpha and variant from the paper's Anthropic HH experiments.

  References:
    Zeng et al. 2024, Token-level Direct Preference Optimization, https://arxiv.org/abs/2404.11999.
  """
  drift = _nested('tdpo', measures.expectation(), stats.forward_kl, discount, off_path)
  return _sequential('tdpo', drift, beta, alpha, variant)


@base.factory
def ra_dpo(
  risk: measures.RiskMeasure = _CVAR_97,
  beta: float = 0.1,
  alpha: float = 0.5,
  variant: int = 2,
  aggregate: str = 'sum',
  discount: float = 1.0,
  off_path: float = 1.0,
) -> base.Objective:
  """Risk-aware DPO (Ra-DPO), in the form that its derivation implies: TDPO with a risk measure of the drift.

  loss = -log sigmoid(beta (h - alpha (K(y_l) - sg[K(y_w)])))
  variant 1: -log sigmoid(beta (h - (K(y_l) - K(y_w))))
  K(y) = sum_t risk_{v ~ pi_ref}[ D_t(v) ]   by default
  K(y) = V_0                                 with discount or off_path below 1, where
  V_t = risk_{v ~ pi_ref}[ D_t(v) + discount (off_path + (1 - off_path) 1{v = y_t}) V_{t+1} ],   V_T = 0

  The risk measure is taken of the upper tail of the drift: `cvar(0.97)` leaves out the 3 % of the reference's mass
  where the policy has gained most. The paper's formula averages the lower tail instead, because of a sign error where
  -Phi(X) is replaced by Phi(-X). The lower-tail quantity can be negative under drift, so it is not a divergence;
  `cvar(level, tail='lower')` computes it. The entropic measure is not positively homogeneous, so the paper's parameter
  mu corresponds to kappa = mu beta. `ra_dpo_released` computes what the authors' code computes.

  The sum is the nested value under the assumption that the future is as risky after every other token as after the
  observed one. Then V_{t+1} is a constant in step t and leaves the measure, so nothing links the steps. For the mean,
  the sum averaged over responses is the nested value over all responses. For an averse measure it falls short, unless
  larger drift leads to a safer future: 2.53 against 3.28 for `cvar(0.3)` on a tree of 81 responses, which
  experiments/notebooks/nested_risk.md enumerates.

  With off_path < 1 the recursion stays: K is the nested value on the tree in which the observed response is a spine,
  and a token that leaves the spine leads to `off_path` times the risk that the spine still has ahead. V_{t+1} counts in
  V_t by the factor discount (off_path + (1 - off_path) w*), where w* is the weight that the measure gives the observed
  token: the future counts more after a token that the measure fears. off_path = 0 gives a lower bound of the nested
  value over all responses, for measures that are at least the mean. It is not a setting for training, because K then
  depends on little more than the first few tokens.

  To first order in a small drift, a measure with aversion kappa is TDPO with alpha (1 + kappa), and a smaller off_path
  or discount lowers K: compare methods at matched strength. The risk is that of the drift; for risk in the reward, see
  `rlhf(risk=...)`.

  Use it when:
    a few tokens with large drift matter more than the average: the risk measure weighs the tail of each next-token
    distribution. Set off_path to 0.99 or 0.9 to link the steps: the future then counts more after a token that the
    measure fears. The metric `nested_horizon` is the number of tokens that K sees: for a long response and
    discount = 1, at least about 1 / (1 - off_path).

  Args:
    risk: a measure from `alignjax.risk`; `expectation()` gives `tdpo`.
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    alpha: weight of the correction in variant 2, >= 0; variant 1 does not read it.
    variant: 1 or 2, as in the equations.
    aggregate: how K combines the tokens of a response: 'sum' (the paper), 'mean' or 'max' (ours).
    discount: factor of the nested value per token, in [0, 1]; requires 'sum' if below 1.
    off_path: share of the risk of the observed future that remains after another token, in [0, 1]; requires 'sum' if
      below 1.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if risk is not a risk measure, beta <= 0 or alpha < 0, variant or aggregate is unknown, discount or
      off_path is outside [0, 1], or below 1 with another aggregate than 'sum'.

  Defaults:
    risk, beta and alpha from the paper's comparison on Anthropic HH; variant as for `tdpo`; discount and off_path give
    the paper's sum.

  References:
    Zhang et al. 2025, Risk-aware Direct Preference Optimization under Nested Risk Measure,
    https://arxiv.org/abs/2505.20359, theorem 3.6 with the upper tail.
  """
  base.require(
    isinstance(risk, measures.RiskMeasure), 'ra_dpo', 'risk must be a risk measure, such as cvar(0.97)', risk
  )
  one_step = stats.risk_ratio(risk)
  if aggregate == 'sum':
    drift = _nested('ra_dpo', risk, one_step, discount, off_path)
  else:
    base.require(aggregate in ('mean', 'max'), 'ra_dpo', 'aggregate must be one of sum, mean, max', aggregate)
    needs_sum = "discount or off_path below 1 requires aggregate='sum'"
    base.require(discount == off_path == 1, 'ra_dpo', needs_sum, aggregate)
    drift = _aggregated(one_step, aggregate)
  return _sequential('ra_dpo', drift, beta, alpha, variant)


@base.factory
def ra_dpo_released(
  confidence: float = 0.95,
  split_vocabulary: bool = True,
  beta: float = 0.1,
  alpha: float = 0.5,
  variant: int = 1,
) -> base.Objective:
  """Risk-aware DPO as the authors' released code computes it, to reproduce published runs.

  loss = -log sigmoid(beta (h - (K(y_l) - K(y_w))))
  variant 2: -log sigmoid(beta (h - alpha (K(y_l) - sg[K(y_w)])))
  K(y) = sum_t sum_{v : D_t(v) > tau} pi_ref(v) D_t(v)
  where tau is the quantile of D_t at level 1 - confidence over token ids, each id counted once

  K is not a CVaR: the quantile counts ids instead of probability, the sum is not divided by the mass of the tail, and
  ids at the quantile are dropped. With `split_vocabulary`, the default of the released code, the first half of the ids
  and the rest have separate quantiles, so the result depends on the order of the ids. The released code sums the loss
  over a batch; here it is averaged, as for all objectives. `ra_dpo` is the consistent form.

  Use it when:
    you reproduce published Ra-DPO runs; otherwise use `ra_dpo`.

  Args:
    confidence: c in [0, 1]; at 0 nothing is kept, which gives DPO.
    split_vocabulary: whether each half of the vocabulary has its own quantile.
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    alpha: weight of the correction in variant 2, >= 0; variant 1 does not read it.
    variant: 1 or 2, as in the equations.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if confidence is outside [0, 1], beta <= 0 or alpha < 0, or variant is unknown.

  Defaults:
    the released configuration.

  References:
    Zhang et al. 2025, Risk-aware Direct Preference Optimization under Nested Risk Measure,
    https://arxiv.org/abs/2505.20359, released code (zlj123-max/Ra-DPO).
  """
  base.require(0 <= confidence <= 1, 'ra_dpo_released', 'confidence must be in [0, 1]', confidence)
  drift = stats.TokenStat(
    f'released_risk_ratio(confidence={confidence!r}, split_vocabulary={split_vocabulary!r})',
    lambda policy, reference, target: _partial_expectation(reference - policy, reference, confidence, split_vocabulary),
    reference=True,
  )
  return _sequential('ra_dpo_released', _aggregated(drift, 'sum'), beta, alpha, variant)


def _partial_expectation(drift: Array, reference: Array, confidence: float, split_vocabulary: bool) -> Array:
  """[...] of [..., V]: the sum of p D over the ids whose drift exceeds the quantile of their part of the vocabulary."""
  drift = jnp.where(jnp.isneginf(reference), 0.0, drift)
  half = drift.shape[-1] // 2
  parts = (slice(0, half), slice(half, None)) if split_vocabulary else (slice(None),)
  total = jnp.zeros(drift.shape[:-1])
  for part in parts:
    values = drift[..., part]
    # A value exceeds the interpolated quantile if it exceeds the lower of the two values that it lies between.
    rank = int(np.float32(1.0 - confidence) * np.float32(values.shape[-1] - 1))  # in float32, as in the released code
    kept = values > numerics.order_statistic(values, rank)[..., None]
    total += jnp.sum(jnp.where(kept, jnp.exp(reference[..., part]) * values, 0.0), axis=-1)
  return total


class _Drift(NamedTuple):
  """K, and how it is reported."""

  needs: frozenset[stats.Stat]
  of_responses: Callable[[stats.StatTable], Array]  # K, [B, N] nats
  metrics: Callable[[stats.StatTable], Mapping[str, Array]]  # each [B, N]


def _aggregated(stat: stats.TokenStat, aggregate: str) -> _Drift:
  """The drift of each token, combined over the tokens of a response."""
  combine = {
    'sum': lambda table: table.sum(stat),
    'mean': lambda table: table.mean(stat),
    'max': lambda table: jnp.max(jnp.where(table.mask, table[stat], -jnp.inf), axis=-1, initial=0.0),
  }[aggregate]
  return _Drift(frozenset({stat}), combine, lambda table: {'risk_ratio': combine(table)})


def _nested(
  name: str, measure: measures.RiskMeasure, one_step: stats.TokenStat, discount: float, off_path: float
) -> _Drift:
  """The nested risk of the drift over the tokens of a response; if nothing is left of the recursion, a plain sum."""
  base.require(0 <= discount <= 1, name, 'discount must be in [0, 1]', discount)
  base.require(0 <= off_path <= 1, name, 'off_path must be in [0, 1]', off_path)
  if discount == off_path == 1:
    total = _aggregated(one_step, 'sum')

    def sums(table: stats.StatTable) -> dict[str, Array]:
      found, tokens = total.of_responses(table), table.length.astype(jnp.float32)
      return {'risk_ratio': found, 'nested_value': found, 'nested_horizon': tokens}

    return total._replace(metrics=sums)
  value, horizon = (build(measure, discount, off_path) for build in (stats.nested_risk, stats.nested_horizon))
  return _Drift(
    frozenset({value, horizon}),
    lambda table: table.first(value),
    lambda table: {'nested_value': table.first(value), 'nested_horizon': table.first(horizon)},
  )


def _sequential(name: str, drift: _Drift, beta: float, alpha: float, variant: int) -> base.Objective:
  """The family: the drift of both responses corrects the margin."""
  base.require(beta > 0, name, 'beta must be positive', beta)
  base.require(0 <= alpha < float('inf'), name, 'alpha must not be negative', alpha)
  base.require(variant in (1, 2), name, 'variant must be 1 or 2', variant)

  def logit(log_ratio: Array, risk: Array, chosen: int, rejected: int) -> Array:
    margin = log_ratio[:, chosen] - log_ratio[:, rejected]
    if variant == 1:
      return margin - (risk[:, rejected] - risk[:, chosen])
    return margin - alpha * (risk[:, rejected] - jax.lax.stop_gradient(risk[:, chosen]))

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair(name, table)
    log_ratio, risk = table.log_ratio(), drift.of_responses(table)
    label = jnp.asarray(batch.label)
    loss = -label * jax.nn.log_sigmoid(beta * logit(log_ratio, risk, 0, 1))
    loss -= (1.0 - label) * jax.nn.log_sigmoid(beta * logit(log_ratio, risk, 1, 0))
    metrics = preference.reward_metrics(beta * (log_ratio + risk), label)
    metrics |= _drift_metrics(table, log_ratio, drift.metrics(table), label)
    return Term(loss, jax.lax.stop_gradient(metrics))

  needs = preference.LOG_RATIO_NEEDS | drift.needs | {stats.forward_kl, stats.reverse_kl}
  return base.Objective(needs, apply, reads=base.LABEL, responses=2)


def _drift_metrics(
  table: stats.StatTable, log_ratio: Array, drift: Mapping[str, Array], label: Array
) -> dict[str, Array]:
  """Metrics of what the method aims to control, each [B]: sequential divergences, and the tail of the token KL."""
  metrics = {'log_ratio_accuracy': preference.labelled_accuracy(log_ratio[:, 0] - log_ratio[:, 1], label)}
  sides = {
    'forward_kl': table.sum(stats.forward_kl),
    'reverse_kl': table.sum(stats.reverse_kl),
    **drift,
  }
  for name, value in sides.items():
    chosen, rejected = preference.by_label(value, label)
    metrics |= {f'{name}_chosen': chosen, f'{name}_rejected': rejected}
  prompts = table.length.shape[0]
  tokens, mask = table[stats.forward_kl].reshape(prompts, -1), table.mask.reshape(prompts, -1)
  return metrics | {
    'token_kl_mean': numerics.masked_mean(tokens, mask),
    'token_kl_p95': _quantile(tokens, mask, 0.95),
    'token_kl_max': jnp.max(jnp.where(mask, tokens, -jnp.inf), axis=-1, initial=0.0),
  }


def _quantile(values: Array, mask: Array, level: float) -> Array:
  """[B] of [B, T]: the smallest value not exceeded by a share `level` of the masked values; 0 for an empty mask."""
  count = jnp.sum(mask, axis=-1, keepdims=True)
  rank = jnp.clip(jnp.ceil(level * count).astype(jnp.int32) - 1, 0, values.shape[-1] - 1)
  ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=-1)
  return jnp.where(count > 0, jnp.take_along_axis(ordered, rank, axis=-1), 0.0)[:, 0]
