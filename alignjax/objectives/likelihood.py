"""Objectives that raise the likelihood of one response."""

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import PreferenceBatch, Term


@base.factory
def sft(mean: bool = True) -> base.Objective:
  """Supervised fine-tuning on the preferred response: its negative log-likelihood, per token or summed.

  loss = -q / |y_0| log pi(y_0|x) - (1 - q) / |y_1| log pi(y_1|x),   q = P(y_0 is preferred to y_1)

  Each response is averaged over its own tokens, and the batch over its responses, so every response counts the same.
  With mean=False nothing is divided by |y|: the loss is -q log pi(y_0|x) - (1 - q) log pi(y_1|x), and a response counts
  in proportion to its length. TRL and many other trainers average over all tokens of a batch instead: the setting
  `--weighting=tokens` does that with mean=True, because the weight of a response is then its number of tokens.

  Added to a preference objective, it keeps the likelihood of preferred responses from falling. Iterative RPO averages
  over tokens. RPO (2405.16436) sums in its main experiments: `dpo(beta=0.05) + 0.00025 * sft(mean=False)`, where the
  weight is the paper's eta = 0.005 times beta, as in its released code.

  A hard label gives -1 / |y_w| log pi(y_w|x). Responses after the first two are not read. For N = 1 the label is the
  probability that the response is desirable: the loss is -q / |y_0| log pi(y_0|x), so an undesirable response is not
  imitated.

  Use it when:
    you train on demonstrations, or add it to a preference objective with a small weight to keep preferred responses
    likely.

  Args:
    mean: whether to average over the tokens of a response; False sums.

  Returns:
    An objective; [B] nats/token, or nats with mean=False.

  Defaults:
    the average, as in iterative RPO.

  References:
    Pang et al. 2024, Iterative Reasoning Preference Optimization, https://arxiv.org/abs/2404.19733, the NLL term of
    equation 1 (normalised there by the length of prompt and response, here by that of the response).
    Liu et al. 2024, Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial
    Regularizer, https://arxiv.org/abs/2405.16436 (the sum; released code:
    YSLIU627/Regularized-Preference-Optimization).
  """

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    label, likelihood = jnp.asarray(batch.label), table.mean(stats.logp) if mean else table.sum(stats.logp)
    loss = -(label * likelihood[:, 0])
    if likelihood.shape[1] > 1:
      loss = -preference.mixed(likelihood[:, 0], likelihood[:, 1], label)
    return Term(loss, {'nll': jax.lax.stop_gradient(loss)})

  return base.Objective(frozenset({stats.logp}), apply, reads=base.LABEL)
