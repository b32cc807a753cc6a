"""Estimates and their standard errors, against sums written out and against resampling."""

import numpy as np
import pytest

from alignjax.evaluation import evaluator


def test_clustered_mean_against_sums_written_out():
  values = [[1.0, 3.0], [2.0, 6.0], [-1.0, 1.0]]
  means = [2.0, 4.0, 0.0]
  mean = sum(means) / 3
  variance = sum((value - mean) ** 2 for value in means) / 2
  estimate = evaluator.clustered_mean(np.array(values))
  assert estimate.mean == pytest.approx(mean, rel=1e-12)
  assert estimate.error == pytest.approx((variance / 3) ** 0.5, rel=1e-12)


def test_standard_error_covers_the_spread_of_repeated_experiments_when_samples_of_a_prompt_are_alike():
  generator = np.random.default_rng(0)
  estimates = []
  for _ in range(2000):
    prompts = generator.normal(size=(30, 1))
    estimates.append(evaluator.clustered_mean(prompts + 0.5 * generator.normal(size=(30, 4))))
  spread = np.std([estimate.mean for estimate in estimates])
  claimed = np.sqrt(np.mean([estimate.error**2 for estimate in estimates]))
  assert claimed == pytest.approx(spread, rel=0.06)


def test_a_single_prompt_has_no_standard_error():
  estimate = evaluator.clustered_mean(np.ones((1, 4)))
  assert estimate.mean == 1.0
  assert np.isnan(estimate.error)


@pytest.mark.parametrize('shape', [(3,), (0, 2), (2, 0), (2, 2, 2)])
def test_values_of_another_shape_are_refused(shape):
  with pytest.raises(ValueError, match='prompts, samples'):
    evaluator.clustered_mean(np.zeros(shape))


def test_gain_is_paired_so_that_hard_prompts_do_not_widen_it():
  difficulty = np.array([[-5.0], [0.0], [9.0]])
  policy, reference = difficulty + np.array([[1.0, 2.0]]), difficulty + np.array([[0.0, 0.5, 1.0]])
  estimate = evaluator.gain(policy, reference)
  assert estimate.mean == pytest.approx(1.0)
  assert estimate.error == pytest.approx(0.0, abs=1e-12)


def test_win_rate_against_counting():
  generator = np.random.default_rng(1)
  policy, reference = generator.integers(0, 4, (6, 3)), generator.integers(0, 4, (6, 5))
  by_prompt = []
  for row, other in zip(policy, reference, strict=True):
    outcomes = [1.0 if a > b else 0.5 if a == b else 0.0 for a in row for b in other]
    by_prompt.append(sum(outcomes) / len(outcomes))
  estimate = evaluator.win_rate(policy, reference)
  assert estimate.mean == pytest.approx(np.mean(by_prompt), rel=1e-12)
  assert estimate.error == pytest.approx(np.std(by_prompt, ddof=1) / np.sqrt(6), rel=1e-12)
  assert evaluator.win_rate(reference, policy).mean == pytest.approx(1 - estimate.mean, rel=1e-12)
  assert evaluator.win_rate(policy, policy).mean == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize('compare', [evaluator.gain, evaluator.win_rate])
def test_rewards_of_different_prompts_are_not_compared(compare):
  with pytest.raises(ValueError, match=r'\(3, 2\) for the policy and \(4, 2\) for the reference'):
    compare(np.zeros((3, 2)), np.zeros((4, 2)))


def test_kl_ignores_padding_whatever_it_holds():
  values = np.array([[[1.0, 2.0, np.nan]], [[0.5, np.inf, -7.0]]])
  mask = np.array([[[True, True, False]], [[True, False, False]]])
  assert evaluator.kl(values, mask).mean == pytest.approx((3.0 + 0.5) / 2)


def test_kl_refuses_a_mask_of_another_shape():
  with pytest.raises(ValueError, match='the same shape'):
    evaluator.kl(np.zeros((2, 1, 3)), np.ones((2, 3), bool))
