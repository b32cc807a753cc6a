"""DPO against length bias: margins that account for the number of tokens.

Notation as in `preference`; |y| is the number of tokens of y, and rho_t(y) the log-ratio of its token t.
"""

import jax.numpy as jnp

from alignjax import numerics, stats
from alignjax.objectives import base, draws, preference
from alignjax.types import Array, PreferenceBatch


def _token_log_ratio(table: stats.StatTable) -> Array:
  """[B, N, R]: rho_t, 0 at padding."""
  return table[stats.logp] - table[stats.reference_logp]


@base.factory
def r_dpo(beta: float = 0.1, alpha: float = 0.01) -> base.Objective:
  """Length-regularised DPO: the implicit reward pays for length, so the policy need not write longer to win.

  loss = -log sigmoid(beta h + alpha (|y_w| - |y_l|))

  It follows from a reward minus alpha |y|. Some released code has the opposite sign. The reported reward is beta rho(y)
  + alpha |y|, whose difference is the margin above.

  Use it when:
    preferred responses are longer on average, and DPO drifts towards longer output.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    alpha: penalty per token, >= 0; 0 gives DPO.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log(1 + exp(-alpha (|y_w| - |y_l|))).

  Raises:
    ValueError: if beta <= 0 or alpha < 0.

  Defaults:
    beta as for DPO; alpha from later work that compares with it on summaries.

  References:
    Park et al. 2024, Disentangling Length from Quality in Direct Preference Optimization,
    https://arxiv.org/abs/2403.19159.
  """
  base.require(beta > 0, 'r_dpo', 'beta must be positive', beta)
  base.require(alpha >= 0, 'r_dpo', 'alpha must not be negative', alpha)

  def reward(table: stats.StatTable, batch: PreferenceBatch) -> Array:
    del batch
    return beta * table.log_ratio() + alpha * table.length.astype(jnp.float32)

  return preference.of_reward('r_dpo', preference.LOG_RATIO_NEEDS, reward)


@base.factory
def dpo_norm(beta: float = 5.0) -> base.Objective:
  """Length-normalised DPO: the log-ratio of each response is averaged over its tokens.

  loss = -log sigmoid(beta (rho(y_w) / |y_w| - rho(y_l) / |y_l|))

  Use it when:
    lengths vary a lot, and you want each response to count by its average token, as in the Tulu 3 recipe.

  Args:
    beta: scale of the reward, > 0, tokens/nat. It multiplies means, so it is far larger than DPO's.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta from the paper's final recipe.

  References:
    Lambert et al. 2024, Tulu 3: Pushing Frontiers in Open Language Model Post-Training,
    https://arxiv.org/abs/2411.15124, the loss in its section on preference tuning.
  """
  base.require(beta > 0, 'dpo_norm', 'beta must be positive', beta)

  def reward(table: stats.StatTable, batch: PreferenceBatch) -> Array:
    del batch
    return beta * preference.mean_log_ratio(table)

  return preference.of_reward('dpo_norm', preference.LOG_RATIO_NEEDS, reward)


@base.factory
def ld_dpo(beta: float = 0.1, alpha: float = 0.5) -> base.Objective:
  """Length-desensitised DPO: tokens beyond the length of the shorter response count less.

  loss = -log sigmoid(beta (r(y_w) - r(y_l)))
  r(y) = sum_{t <= s} rho_t(y) + alpha sum_{t > s} rho_t(y),   s = min(|y_w|, |y_l|)

  Policy and reference are treated alike, so the loss is DPO's at policy == reference.

  Use it when:
    you want to weaken length bias gradually: alpha interpolates between the shared prefix alone and full DPO.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    alpha: weight of the tokens beyond the shared length, in [0, 1]; 1 gives DPO.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0, or alpha is outside [0, 1].

  Defaults:
    beta as for DPO; alpha in the middle of its range. The paper finds that the best value depends on the model.

  References:
    Liu et al. 2024, Length Desensitization in Direct Preference Optimization, https://arxiv.org/abs/2409.06411.
  """
  base.require(beta > 0, 'ld_dpo', 'beta must be positive', beta)
  base.require(0 <= alpha <= 1, 'ld_dpo', 'alpha must be in [0, 1]', alpha)

  def reward(table: stats.StatTable, batch: PreferenceBatch) -> Array:
    del batch
    log_ratio = _token_log_ratio(table)
    shared = jnp.min(table.length, axis=1, keepdims=True)
    weight = jnp.where(numerics.length_mask(shared, log_ratio.shape[-1]), 1.0, alpha)
    return beta * numerics.masked_sum(weight * log_ratio, table.mask)

  return preference.of_reward('ld_dpo', preference.LOG_RATIO_NEEDS, reward)


def sampled_tokens(batch: PreferenceBatch) -> Array:
  """[B, N, R] bool: the tokens that SamPO draws, as many of each response as the shortest response of its row has.

  The draw is uniform without replacement, with `draws.row_keys`: a pair draws the same tokens in every epoch.
  """
  _, responses, size = batch.response.shape
  valid = numerics.length_mask(batch.response_length, size)
  # The tokens with the smallest bits are drawn. The sort is stable, so padding comes after every token, even after a
  # token that drew the largest number itself.
  bits = jnp.where(valid, draws.token_bits(draws.row_keys(batch), responses, size), jnp.uint32(2**32 - 1))
  rank = jnp.argsort(jnp.argsort(bits, axis=-1, stable=True), axis=-1)
  return rank < jnp.min(batch.response_length, axis=1)[:, None, None]


@base.factory
def sampo(beta: float = 0.1) -> base.Objective:
  """SamPO: DPO on as many random tokens of the longer response as the shorter one has.

  loss = -log sigmoid(beta (r(y_w) - r(y_l))),   r(y) = sum_{t in T(y)} rho_t(y)
  where T(y) is a set of min(|y_w|, |y_l|) tokens of y, drawn uniformly without replacement

  The draw depends only on the tokens of prompt and responses. So a pair draws the same tokens in every epoch and on
  every mesh, and the loss is deterministic; see `draws.row_keys`. Policy and reference are summed over the same tokens;
  the released code draws separately for each model.

  Use it when:
    you want to remove length bias without a length penalty to tune.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Lu et al. 2024, Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL Divergence,
    https://arxiv.org/abs/2406.10957.
  """
  base.require(beta > 0, 'sampo', 'beta must be positive', beta)

  def reward(table: stats.StatTable, batch: PreferenceBatch) -> Array:
    return beta * numerics.masked_sum(_token_log_ratio(table), sampled_tokens(batch))

  reads = base.LABEL | draws.READS
  return preference.of_reward('sampo', preference.LOG_RATIO_NEEDS, reward, reads=reads)
