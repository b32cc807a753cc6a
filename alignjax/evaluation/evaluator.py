"""On-policy evaluation: what the policy's own samples are worth, and how far from the reference they were drawn.

Samples of one prompt are alike, so every standard error here is clustered by prompt: prompts are the independent draws.
Estimates of the KL need samples drawn from the policy itself, at temperature 1 and without top-k or nucleus truncation.
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
    values: [B, N], N samples of each of B prompts.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.size:
    raise ValueError(f'expected values of shape [prompts, samples] and at least one of each, got {values.shape}')
  by_prompt = values.mean(axis=1)
  error = by_prompt.std(ddof=1) / np.sqrt(len(by_prompt)) if len(by_prompt) > 1 else np.nan
  return Estimate(float(by_prompt.mean()), float(error))


def gain(policy: np.ndarray, reference: np.ndarray) -> Estimate:
  """Mean rise of the reward over the reference, paired by prompt: mean_b(mean_n policy[b, n] - mean_m reference[b, m]).

  Args:
    policy: [B, N] rewards of the policy's samples.
    reference: [B, M] rewards of the reference's samples on the same prompts.
  """
  _check_same_prompts(policy, reference)
  return clustered_mean(np.mean(policy, axis=1, keepdims=True) - np.mean(reference, axis=1, keepdims=True))


def win_rate(policy: np.ndarray, reference: np.ndarray) -> Estimate:
  """Probability that a sample of the policy beats one of the reference on the same prompt, a tie counting one half.

  All N x M pairs of a prompt are compared (the Mann-Whitney statistic), which wastes no sample. Its expectation is 1/2
  where both are the same model.

  Args:
    policy: [B, N] rewards of the policy's samples.
    reference: [B, M] rewards of the reference's samples on the same prompts.
  """
  _check_same_prompts(policy, reference)
  difference = np.asarray(policy, np.float64)[:, :, None] - np.asarray(reference, np.float64)[:, None, :]
  wins = (difference > 0) + 0.5 * (difference == 0)
  return clustered_mean(wins.reshape(len(wins), -1))


def build_kl_step(
  model: models.LanguageModel, *, chunk: int = 1024
) -> Callable[[Params, Params, PreferenceBatch], stats.StatTable]:
  """Builds what `kl` needs of a batch of samples, by the same forward pass and the same expressions as in training.

  The log-probabilities that a sampler reports differ from these by rounding, which an estimate of a small KL would see.

  Args:
    model: shared by policy and reference.
    chunk: tokens whose logits exist at once.

  Returns:
    A pure function (policy parameters, reference parameters, samples as a batch) -> table of `stats.logp`,
    `stats.reference_logp` and `stats.reverse_kl`.

  Raises:
    ValueError: for a chunk below 1.
  """
  if chunk < 1:
    raise ValueError(f'chunk must be at least 1, got {chunk}')
  needs = frozenset({stats.logp, stats.reference_logp, stats.reverse_kl})

  def step(params: Params, reference: Params, batch: PreferenceBatch) -> stats.StatTable:
    inputs = (batch.prompt, batch.prompt_length, batch.response, batch.response_length)
    sides = [stats.HiddenStates(model.hidden(side, *inputs), model.head(side)) for side in (params, reference)]
    return stats.statistics(needs, *sides, batch, chunk=chunk)

  return step


def kl(token_values: np.ndarray, mask: np.ndarray) -> Estimate:
  """KL(policy || reference) in nats per response, from the policy's own samples: the mean of sum_t token_values[t].

  Both of these token values give an unbiased estimate:
    the log-ratio log policy(y_t | y_<t) - log reference(y_t | y_<t) of the token drawn, which can come out negative;
    the KL of its distribution, sum_v policy(v | y_<t) (log policy - log reference)(v | y_<t) (`stats.reverse_kl`): the
    former's mean given the prefix (Rao-Blackwell), so that no term is negative and most of the noise is gone.

  Args:
    token_values: [B, N, R] nats.
    mask: [B, N, R] bool, True on the tokens of a response.
  """
  token_values, mask = np.asarray(token_values, np.float64), np.asarray(mask, bool)
  if token_values.shape != mask.shape or mask.ndim != 3:
    raise ValueError(
      f'expected values and mask of one shape [prompts, samples, tokens], got {token_values.shape} and {mask.shape}'
    )
  return clustered_mean(np.where(mask, token_values, 0.0).sum(axis=-1))


def _check_same_prompts(policy: np.ndarray, reference: np.ndarray) -> None:
  if np.ndim(policy) != 2 or np.ndim(reference) != 2 or len(policy) != len(reference):
    raise ValueError(
      'expected rewards of shape [prompts, samples] on the same prompts, '
      f'got {np.shape(policy)} for the policy and {np.shape(reference)} for the reference'
    )
