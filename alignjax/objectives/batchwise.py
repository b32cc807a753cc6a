"""Objectives of preference pairs that are not a mean over pairs: they compare or combine the pairs of a batch.

Notation as in `preference`: rho_w and rho_l are summed log-ratios, in nats; h = rho_w - rho_l; q is `batch.label`. Rows
of weight 0 are padding and excluded.
"""

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import Array, PreferenceBatch, Term


def _at_same_rank(values: Array, others: Array, counted: Array) -> Array:
  """[B]: for each row, the element of `others` with the same rank as the row has among `values`.

  Rows that do not count come last on both sides, so they only meet each other. Ties keep the order of the rows.
  """
  order = jnp.argsort(jnp.where(counted, values, jnp.inf))
  order_of_others = jnp.argsort(jnp.where(counted, others, jnp.inf))
  rank = jnp.argsort(order)
  return others[order_of_others][rank]


def _transported(values: Array, others: Array, beta: float, batch: PreferenceBatch, preferred: Array) -> Array:
  """[B]: E_q[-log sigmoid(beta gap)] of the gap between `values` and `others` at the same rank."""
  gap = values - _at_same_rank(values, others, jnp.asarray(batch.weight) > 0)
  return preference.expected(lambda gap: -jax.nn.log_sigmoid(beta * gap), gap, preferred)


def _oriented(pair: Array, label: Array) -> tuple[Array, Array, Array]:
  """Pairs [B, 2] with the likelier winner first: its values, the other's, and the probability that it wins."""
  turned = label < 0.5
  first, second = pair[:, 0], pair[:, 1]
  return (
    jnp.where(turned, second, first),
    jnp.where(turned, first, second),
    jnp.where(turned, 1.0 - label, label),
  )


@base.factory
def aot(beta: float = 0.1) -> base.Objective:
  """Alignment via optimal transport, paired: moves the distribution of the policy's margins above the reference's.

  loss = -log sigmoid(beta (u_(k) - v_(k)))
  u = log pi(y_w|x) - log pi(y_l|x),   v = log pi_ref(y_w|x) - log pi_ref(y_l|x)
  where u_(k) and v_(k) are the k-th smallest u and v of the batch

  DPO compares u and v of the same prompt. AOT compares quantiles, so the distribution of u comes to dominate that of v.
  The row whose u has rank k gets the loss of rank k. The sorts leave out rows of weight 0; any other weight scales the
  loss of its row and nothing else. A label below 1/2 swaps its pair before the sorts, and the remaining doubt enters as
  label smoothing of the loss of that row.

  Use it when:
    you want an improvement over the reference at every quantile of the margins, instead of on the average pair. Batches
    must be large enough for quantiles.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0. On a batch of one it is DPO.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Melnyk et al. 2024, Distributional Preference Alignment of LLMs via Optimal Transport,
    https://arxiv.org/abs/2406.05882, the paired variant with the logistic loss, with hard sorting.
  """
  base.require(beta > 0, 'aot', 'beta must be positive', beta)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('aot', table)
    policy, reference = table.sum(stats.logp), table.sum(stats.reference_logp)
    label = jnp.asarray(batch.label)
    chosen, rejected, preferred = _oriented(policy, label)
    reference_chosen, reference_rejected, _ = _oriented(reference, label)
    loss = _transported(chosen - rejected, reference_chosen - reference_rejected, beta, batch, preferred)
    return Term(loss, preference.reward_metrics(beta * (policy - reference), label))

  return base.Objective(preference.LOG_RATIO_NEEDS, apply, reads=base.LABEL_AND_WEIGHT, responses=2, couples_rows=True)


@base.factory
def aot_unpaired(beta: float = 0.1) -> base.Objective:
  """Alignment via optimal transport, unpaired: rewards of preferred responses above those of dispreferred ones.

  loss = -log sigmoid(beta (u_(k) - v_(k))),   u = rho(y_w),   v = rho(y_l)
  where u_(k) and v_(k) are the k-th smallest u and v of the batch

  The pairing of y_w and y_l does not matter: the distribution of rho(y_w) comes to dominate that of rho(y_l). The row
  whose u has rank k gets the loss of rank k. Weights and labels work as in `aot`.

  Use it when:
    preferred and dispreferred responses do not answer the same prompts, or the pairing carries little information.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0. On a batch of one it is DPO.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Melnyk et al. 2024, Distributional Preference Alignment of LLMs via Optimal Transport,
    https://arxiv.org/abs/2406.05882, the unpaired variant with the logistic loss, with hard sorting.
  """
  base.require(beta > 0, 'aot_unpaired', 'beta must be positive', beta)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('aot_unpaired', table)
    log_ratio, label = table.log_ratio(), jnp.asarray(batch.label)
    chosen, rejected, preferred = _oriented(log_ratio, label)
    loss = _transported(chosen, rejected, beta, batch, preferred)
    return Term(loss, preference.reward_metrics(beta * log_ratio, label))

  return base.Objective(preference.LOG_RATIO_NEEDS, apply, reads=base.LABEL_AND_WEIGHT, responses=2, couples_rows=True)


@base.factory
def dr_dpo(beta: float = 0.1, beta_prime: float = 1.0) -> base.Objective:
  """Distributionally robust DPO: a soft minimum of the DPO losses of a batch, which discounts pairs that fit badly.

  loss = -beta_prime log mean_batch[exp(log sigmoid(beta h) / beta_prime)]

  All rows get this one number. It is between the smallest and the mean DPO loss: beta_prime -> infinity gives the mean,
  which is DPO, and beta_prime -> 0 the minimum. So hard pairs, which may be mislabelled, get less weight: the method is
  robust to noise, not to the worst case. Rows enter the mean by their weight. The log sigmoid of a pair is averaged
  over its label before the exponential.

  Use it when:
    a share of the pairs is mislabelled and you do not know which.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    beta_prime: temperature of the soft minimum, > 0, nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or beta_prime <= 0.

  Defaults:
    beta as for DPO; beta_prime from the released code.

  References:
    Wu et al. 2024, Towards Robust Alignment of Language Models: Distributionally Robustifying Direct Preference
    Optimization, https://arxiv.org/abs/2407.07880, the Dr. DPO loss.
  """
  base.require(beta > 0, 'dr_dpo', 'beta must be positive', beta)
  base.require(beta_prime > 0, 'dr_dpo', 'beta_prime must be positive', beta_prime)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    base.require_pair('dr_dpo', table)
    log_ratio, weight, label = table.log_ratio(), jnp.asarray(batch.weight), jnp.asarray(batch.label)
    margin = log_ratio[:, 0] - log_ratio[:, 1]
    fit = preference.expected(lambda h: jax.nn.log_sigmoid(beta * h), margin, label) / beta_prime
    share = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)
    loss = -beta_prime * jax.nn.logsumexp(fit, b=share, where=weight > 0)
    return Term(jnp.broadcast_to(loss, weight.shape), preference.reward_metrics(beta * log_ratio, label))

  return base.Objective(preference.LOG_RATIO_NEEDS, apply, reads=base.LABEL_AND_WEIGHT, responses=2, couples_rows=True)
