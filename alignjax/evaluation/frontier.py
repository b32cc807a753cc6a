"""The trade-off between gold reward and distance from the reference."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from alignjax.evaluation.evaluator import Estimate


@dataclasses.dataclass(frozen=True)
class Point:
  """One checkpoint of one run."""

  step: int  # number of optimizer updates
  reward: Estimate
  kl: Estimate  # nats per response, KL(policy || reference)


def distance(kl: Estimate) -> tuple[float, float, float]:
  """Square root of a KL estimate, with an interval of one standard error: (middle, low, high), in square roots of nats.

  The interval transforms the ends of the KL interval, because the delta method's error, error / (2 sqrt(KL)), is
  infinite at KL = 0. Negative estimates, which can occur by chance near 0, count as 0.
  """
  middle, low, high = np.sqrt(np.maximum([kl.mean, kl.mean - kl.error, kl.mean + kl.error], 0.0))
  return float(middle), float(low), float(high)


def undominated(points: Sequence[Point]) -> list[Point]:
  """The Pareto frontier, sorted by KL: the points without another that has at least the reward at no more KL."""
  frontier = []
  for point in sorted(points, key=lambda point: (point.kl.mean, -point.reward.mean)):
    if not frontier or point.reward.mean > frontier[-1].reward.mean:
      frontier.append(point)
  return frontier


def draw(axes: Any, points: Sequence[Point], label: str | None = None) -> None:
  """Plots reward against sqrt(KL) for one run, in training order, with error bars and, of several points, their steps.

  Args:
    axes: the matplotlib axes to draw on.
    points: the checkpoints of one run.
    label: the name of the run in the legend.
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
  checkpoints = zip(points, middle, strict=True) if len(points) > 1 else ()  # a single point is a whole model
  for point, x in checkpoints:
    axes.annotate(str(point.step), (x, point.reward.mean), textcoords='offset points', xytext=(6, -12), fontsize=8)
  axes.set_xlabel('√KL(policy ‖ reference), √nats')
  axes.set_ylabel('gold reward')
