"""Gold reward against the distance from the reference: what an objective pays for its reward."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from alignjax.evaluation.evaluator import Estimate


@dataclasses.dataclass(frozen=True)
class Point:
  """One checkpoint of one run."""

  step: int  # optimizer updates done
  reward: Estimate
  kl: Estimate  # nats per response, KL(policy || reference)


def distance(kl: Estimate) -> tuple[float, float, float]:
  """Square root of a KL estimate with its ends at one standard error: (middle, low, high), in square roots of nats.

  The ends are the roots of the ends, because the delta method's error, error / (2 sqrt(KL)), is infinite at KL = 0.
  An estimate below 0, which chance can produce there, counts as 0.
  """
  middle, low, high = np.sqrt(np.maximum([kl.mean, kl.mean - kl.error, kl.mean + kl.error], 0.0))
  return float(middle), float(low), float(high)


def undominated(points: Sequence[Point]) -> list[Point]:
  """The points for which no other has at least the reward at no more KL, sorted by KL: the frontier of some runs."""
  frontier = []
  for point in sorted(points, key=lambda point: (point.kl.mean, -point.reward.mean)):
    if not frontier or point.reward.mean > frontier[-1].reward.mean:
      frontier.append(point)
  return frontier


def draw(axes: Any, points: Sequence[Point], label: str | None = None) -> None:
  """Draws reward over sqrt(KL), one standard error either way, joined in the order of training, each with its step.

  Args:
    axes: matplotlib axes to draw on.
    points: checkpoints of one run.
    label: name of the run for the legend.
  """
  points = sorted(points, key=lambda point: point.step)
  middle, low, high = np.array([distance(point.kl) for point in points]).reshape(-1, 3).T
  axes.errorbar(
    middle,
    [point.reward.mean for point in points],
    xerr=[middle - low, high - middle],
    yerr=[point.reward.error for point in points],
    marker='o',
    capsize=3,
    label=label,
  )
  for point, x in zip(points, middle, strict=True):
    axes.annotate(str(point.step), (x, point.reward.mean), textcoords='offset points', xytext=(6, -12), fontsize=8)
  axes.set_xlabel('√KL(policy ‖ reference), √nats')
  axes.set_ylabel('gold reward')
