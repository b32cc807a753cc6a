"""The clipped policy gradient: several updates on the same samples, by ratios to the policy that drew them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from alignjax import numerics, stats
from alignjax.objectives import base, pooling
from alignjax.types import Array, PreferenceBatch, Term, WeightedSum

_LARGEST_LOG_RATIO = 60.0  # e^60 is beyond any practical ratio, and still finite in float32 times an advantage
_NAME = 'clipped_policy_gradient'
_TOKENS = 'clipped_policy_gradient/tokens'  # tokens of a prompt's responses


def _leave_one_out(score: Array) -> Array:
  """score_n - mean_{m != n} score_m; the score itself for N = 1."""
  count = score.shape[1]
  return score if count == 1 else (score - jnp.mean(score, axis=1, keepdims=True)) * count / (count - 1)


def _centred(score: Array) -> Array:
  """score_n - mean_m score_m."""
  return score - jnp.mean(score, axis=1, keepdims=True)


def _standardised(score: Array) -> Array:
  """(score_n - mean_m score_m) / (std_m score_m + 1e-4)."""
  return _centred(score) / (jnp.std(score, axis=1, keepdims=True) + 1e-4)


def _by_token(log_ratio: Array, mask: Array) -> Array:
  return jnp.where(mask, log_ratio, 0.0)


def _by_sequence(log_ratio: Array, mask: Array) -> Array:
  return jnp.where(mask, numerics.masked_mean(log_ratio, mask)[..., None], 0.0)


ADVANTAGES: Mapping[str, Callable[[Array], Array]] = {
  'loo': _leave_one_out,
  'group': _standardised,
  'centred': _centred,
}
LEVELS: Mapping[str, Callable[[Array, Array], Array]] = {'token': _by_token, 'sequence': _by_sequence}


def _sequence_mean(values: Array, mask: Array, pooled: pooling.Sums, length: float) -> Array:
  del pooled, length
  return jnp.mean(numerics.masked_mean(values, mask), axis=1)


def _token_mean(values: Array, mask: Array, pooled: pooling.Sums, length: float) -> Array:
  """Divides by the tokens of all prompts, so that the weighted mean over prompts is the mean over tokens."""
  del length
  tokens = pooled[_TOKENS]
  return jnp.sum(numerics.masked_sum(values, mask), axis=1) * tokens.weight / jnp.maximum(tokens.total, 1.0)


def _token_sum(values: Array, mask: Array, pooled: pooling.Sums, length: float) -> Array:
  del pooled
  return jnp.mean(numerics.masked_sum(values, mask), axis=1) / length


AGGREGATES: Mapping[str, Callable[[Array, Array, pooling.Sums, float], Array]] = {
  'sequence_mean': _sequence_mean,
  'token_mean': _token_mean,
  'token_sum': _token_sum,
}


@base.factory
def clipped_policy_gradient(
  advantage: str = 'loo',
  level: str = 'token',
  low: float = 0.2,
  high: float = 0.2,
  cap: float | None = None,
  aggregate: str = 'sequence_mean',
  length: float = 1.0,
) -> base.Objective:
  """Policy gradient on the samples of an earlier policy, by clipped probability ratios, as in PPO without a critic.

  loss = -mean_{n,t}[ min(rho_t A_n, clip(rho_t, 1 - low, 1 + high) A_n) ]
  rho_t = exp(log pi(y_t|x) - log mu(y_t|x)),   A_n = score_n - mean_{m != n} score_m
  where mu is the policy that drew the responses

  y_t are the tokens of response n. With level='sequence', the geometric mean of the ratios of a response takes the
  place of each of them. A_n is score_n - mean_m score_m with advantage='centred', and that divided by std_m score_m +
  1e-4 with advantage='group'.

  GRPO is `clipped_policy_gradient(advantage='group')`, and DAPO `clipped_policy_gradient(advantage='group', high=0.28,
  aggregate='token_mean')`. Dr. GRPO is `clipped_policy_gradient(advantage='centred', aggregate='token_sum',
  length=128)`, where 128 is the largest length of a response. GSPO is `clipped_policy_gradient(advantage='group',
  level='sequence', low=3e-4, high=4e-4)`.

  At the first update on a round pi is mu and every ratio is 1: with `token_sum` and `loo` the gradient is that of
  `rlhf(beta=0.0)`. Outside the interval, a response whose ratio has already moved the way its advantage points has no
  gradient. The loss reads no reference: subtract the KL from the score with the setting `kl_in_score`. The papers of
  GRPO and GSPO differentiate an estimate of the KL instead, whose gradient is not that of the KL.

  Use it when:
    you want several updates on each round of samples, which `rlhf` and `reverse_kl` do not allow.

  Args:
    advantage: 'loo', 'centred' or 'group': the last one divides by the standard deviation of the scores of a prompt.
    level: 'token' or 'sequence': ratios of tokens, or their geometric mean over a response.
    low: largest fall of a ratio that is followed, in [0, 1).
    high: largest rise of a ratio that is followed, >= 0.
    cap: largest ratio if the advantage is negative (dual clip), > 1; None for no cap.
    aggregate: 'sequence_mean', the mean over the tokens of a response, then over responses; 'token_mean', the mean over
      all tokens of a batch, which couples its rows; or 'token_sum', the sum over tokens, then the mean over responses.
    length: divisor of 'token_sum', > 0, tokens.

  Returns:
    An objective for any N >= 1; [B] units of score, or of its standard deviation for 'group'. If every ratio is 1,
    every loss is 0 with 'sequence_mean'.

  Raises:
    ValueError: a name is unknown, or a number is out of its range.

  Defaults:
    low and high from PPO; advantage from RLOO (`rlhf`).

  References:
    Schulman et al. 2017, Proximal Policy Optimization Algorithms, https://arxiv.org/abs/1707.06347, equation 7.
    Shao et al. 2024, DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models,
    https://arxiv.org/abs/2402.03300, equation 3 without its KL (GRPO).
    Yu et al. 2025, DAPO: An Open-Source LLM Reinforcement Learning System at Scale, https://arxiv.org/abs/2503.14476
    (the mean over tokens, and the higher upper bound).
    Liu et al. 2025, Understanding R1-Zero-Like Training: A Critical Perspective, https://arxiv.org/abs/2503.20783 (Dr.
    GRPO).
    Zheng et al. 2025, Group Sequence Policy Optimization, https://arxiv.org/abs/2507.18071 (GSPO).
    Ye et al. 2020, Mastering Complex Control in MOBA Games with Deep Reinforcement Learning,
    https://arxiv.org/abs/1912.09729 (the cap: dual clip).
  """
  base.require(advantage in ADVANTAGES, _NAME, 'advantage must be loo, centred or group', advantage)
  base.require(level in LEVELS, _NAME, 'level must be token or sequence', level)
  base.require(aggregate in AGGREGATES, _NAME, 'aggregate must be sequence_mean, token_mean or token_sum', aggregate)
  base.require(0 <= low < 1, _NAME, 'low must be in [0, 1)', low)
  base.require(high >= 0, _NAME, 'high must not be negative', high)
  base.require(cap is None or cap > 1, _NAME, 'cap must be greater than 1, or None', cap)
  base.require(length > 0, _NAME, 'length must be positive', length)
  batchwise = aggregate == 'token_mean'

  def sums(table: stats.StatTable, batch: PreferenceBatch) -> pooling.Sums:
    tokens = jnp.sum(table.mask, axis=(1, 2), dtype=jnp.float32)
    return {_TOKENS: WeightedSum.of(tokens, jnp.asarray(batch.weight))}

  pool = pooling.Pool(frozenset({_TOKENS}), sums) if batchwise else pooling.NO_POOL

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    score, behaviour = base.require_score(_NAME, batch), stats.behaviour_token_logp(batch)
    if behaviour is None:
      raise ValueError(
        f'{_NAME} reads batch.cached[{stats.BEHAVIOUR_TOKEN_LOGP!r}], the log-probability of each token under the '
        'policy that drew it, and this batch has none'
      )
    mask, advantages = table.mask, ADVANTAGES[advantage](score)[..., None]
    log_ratio = LEVELS[level](table[stats.logp] - behaviour, mask)
    ratio = jnp.exp(jnp.minimum(log_ratio, _LARGEST_LOG_RATIO))
    bounded = ratio if cap is None else jnp.minimum(ratio, cap)
    inside = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    gain = jnp.minimum(bounded * advantages, inside * advantages)
    loss = -AGGREGATES[aggregate](gain, mask, pool.read(table, batch), length)
    fixed = jax.lax.stop_gradient(ratio)
    metrics = {
      'score': jnp.mean(score, axis=1),
      'ratio': jnp.mean(numerics.masked_mean(fixed, mask), axis=1),
      'clipped': jnp.mean(numerics.masked_mean((inside != ratio).astype(jnp.float32), mask), axis=1),
      'advantage_spread': jnp.std(advantages[..., 0], axis=1),
    }
    return Term(loss, metrics)

  reads = base.SCORE | {stats.BEHAVIOUR_TOKEN_LOGP, 'response_length'} | ({'weight'} if batchwise else set())
  return base.Objective(frozenset({stats.logp}), apply, reads=reads, couples_rows=batchwise, pool=pool)
