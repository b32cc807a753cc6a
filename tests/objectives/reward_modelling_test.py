"""Reward models: which rewards the objectives find, which of them are the same, and what the metrics mean."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.objectives import examples
from alignjax.testing import checks
from tests.oracles.data import sigmoid

BATCH = examples.batch(0)
RNG = np.random.default_rng(0)
REWARD = RNG.normal(size=(6, 2)).astype(np.float32)


def term(objective, reward, batch=BATCH):
  return objective.apply(stats.StatTable.create({'reward': jnp.asarray(reward)}, batch.response_length), batch)


def ranked(responses):
  return examples.batch(1, responses=responses), RNG.normal(size=(6, responses)).astype(np.float32)


def test_for_two_responses_the_losses_of_rankings_are_those_of_pairs():
  expected = term(objectives.bradley_terry(), REWARD)
  for objective in (objectives.plackett_luce(), objectives.all_pairs()):
    np.testing.assert_allclose(term(objective, REWARD).loss, expected.loss, rtol=1e-6)
    assert term(objective, REWARD).metrics.keys() == expected.metrics.keys()


@pytest.mark.parametrize('responses', [2, 4])
def test_losses_of_equal_rewards_are_the_documented_ones(responses):
  batch, _ = ranked(responses)
  equal = np.full((6, responses), 1.7)
  np.testing.assert_allclose(
    term(objectives.plackett_luce(), equal, batch).loss, math.log(math.factorial(responses)), rtol=1e-6
  )
  np.testing.assert_allclose(term(objectives.all_pairs(), equal, batch).loss, math.log(2), rtol=1e-6)
  if responses == 2:
    np.testing.assert_allclose(
      term(objectives.bradley_terry(centre=0.1), 0 * equal, batch).loss, math.log(2), rtol=1e-6
    )


@pytest.mark.parametrize('name', ['bradley_terry()', 'bradley_terry(margin=True)', 'plackett_luce()', 'all_pairs()'])
def test_a_constant_of_the_prompt_changes_nothing_but_the_centre(name):
  objective, shift = objectives.parse(name), RNG.normal(size=(6, 1)).astype(np.float32)
  np.testing.assert_allclose(term(objective, REWARD + shift).loss, term(objective, REWARD).loss, rtol=1e-5)
  centred = objectives.bradley_terry(centre=0.5)
  assert np.abs(term(centred, REWARD + 1).loss - term(centred, REWARD).loss).max() > 0.1


@pytest.mark.parametrize('name', ['bradley_terry(margin=True, centre=0.1)', 'plackett_luce()', 'all_pairs()'])
def test_swapping_the_responses_and_the_label_changes_nothing(name):
  swapped = dataclasses.replace(
    BATCH,
    label=1.0 - BATCH.label,
    score=BATCH.score[:, ::-1],
    response_length=BATCH.response_length[:, ::-1],
  )
  one, other = term(objectives.parse(name), REWARD), term(objectives.parse(name), REWARD[:, ::-1], swapped)
  np.testing.assert_allclose(other.loss, one.loss, rtol=1e-5)
  for metric in one.metrics:
    np.testing.assert_allclose(other.metrics[metric], one.metrics[metric], rtol=1e-5, atol=1e-6, err_msg=metric)


def test_with_a_soft_label_the_optimum_is_its_log_odds_and_the_centre_does_not_move_it():
  """Every pair has rewards of its own, so the problem is realisable."""
  q = jnp.asarray([0.5, 0.6, 0.75, 0.9, 0.3, 0.2])
  batch, start = dataclasses.replace(BATCH, label=q), jnp.asarray(REWARD)

  def optimum(objective):
    def total(reward):
      return jnp.sum(term(objective, reward.reshape(6, 2), batch).loss)

    def newton(_, reward):  # a ridge for the direction that the loss leaves free
      step = jnp.linalg.solve(jax.hessian(total)(reward) + 1e-6 * jnp.eye(12), jax.grad(total)(reward))
      return reward - jnp.clip(step, -1.0, 1.0)

    return jax.jit(lambda reward: jax.lax.fori_loop(0, 40, newton, reward))(start.ravel()).reshape(6, 2)

  log_odds = np.log(np.asarray(q) / (1 - np.asarray(q)))
  free, centred = optimum(objectives.bradley_terry()), optimum(objectives.bradley_terry(centre=0.01))
  for found in (free, centred):
    np.testing.assert_allclose(found[:, 0] - found[:, 1], log_odds, atol=1e-3)
  np.testing.assert_allclose(jnp.sum(centred, axis=1), 0.0, atol=1e-3)
  assert np.abs(jnp.sum(free, axis=1)).max() > 0.5
  term_at = term(objectives.bradley_terry(), centred, batch)
  np.testing.assert_allclose(term_at.metrics['reward_confidence'], np.maximum(q, 1 - q), atol=1e-3)


def test_the_margin_asks_for_a_distance_of_the_scores():
  reward = jnp.asarray(BATCH.score)
  loss = term(objectives.bradley_terry(margin=True), reward).loss
  np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)


def test_regression_is_zero_at_the_scores():
  assert not np.any(term(objectives.reward_regression(), BATCH.score).loss)
  one = examples.batch(2, responses=1)
  assert 'reward_accuracy' not in term(objectives.reward_regression(), one.score, one).metrics


@pytest.mark.parametrize('responses', [2, 4])
def test_metrics_of_rankings(responses):
  batch, reward = ranked(responses)
  batch = dataclasses.replace(batch, label=jnp.ones(6))
  metrics = term(objectives.all_pairs(), reward, batch).metrics
  pairs = [(i, j) for i in range(responses) for j in range(i + 1, responses)]
  right = np.mean([reward[:, i] > reward[:, j] for i, j in pairs], axis=0)
  np.testing.assert_allclose(metrics['reward_accuracy'], right, rtol=1e-6)
  np.testing.assert_allclose(metrics['reward_margin'], reward[:, 0] - reward[:, -1], rtol=1e-6)
  p = sigmoid(reward[:, 0] - reward[:, 1])
  np.testing.assert_allclose(metrics['reward_confidence'], np.maximum(p, 1 - p), rtol=1e-5)


def test_the_summary_is_that_of_all_responses():
  objective = objectives.bradley_terry()
  metrics = term(objective, REWARD).metrics
  summary = objective.summary({name: jnp.mean(value) for name, value in metrics.items()})
  length = np.asarray(BATCH.response_length, np.float64)
  assert float(jnp.mean(metrics['reward_mean'])) == pytest.approx(REWARD.mean(), abs=1e-6)
  assert float(summary['reward_std']) == pytest.approx(REWARD.std(), rel=1e-5)
  expected = np.corrcoef(REWARD.ravel(), length.ravel())[0, 1]
  assert float(summary['reward_length_correlation']) == pytest.approx(expected, abs=1e-5)
  lengths = term(objective, 3.0 * length - 1.0).metrics
  summary = objective.summary({name: jnp.mean(value) for name, value in lengths.items()})
  assert float(summary['reward_length_correlation']) == pytest.approx(1.0, abs=1e-4)
  constant = term(objective, np.ones((6, 2))).metrics
  summary = objective.summary({name: jnp.mean(value) for name, value in constant.items()})
  assert (float(summary['reward_std']), float(summary['reward_length_correlation'])) == (0.0, 0.0)


def test_neither_reference_nor_logits_are_needed():
  for name in ('bradley_terry()', 'plackett_luce()', 'all_pairs()', 'reward_regression()'):
    assert objectives.parse(name).needs == {stats.reward}


def test_declared_numbers_of_responses_and_hyper_parameters_are_checked():
  checks.check_responses(checks.Setting.of(objectives.plackett_luce()))
  with pytest.raises(ValueError, match='bradley_terry: centre must not be negative, got -1'):
    objectives.bradley_terry(centre=-1.0)
  batch = examples.batch(2, responses=1)
  with pytest.raises(ValueError, match='all_pairs ranks responses: it needs N >= 2 responses to a prompt, got N = 1'):
    term(objectives.all_pairs(), np.zeros((6, 1)), batch)
