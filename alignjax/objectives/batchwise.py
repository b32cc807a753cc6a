"""Objectives of preference pairs in which a batch is more than the mean of its pairs.

Notation as in `preference`: rho_w and rho_l are summed log-ratios, nats; h = rho_w - rho_l; q is `batch.label`. Rows of
weight 0 are padding and take no part.
"""

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import Array, PreferenceBatch, Term


def _at_same_rank(values: Array, others: Array, counted: Array) -> Array:
  """[B]: for each row, the one of `others` that has, among them, the rank that the row has among `values`.

  Rows that are not counted come last on both sides, so they meet each other and nobody else. Ties keep the order of the
  rows.
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
  """Pairs [B, 2] turned so that the likelier winner comes first: its values, the other's, and its probability."""
  turned = label < 0.5
  first, second = pair[:, 0], pair[:, 1]
  return (
    jnp.where(turned, second, first),
    jnp.where(turned, first, second),
    jnp.where(turned, 1.0 - label, label),
  )


@base.factory
def aot(beta: float = 0.1) -> base.Objective:
  """Alignment via optimal transport, paired: the policy's margins as a distribution above the reference's.

  loss = -log sigmoid(beta (u_(k) - v_(k))),   u = log pi(y_w|x) - log pi(y_l|x),   v = the same under pi_ref,
  u_(k) and v_(k) the k-th smallest of the batch

  DPO compares u and v of the same prompt; AOT compares quantiles, so that the distribution of u comes to dominate that
  of v. The loss of rank k is given to the row whose u has this rank. Of `batch.weight` only 0 matters to the sorts:
  such rows are left out; any other weight scales the loss of its row. A label below 1/2 turns its pair round before the
  sorts; what doubt remains enters as label smoothing of that row's loss.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0. On a batch of one it is DPO.

  Raises:
    ValueError: for beta <= 0.

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
  """Alignment via optimal transport, unpaired: rewards of preferred above rewards of dispreferred responses.

  loss = -log sigmoid(beta (rho_w(k) - rho_l(k))),   rho_w(k) and rho_l(k) the k-th smallest of the batch

  Nothing depends on which y_l belongs to which y_w: the distribution of rho_w comes to dominate that of rho_l. The loss
  of rank k is given to the row whose rho_w has this rank. Weights and labels as in `aot`.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0. On a batch of one it is DPO.

  Raises:
    ValueError: for beta <= 0.

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

  loss = -beta_prime log mean over the batch of exp(log sigmoid(beta h) / beta_prime)

  Every row is given this one number. It lies between the smallest and the mean DPO loss: beta_prime -> infinity is the
  mean, which is DPO, and beta_prime -> 0 the MINIMUM. So hard pairs, which may be mislabelled, weigh less, not more:
  robustness here is to noise, not to the worst case. Rows enter the mean by their weight. The log sigmoid of a pair is
  taken in expectation over its label before the exponential.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    beta_prime: temperature of the soft minimum, > 0, nats.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: for beta <= 0 or beta_prime <= 0.

  Defaults:
    beta as for DPO; beta_prime as in the released code.

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
