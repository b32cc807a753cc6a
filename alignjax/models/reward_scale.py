"""The scale of a reward model: mean and standard deviation of its rewards, in reward.json beside its weights.

Rewards of a Bradley-Terry model have an arbitrary origin. `reward_model(folder)` subtracts the mean and divides by the
standard deviation, so that a coefficient means the same with every reward model. Training writes the scale of its own
responses. The scale that matters is that of the policy's first samples: `rewards.model.calibrate` writes it. The
manifest of the folder does not cover the file.
"""

from collections.abc import Sequence
import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from alignjax import files
from alignjax.models import folders


class RewardScale(NamedTuple):
  """Mean and standard deviation of rewards, and of what responses they are."""

  mean: float
  std: float
  source: str

  @classmethod
  def of(cls, scores: Sequence[float] | np.ndarray, source: str) -> 'RewardScale':
    """The scale of rewards that are not normalised.

    Args:
      scores: one reward per response, [n].
      source: describes the responses.

    Raises:
      ValueError: there are fewer than two rewards, or they are not finite or all equal.
    """
    scores = np.asarray(scores, np.float64).ravel()
    if scores.size < 2 or not np.isfinite(scores).all() or scores.std() == 0:
      raise ValueError(f'{scores.size} rewards of {source} have no scale: give two or more finite ones that differ')
    return cls(float(scores.mean()), float(scores.std()), source)

  def apply(self, rewards: np.ndarray) -> np.ndarray:
    """(rewards - mean) / std."""
    return (rewards - self.mean) / self.std


def write(folder: pathlib.Path, scale: RewardScale) -> None:
  """Writes reward.json into the folder of a reward model."""
  files.replace(folder / folders.REWARD, (json.dumps(scale._asdict(), indent=2) + '\n').encode())


def read(folder: pathlib.Path) -> RewardScale:
  """Reads reward.json from the folder of a reward model.

  Raises:
    ValueError: the file is missing or malformed.
  """
  path = folder / folders.REWARD
  if not path.exists():
    raise ValueError(
      f'{path}: is missing, so rewards cannot be normalised: use normalise=False, or write the scale of samples with '
      'alignjax.rewards.model.calibrate'
    )
  entries = folders.read_json(path)
  mean, std = entries.get('mean'), entries.get('std')
  numbers = all(type(value) in (int, float) and math.isfinite(value) for value in (mean, std))
  if not numbers or not std > 0:
    raise ValueError(f'{path}: mean={mean!r} and std={std!r} must be finite numbers, and std positive')
  return RewardScale(float(mean), float(std), str(entries.get('source', '')))
