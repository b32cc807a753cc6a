"""Objectives that raise the likelihood of one response."""

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import PreferenceBatch, Term


@base.factory
def sft() -> base.Objective:
  """Supervised fine-tuning on the preferred response: its negative log-likelihood per token.

  loss = -q / |y_0| log pi(y_0|x) - (1 - q) / |y_1| log pi(y_1|x),   q = P(y_0 is preferred to y_1)

  Added to a preference objective, it is the regulariser of iterative RPO, which keeps the likelihood of preferred
  responses from falling. A hard label gives -1 / |y_w| log pi(y_w|x). Responses after the first two are not read. For N
  = 1 the label is the probability that the response is desirable: the loss is -q / |y_0| log pi(y_0|x), so an
  undesirable response is not imitated.

  Use it when:
    you train on demonstrations, or add it to a preference objective with a small weight to keep preferred responses
    likely.

  Returns:
    An objective; [B] nats/token.

  References:
    Pang et al. 2024, Iterative Reasoning Preference Optimization, https://arxiv.org/abs/2404.19733, the NLL term of
    equation 1 (normalised there by the length of prompt and response, here by that of the response).
  """

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    label, likelihood = jnp.asarray(batch.label), table.mean(stats.logp)
    loss = -(label * likelihood[:, 0])
    if likelihood.shape[1] > 1:
      loss = -preference.mixed(likelihood[:, 0], likelihood[:, 1], label)
    return Term(loss, {'nll': jax.lax.stop_gradient(loss)})

  return base.Objective(frozenset({stats.logp}), apply, reads=base.LABEL)
