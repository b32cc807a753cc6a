"""Objectives that raise the likelihood of one response."""

import jax

from alignjax import stats
from alignjax.objectives import base
from alignjax.types import PreferenceBatch, Term


@base.factory
def sft() -> base.Objective:
  """Supervised fine-tuning on the preferred response: its negative log-likelihood per token.

  loss = -1 / |y_w| log pi(y_w|x)

  Added to a preference objective, it is the regulariser of iterative RPO, which keeps the likelihood of preferred
  responses from falling. Responses other than 0 and the label are not read.

  Returns:
    An objective; [B] nats/token.

  References:
    Pang et al. 2024, Iterative Reasoning Preference Optimization, https://arxiv.org/abs/2404.19733, the NLL term of
    equation 1 (normalised there by the length of prompt and response, here by that of the response).
  """

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    del batch  # the likelihood of a response does not depend on labels
    loss = -table.mean(stats.logp)[:, 0]
    return Term(loss, {'nll': jax.lax.stop_gradient(loss)})

  return base.Objective(frozenset({stats.logp}), apply)
