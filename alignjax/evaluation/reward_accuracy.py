"""Accuracy of a reward model on pairs, overall and by subset, as on RewardBench."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alignjax.data.reading import rows
from alignjax.evaluation import evaluator
from alignjax.rewards import base


class Pair(NamedTuple):
  """A prompt with the response that people prefer and another one."""

  prompt: rows.Prompt
  chosen: str
  rejected: str
  subset: str = ''


class Accuracy(NamedTuple):
  """How often a reward prefers what people prefer; a tie counts one half."""

  overall: evaluator.Estimate  # over all pairs
  by_subset: Mapping[str, evaluator.Estimate]
  macro: float  # the mean over subsets, each of which counts the same


def accuracy(chosen: np.ndarray, rejected: np.ndarray, subsets: Sequence[str]) -> Accuracy:
  """The accuracy of rewards, overall and by subset.

  Args:
    chosen: rewards of the preferred responses, [n].
    rejected: rewards of the others, [n].
    subsets: the subset of each pair, n names.

  Raises:
    ValueError: the numbers of rewards and names differ, or there are none.
  """
  chosen, rejected = (np.asarray(rewards, np.float64) for rewards in (chosen, rejected))
  if chosen.ndim != 1 or not len(chosen) == len(rejected) == len(subsets) > 0:
    raise ValueError(
      f'expected the rewards of pairs and their subsets, got {chosen.shape} and {rejected.shape} rewards and '
      f'{len(subsets)} subsets'
    )
  right = (chosen > rejected) + 0.5 * (chosen == rejected)
  names = np.asarray(subsets)
  by_subset = {name: evaluator.clustered_mean(right[names == name, None]) for name in dict.fromkeys(subsets)}
  macro = float(np.mean([estimate.mean for estimate in by_subset.values()]))
  return Accuracy(evaluator.clustered_mean(right[:, None]), by_subset, macro)


def evaluate(score: base.Score, pairs: Sequence[Pair]) -> Accuracy:
  """The accuracy of a reward on pairs of finished responses.

  Args:
    score: the reward, such as `RewardModel.load(folder, normalise=False)`. It must not read the number of tokens.
    pairs: the pairs.
  """
  sides = []
  for responses in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs]):
    samples = [base.Sample(pair.prompt, text, 0, True) for pair, text in zip(pairs, responses, strict=True)]
    sides.append(np.asarray(score(samples)))
  return accuracy(*sides, [pair.subset for pair in pairs])
