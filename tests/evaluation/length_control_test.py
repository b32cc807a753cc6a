"""Win rates at equal lengths, as identities."""

import numpy as np
import pytest

from alignjax.evaluation import evaluator, length_control

GENERATOR = np.random.default_rng(0)
WIN = GENERATOR.integers(0, 3, (40, 3)) / 2
A, B = GENERATOR.integers(1, 200, (2, 40, 3))


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


def test_at_equal_lengths_it_is_the_raw_win_rate_with_its_error():
  estimate, raw = length_control.length_controlled(WIN, A, A), evaluator.clustered_mean(WIN)
  assert estimate.mean == pytest.approx(raw.mean, rel=1e-9)
  assert estimate.error == pytest.approx(raw.error, rel=1e-9)


def test_exchanging_the_sides_gives_the_complement():
  estimate, other = length_control.length_controlled(WIN, A, B), length_control.length_controlled(1 - WIN, B, A)
  assert other.mean == pytest.approx(1 - estimate.mean, rel=1e-9)
  assert other.error == pytest.approx(estimate.error, rel=1e-9)


def test_the_unit_of_length_does_not_matter():
  estimate, other = length_control.length_controlled(WIN, A, B), length_control.length_controlled(WIN, 4.2 * A, 4.2 * B)
  assert other.mean == pytest.approx(estimate.mean, rel=1e-9)


@pytest.mark.parametrize('theta', [0.0, 1.0, -0.5])
def test_outcomes_that_follow_the_model_give_back_theta(theta):
  """A is longer most of the time, so the raw win rate is far from it."""
  lengths = GENERATOR.integers(50, 400, (20000, 1)), GENERATOR.integers(1, 200, (20000, 1))
  delta = lengths[0] - lengths[1]
  win = sigmoid(theta + 2 * np.tanh(delta / delta.std()))
  assert win.mean() - sigmoid(theta) > 0.1
  assert length_control.length_controlled(win, *lengths).mean == pytest.approx(sigmoid(theta), abs=1e-3)


def test_if_the_longer_response_always_wins_it_is_one_half():
  win = np.sign(A - B) / 2 + 0.5
  both = np.concatenate([win, 1 - win]), np.concatenate([A, B]), np.concatenate([B, A])
  assert length_control.length_controlled(*both).mean == pytest.approx(0.5, abs=1e-9)
  assert length_control.length_controlled(win, A, B).mean == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize('outcome', [0.0, 1.0])
def test_a_side_that_wins_every_comparison(outcome):
  estimate = length_control.length_controlled(np.full((40, 3), outcome), A, B)
  assert estimate.mean == pytest.approx(outcome, abs=1e-6)
  assert estimate.error == pytest.approx(0.0, abs=1e-6)


def test_the_error_covers_the_spread_of_repeated_experiments():
  estimates = []
  for _ in range(300):
    delta = GENERATOR.normal(30, 60, (60, 2))
    bias = GENERATOR.normal(0, 0.8, (60, 1))  # what the samples of a prompt share
    win = GENERATOR.uniform(size=(60, 2)) < sigmoid(0.4 + bias + np.tanh(delta / 60))
    estimates.append(length_control.length_controlled(win, delta, np.zeros((60, 2))))
  claimed = np.sqrt(np.mean([estimate.error**2 for estimate in estimates]))
  assert claimed == pytest.approx(np.std([estimate.mean for estimate in estimates]), rel=0.15)


def test_one_prompt_has_no_standard_error():
  assert np.isnan(length_control.length_controlled(WIN[:1], A[:1], B[:1]).error)


@pytest.mark.parametrize(
  ('win', 'length_a', 'message'),
  [(WIN * 3, A, r'must be in \[0, 1\]'), (WIN, A[:5], r'got \(40, 3\), \(5, 3\)'), (WIN[0], A, 'one shape')],
)
def test_wrong_arguments_are_refused(win, length_a, message):
  with pytest.raises(ValueError, match=message):
    length_control.length_controlled(win, length_a, B)
