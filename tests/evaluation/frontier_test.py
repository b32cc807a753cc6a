"""Points of reward against distance, and their picture."""

from matplotlib import figure as matplotlib_figure
import numpy as np
import pytest

from alignjax.evaluation import frontier
from alignjax.evaluation.evaluator import Estimate


def _point(step: int, kl: float, reward: float) -> frontier.Point:
  return frontier.Point(step, Estimate(reward, 0.1), Estimate(kl, 0.05))


def test_distance_has_the_roots_of_the_ends():
  assert frontier.distance(Estimate(4.0, 5.0)) == pytest.approx((2.0, 0.0, 3.0))
  assert frontier.distance(Estimate(-0.1, 0.2)) == pytest.approx((0.0, 0.0, 0.1**0.5))


def test_undominated_against_the_definition():
  generator = np.random.default_rng(0)
  points = [_point(step, *generator.integers(0, 6, 2).astype(float)) for step in range(30)]

  def dominated(point):
    return any(
      other.kl.mean <= point.kl.mean
      and other.reward.mean >= point.reward.mean
      and (other.kl.mean, other.reward.mean) != (point.kl.mean, point.reward.mean)
      for other in points
    )

  expected = {(point.kl.mean, point.reward.mean) for point in points if not dominated(point)}
  result = frontier.undominated(points)
  assert {(point.kl.mean, point.reward.mean) for point in result} == expected
  assert [point.kl.mean for point in result] == sorted(point.kl.mean for point in result)


def test_draw_places_points_by_root_of_kl_in_training_order():
  axes = matplotlib_figure.Figure().subplots()
  frontier.draw(axes, [_point(20, 9.0, 0.8), _point(0, 0.0, 0.2), _point(10, 4.0, 0.6)], label='run')
  line = axes.lines[0]
  assert list(line.get_xdata()) == [0.0, 2.0, 3.0]
  assert list(line.get_ydata()) == [0.2, 0.6, 0.8]
  assert [text.get_text() for text in axes.texts] == ['0', '10', '20']
  frontier.draw(axes, [_point(0, 1.0, 0.5)], label='a model without steps')
  assert len(axes.texts) == 3
