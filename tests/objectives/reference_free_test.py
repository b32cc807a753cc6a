"""The properties that the papers of objectives without a reference state."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from tests import fixtures, quick

EVERY = ('simpo', 'alpha_po', 'repo', 'simper', 'cpo', 'orpo', 'rrhf', 'slic_hf')
WEIGHTED = ('cpo', 'orpo', 'rrhf', 'slic_hf')


def loss_of(objective, chosen, rejected, label=1.0, length=1, reference=-3.0):
  """The loss of one pair of responses of `length` tokens with mean log-probabilities `chosen` and `rejected`, and its
  gradient in these means."""
  batch = fixtures.preference_batch(prompts=1, response_size=length)
  batch = dataclasses.replace(batch, label=jnp.full(1, label), response_length=jnp.full((1, 2), length, jnp.int32))

  def loss(mean):
    values = {'logp': jnp.broadcast_to(mean[None, :, None], batch.response.shape)}
    values['reference_logp'] = jnp.full(batch.response.shape, reference)
    return objective.apply(stats.StatTable.create(values, batch.response_length), batch).loss[0]

  value, gradient = jax.value_and_grad(loss)(jnp.asarray([chosen, rejected], jnp.float32))
  return float(value), np.asarray(gradient, np.float64)


@pytest.mark.parametrize('name', EVERY)
def test_the_reference_is_not_read(name):
  assert not any(stat.reference for stat in objectives.OBJECTIVES[name]().needs)


@pytest.mark.parametrize('pair', [(-0.5, -2.0), (-3.0, -0.7)])
def test_alpha_po_tends_to_simpo_as_alpha_tends_to_zero(pair):
  limit, slope = loss_of(objectives.simpo(beta=2.5, gamma=0.3), *pair)
  distance = []
  for alpha in (0.1, 0.01, 0.001, -0.001):
    value, gradient = loss_of(objectives.alpha_po(beta=2.5, gamma=0.3, alpha=alpha), *pair)
    distance.append(abs(value - limit))
  assert distance[0] > 5 * distance[1] > 25 * distance[2]
  assert max(distance[2:]) < 2e-2
  np.testing.assert_allclose(gradient, slope, rtol=2e-2)
  assert loss_of(objectives.alpha_po(beta=2.5, gamma=0.3, alpha=0), *pair)[0] == pytest.approx(limit, rel=1e-6)


@pytest.mark.parametrize('alpha', [-0.7, 0.25, 1.5])
def test_the_slope_of_the_alpha_po_reward_is_a_power_of_the_probability(alpha):
  chosen, rejected = -0.4, -2.3
  _, (up, down) = loss_of(objectives.alpha_po(beta=1.0, gamma=0.2, alpha=alpha), chosen, rejected)
  assert up < 0 < down
  assert -up / down == pytest.approx(math.exp(-alpha * (chosen - rejected)), rel=1e-5)


def test_alpha_po_is_finite_where_a_response_is_all_but_impossible():
  value, gradient = loss_of(objectives.alpha_po(alpha=1.0), -500.0, -1.0)
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient))
  assert gradient[0] == 0.0


@pytest.mark.parametrize('pair', [(-0.5, -2.0), (-1.0, -1.2), (-3.0, -0.7)])
def test_simpo_over_beta_tends_to_repo(pair):
  gamma, beta = 0.4, 2000.0
  value, gradient = loss_of(objectives.simpo(beta, beta * gamma), *pair)
  limit, slope = loss_of(objectives.repo(gamma), *pair)
  assert value / beta == pytest.approx(limit, abs=1e-4)
  np.testing.assert_allclose(gradient / beta, slope, atol=1e-4)


def test_repo_is_flat_beyond_its_margin_and_has_slope_one_before_it():
  assert loss_of(objectives.repo(0.5), -1.0, -1.6)[1] == pytest.approx([0.0, 0.0])
  assert loss_of(objectives.repo(0.5), -1.0, -1.4)[1] == pytest.approx([-1.0, 1.0])


def test_simper_is_the_difference_of_inverse_perplexities_and_forgets_improbable_responses():
  value, gradient = loss_of(objectives.simper(), math.log(0.5), math.log(0.125))
  assert value == pytest.approx(-0.375)
  assert gradient == pytest.approx([-0.5, 0.125])
  assert loss_of(objectives.simper(), -1.0, -40.0)[1][1] < 1e-15


@pytest.mark.parametrize('label', [1.0, 0.6])
def test_cpo_without_imitation_is_dpo_under_a_constant_reference(label):
  value, gradient = loss_of(objectives.cpo(0.3, weight=0.0), -0.5, -2.0, label, length=4)
  known, slope = loss_of(objectives.dpo(0.3), -0.5, -2.0, label, length=4, reference=-1.7)
  assert value == pytest.approx(known, rel=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def log_odds(mean):
  return mean - math.log(-math.expm1(mean))


@pytest.mark.parametrize('mean', [-1e-3, -1e-5, -1e-7, -1e-10])
@pytest.mark.parametrize('certain', [0, 1])
def test_orpo_is_accurate_as_a_response_becomes_certain(mean, certain):
  means = [-0.8, -0.8]
  means[certain] = mean
  margin = log_odds(means[0]) - log_odds(means[1])
  value, gradient = loss_of(objectives.orpo(0.5), *means)
  assert value == pytest.approx(-means[0] + 0.5 * math.log1p(math.exp(-margin)), rel=1e-5)
  pull = 0.5 / (1 + math.exp(margin))
  expected = [-1 - pull / -math.expm1(means[0]), pull / -math.expm1(means[1])]
  np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize('pair', [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e6, -1.0), (-1.0, -1e6)])
def test_orpo_is_finite_at_certainty_and_at_impossibility(pair):
  value, gradient = loss_of(objectives.orpo(), *pair)
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient))


def test_orpo_at_equal_means_is_fine_tuning_plus_weight_times_log_two():
  assert loss_of(objectives.orpo(0.7), -1.3, -1.3)[0] == pytest.approx(1.3 + 0.7 * math.log(2), rel=1e-6)


def test_orpo_contrasts_probabilities_by_their_odds():
  with_contrast, without = (loss_of(objectives.orpo(w), math.log(0.75), math.log(0.5))[0] for w in (1.0, 0.0))
  assert with_contrast - without == pytest.approx(math.log(4 / 3), rel=1e-5)  # odds 3 : 1, a win rate of 3/4


def test_rrhf_only_imitates_once_responses_are_ranked():
  assert loss_of(objectives.rrhf(0.3), -0.5, -0.6, length=5)[0] == pytest.approx(0.3 * 2.5, rel=1e-6)
  assert loss_of(objectives.rrhf(0.3), -0.6, -0.5, length=5)[0] == pytest.approx(0.1 + 0.3 * 3.0, rel=1e-5)


def test_slic_hf_only_imitates_beyond_its_margin():
  assert loss_of(objectives.slic_hf(2.0, 0.3), -0.5, -1.0, length=5)[0] == pytest.approx(0.3 * 2.5, rel=1e-6)
  assert loss_of(objectives.slic_hf(3.0, 0.3), -0.5, -1.0, length=5)[0] == pytest.approx(0.5 + 0.3 * 2.5, rel=1e-6)


@pytest.mark.parametrize('name', ['simpo', 'alpha_po', 'repo', 'simper'])
def test_length_normalised_losses_do_not_change_when_every_token_is_written_twice(name):
  objective = objectives.OBJECTIVES[name]()
  once, twice = (loss_of(objective, -0.6, -0.5, length=length)[0] for length in (3, 6))
  assert twice == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize('name', quick.first(2, EVERY))  # oracle_test.py has soft labels
def test_a_label_is_an_expectation_over_swapped_responses(name):
  objective = objectives.OBJECTIVES[name]()
  straight, swapped = loss_of(objective, -0.3, -1.4)[0], loss_of(objective, -1.4, -0.3)[0]
  assert straight < swapped
  assert loss_of(objective, -0.3, -1.4, label=0.0)[0] == pytest.approx(swapped, rel=1e-6)
  assert loss_of(objective, -0.3, -1.4, label=0.7)[0] == pytest.approx(0.7 * straight + 0.3 * swapped, rel=1e-5)


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('simpo', {'beta': 0.0}, 'simpo: beta must be positive'),
    ('alpha_po', {'beta': float('nan')}, 'alpha_po: beta must be positive'),
    ('alpha_po', {'gamma': -0.1}, 'alpha_po: gamma must not be negative'),
    ('alpha_po', {'alpha': float('nan')}, 'alpha_po: alpha must be finite'),
    ('alpha_po', {'alpha': float('-inf')}, 'alpha_po: alpha must be finite'),
    ('repo', {'gamma': -0.1}, 'repo: gamma must not be negative'),
    ('cpo', {'beta': -1.0}, 'cpo: beta must be positive'),
    ('slic_hf', {'margin': -1.0}, 'slic_hf: margin must not be negative'),
    *((name, {'weight': bad}, f'{name}: weight must not be') for name in WEIGHTED for bad in (-1.0, float('nan'))),
  ],
)
def test_impossible_hyper_parameters_are_named(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    objectives.OBJECTIVES[name](**arguments)


@pytest.mark.parametrize('name', EVERY)
def test_a_pair_is_required_and_the_objective_named(name):
  batch = fixtures.preference_batch(responses=3)
  table = stats.StatTable.create({'logp': -jnp.ones(batch.response.shape)}, batch.response_length)
  with pytest.raises(ValueError, match=rf'{name} compares .* N = 3'):
    objectives.OBJECTIVES[name]().apply(table, batch)
