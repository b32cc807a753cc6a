"""Metrics of a round of rollouts. They follow from its arrays, so they are the same however often a run is resumed."""

from collections.abc import Mapping

import numpy as np

from alignjax.evaluation import evaluator
from alignjax.training import rollout_files, rollout_rows


def of_round(drawn: rollout_files.Round, shaping: rollout_rows.Shaping, labels: Mapping[str, str]) -> dict[str, float]:
  """Metrics by name. Errors are standard errors of means, clustered by prompt.

  rollout/reward           the mean reward; rollout/reward_error its standard error; rollout/reward/<label> a part of it
  rollout/kl               mean of log pi(y|x) - log pi_ref(y|x), nats per response; also kl_k3, kl_exact
  rollout/cut_rows         share of rows that are left out because a response was cut off
  rollout/entropy          sum over tokens of the entropy of their distribution, nats per response
  rollout/sampler_gap_...  difference between a token's log-probability in sampling and in training, nats

  Args:
    drawn: the round.
    shaping: how rows are formed.
    labels: a short label for each part of the reward, by name.
  """
  reward = evaluator.clustered_mean(drawn.score)
  mask = _mask(drawn.response_length, drawn.response.shape[2])
  values = {
    'rollout/reward': reward.mean,
    'rollout/reward_error': 0.0 if np.isnan(reward.error) else reward.error,
    **{f'rollout/reward/{labels[name]}': float(part.mean()) for name, part in drawn.parts.items() if name in labels},
    'rollout/round': float(drawn.number),
    'rollout/length': float(drawn.response_length.mean()),
    'rollout/finished': float(drawn.finished.mean()),
    'rollout/entropy': float(drawn.entropy.mean(dtype=np.float64)),
    'rollout/no_signal': float((np.ptp(drawn.score, axis=1) == 0).mean()),
    'rollout/ties': float(shaping.tied(drawn).mean()),
    'rollout/cut_rows': float(shaping.cut(drawn).mean()),
    **{
      f'rollout/sampler_gap_{name}': value for name, value in gaps(drawn.policy_logp, drawn.sampler_logp, mask).items()
    },
  }
  if drawn.reference_logp is not None:
    log_ratio = np.where(mask, drawn.policy_logp.astype(np.float64) - drawn.reference_logp, 0.0)
    values |= {
      'rollout/kl': float(log_ratio.sum(axis=2).mean()),
      'rollout/kl_k3': float((np.exp(-log_ratio) - 1 + log_ratio).sum(axis=2).mean()),
      'rollout/kl_exact': float(drawn.kl.mean(dtype=np.float64)),
    }
  return values


def gaps(trained: np.ndarray, sampled: np.ndarray, mask: np.ndarray) -> dict[str, float]:
  """The largest and the mean |difference| over tokens, and the mean of its k3 estimate of a KL.

  Args:
    trained: log-probabilities of the tokens in training, [P, N, R].
    sampled: the same in sampling.
    mask: [P, N, R] bool, True on tokens.
  """
  difference = (trained.astype(np.float64) - sampled)[mask]
  return {
    'max': float(np.abs(difference).max(initial=0.0)),
    'mean': float(np.abs(difference).mean()),
    'k3': float((np.exp(difference) - 1 - difference).mean()),
  }


def check_gap(arrays: Mapping[str, np.ndarray], largest: float) -> None:
  """Raises a RolloutError if sampling and training compute other log-probabilities for the same tokens.

  Args:
    arrays: the arrays of a round by name.
    largest: the largest mean difference, in nats.
  """
  mask = _mask(arrays['response_length'], arrays['response'].shape[2])
  found = gaps(arrays['policy_logp'], arrays['sampler_logp'], mask)
  if not found['mean'] <= largest:
    raise rollout_files.RolloutError(
      f'the log-probability of a token differs by {found["mean"]:.4f} nats on average between sampling and training '
      f'(at most {found["max"]:.4f}; limit {largest:g}): template, weights or types differ, and the responses are not '
      'samples of the policy that is trained'
    )


def _mask(length: np.ndarray, size: int) -> np.ndarray:
  """[P, N, R] bool: True on tokens."""
  return np.arange(size) < length[..., None]
