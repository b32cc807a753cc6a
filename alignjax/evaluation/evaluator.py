"""On-policy evaluation: the reward of the policy's own samples and the KL divergence from the reference.

Samples for the same prompt are correlated, so all standard errors are clustered by prompt; prompts are independent.
KL estimates require samples from the policy itself, at temperature 1 and without top-k or nucleus truncation.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from alignjax import stats
from alignjax.models import base as models
from alignjax.types import Params, PreferenceBatch


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean with its standard error."""

  mean: float
  error: float  # standard error of the mean, clustered by prompt; nan for a single prompt

  def __str__(self) -> str:
    return f'{self.mean:.3f} ± {self.error:.3f}'


def clustered_mean(values: np.ndarray) -> Estimate:
  """Mean over all samples, with the standard error of B independent prompts: std_b(mean_n values[b, n]) / sqrt(B).

  Args:
    values: one value per sample, [B, N] with N samples for each of B prompts.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.size:
    raise ValueError(f'expected values of shape [prompts, samples] with at least one of each, got {values.shape}')
  by_prompt = values.mean(axis=1)
  error = by_prompt.std(ddof=1) / np.sqrt(len(by_prompt)) if len(by_prompt) > 1 else np.nan
  return Estimate(float(by_prompt.mean()), float(error))


def gain(policy: np.ndarray, reference: np.ndarray) -> Estimate:
  """Mean reward gain over the reference, paired by prompt: mean_b(mean_n policy[b, n] - mean_m reference[b, m]).

  Args:
    policy: rewards of the policy's samples, [B, N].
    reference: rewards of the reference's samples for the same prompts, [B, M].
  """
  _check_same_prompts(policy, reference)
  return clustered_mean(np.mean(policy, axis=1, keepdims=True) - np.mean(reference, axis=1, keepdims=True))


def win_rate(policy: np.ndarray, reference: np.ndarray) -> Estimate:
  """Probability that a sample of the policy beats one of the reference for the same prompt; ties count one half.

  All N x M pairs of a prompt are compared (the Mann-Whitney statistic), so every sample is used. The expectation is 1/2
  if both are the same model.

  Args:
    policy: rewards of the policy's samples, [B, N].
    reference: rewards of the reference's samples for the same prompts, [B, M].
  """
  _check_same_prompts(policy, reference)
  difference = np.asarray(policy, np.float64)[:, :, None] - np.asarray(reference, np.float64)[:, None, :]
  wins = (difference > 0) + 0.5 * (difference == 0)
  return clustered_mean(wins.reshape(len(wins), -1))


def build_kl_step(
  model: models.LanguageModel, *, chunk: int = 1024
) -> Callable[[Params, Params, PreferenceBatch], stats.StatTable]:
  """Builds a function that computes the statistics for `kl`, with the same forward pass and expressions as in training.

  The sampler's log-probabilities differ from these by rounding, which is visible in estimates of a small KL.

  Args:
    model: the model, shared by policy and reference.
    chunk: number of tokens whose logits are in memory at once.

  Returns:
    A pure function (policy parameters, reference parameters, samples as a batch) -> table of `stats.logp`,
    `stats.reference_logp` and `stats.reverse_kl`.

  Raises:
    ValueError: `chunk` is below 1.
  """
  if chunk < 1:
    raise ValueError(f'chunk must be at least 1, got {chunk}')
  needs = frozenset({stats.logp, stats.reference_logp, stats.reverse_kl, stats.entropy})

  def step(params: Params, reference: Params, batch: PreferenceBatch) -> stats.StatTable:
    inputs = (batch.prompt, batch.prompt_length, batch.response, batch.response_length)
    sides = [stats.HiddenStates(model.hidden(side, *inputs), model.head(side)) for side in (params, reference)]
    return stats.statistics(needs, *sides, batch, chunk=chunk)

  return step


def kl(token_values: np.ndarray, mask: np.ndarray) -> Estimate:
  """KL(policy || reference) in nats per response, from the policy's own samples: the mean of sum_t token_values[t].

  Two kinds of token values give unbiased estimates:
    the log-ratio of the sampled token, log policy(y_t | y_<t) - log reference(y_t | y_<t), which can be negative;
    the KL of its distribution, sum_v policy(v | y_<t) (log policy - log reference)(v | y_<t) (`stats.reverse_kl`). This
    is the mean of the log-ratio given the prefix (Rao-Blackwell), so it is never negative and far less noisy.

  Args:
    token_values: values per token, [B, N, R], nats.
    mask: [B, N, R] bool, True for the tokens of a response.
  """
  token_values, mask = np.asarray(token_values, np.float64), np.asarray(mask, bool)
  if token_values.shape != mask.shape or mask.ndim != 3:
    raise ValueError(
      'expected values and mask of the same shape [prompts, samples, tokens], '
      f'got {token_values.shape} and {mask.shape}'
    )
  return clustered_mean(np.where(mask, token_values, 0.0).sum(axis=-1))


def _check_same_prompts(policy: np.ndarray, reference: np.ndarray) -> None:
  if np.ndim(policy) != 2 or np.ndim(reference) != 2 or len(policy) != len(reference):
    raise ValueError(
      'expected rewards of shape [prompts, samples] for the same prompts, '
      f'got {np.shape(policy)} for the policy and {np.shape(reference)} for the reference'
    )
