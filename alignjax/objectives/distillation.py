"""Distillation: the policy imitates the next-token distributions of the reference, its teacher."""

from collections.abc import Mapping

import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base
from alignjax.types import PreferenceBatch, Term

DIVERGENCES: Mapping[str, stats.TokenStat] = {'reverse': stats.reverse_kl, 'forward': stats.forward_kl}


@base.factory
def distil(divergence: str = 'reverse') -> base.Objective:
  """Distillation: the divergence of the policy from the reference, exact at every prefix of the responses.

  loss = mean_{n,t}[ D(pi(.|x, y_<t) || pi_ref(.|x, y_<t)) ]

  D is the KL divergence KL(pi || pi_ref), or with divergence='forward' KL(pi_ref || pi), summed over the vocabulary.
  The mean is over the tokens of a response, then over the N responses. No gradient flows through the choice of the
  responses. On-policy distillation takes the policy's own samples, usually with the reverse divergence; for samples of
  the teacher or a dataset the forward one is usual. No score and no label is read.

  Use it when:
    you have a better model of the same architecture, given as the reference, and want its behaviour rather than that
    of a dataset.

  Args:
    divergence: 'reverse', which seeks a mode of the teacher, or 'forward', which covers all of them.

  Returns:
    An objective for any N >= 1; [B] nats per token. At policy == reference every loss and every gradient is 0.

  Raises:
    ValueError: if divergence is neither.

  Defaults:
    divergence: the one of on-policy distillation.

  References:
    Agarwal et al. 2023, On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (GKD),
    https://arxiv.org/abs/2306.13649, the on-policy loss, without gradient through the sampling.
    Gu et al. 2023, MiniLLM: Knowledge Distillation of Large Language Models, https://arxiv.org/abs/2306.08543 (the
    reverse KL).
  """
  base.require(divergence in DIVERGENCES, 'distil', 'divergence must be reverse or forward', divergence)
  stat = DIVERGENCES[divergence]

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    del batch
    return Term(jnp.mean(table.mean(stat), axis=1), {})

  return base.Objective(frozenset({stat}), apply)
