"""The properties that the papers of losses on both rewards state."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from tests import fixtures, quick

EVERY = ('nca', 'bco_pair', 'sppo', 'apo_zero', 'apo_down', 'cal_dpo', 'c2_dpo')


def loss_of(objective, chosen, rejected, label=1.0):
  """The loss of one pair with log-ratios `chosen` and `rejected`, and its gradient in both."""
  batch = fixtures.preference_batch(prompts=1, response_size=1)
  batch = dataclasses.replace(batch, label=jnp.full(1, label), response_length=jnp.ones((1, 2), jnp.int32))

  def loss(log_ratio):
    values = {'logp': log_ratio - 3.0, 'reference_logp': jnp.full((1, 2, 1), -3.0)}
    return objective.apply(stats.StatTable.create(values, batch.response_length), batch).loss[0]

  value, gradient = jax.value_and_grad(loss)(jnp.asarray([[[chosen], [rejected]]], jnp.float32))
  return float(value), np.asarray(gradient[0, :, 0], np.float64)


def test_nca_has_its_optimum_at_log_two_over_beta_and_an_ever_less_likely_rejection():
  beta = 0.5
  optimum = math.log(2) / beta
  assert loss_of(objectives.nca(beta), optimum, -400.0)[1] == pytest.approx([0.0, 0.0], abs=1e-6)
  assert loss_of(objectives.nca(beta), optimum + 0.1, -400.0)[1][0] > 0
  assert loss_of(objectives.nca(beta), optimum - 0.1, -400.0)[1][0] < 0
  slopes = [loss_of(objectives.nca(beta), optimum, rejected)[1][1] for rejected in (3.0, 0.0, -3.0, -6.0)]
  assert all(slope > 0 for slope in slopes)  # y_l is pushed down from anywhere, less and less
  assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize('build', [objectives.sppo, lambda beta: objectives.cal_dpo(beta, weight=1e4)])
def test_sppo_and_strongly_weighted_cal_dpo_have_their_optimum_at_opposite_targets(build):
  beta, target = 0.25, 2.0
  centre = loss_of(build(beta), target, -target)[0]
  for away in (0.1, -0.1):
    assert loss_of(build(beta), target + away, -target)[0] > centre
    assert loss_of(build(beta), target, -target + away)[0] > centre
  assert loss_of(objectives.sppo(beta), target, -target)[1] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_sppo_with_a_soft_label_has_its_optimum_where_the_paper_regresses_the_win_rate():
  beta, label = 0.25, 0.8
  target = (label - 0.5) / beta
  assert loss_of(objectives.sppo(beta), target, -target, label)[1] == pytest.approx([0.0, 0.0], abs=1e-5)


@pytest.mark.slow  # oracle_test.py compares both with their equations
def test_bco_pair_is_an_upper_bound_of_dpo():
  rng = np.random.default_rng(0)
  for chosen, rejected in rng.normal(0, 8, (20, 2)):
    bound, _ = loss_of(objectives.bco_pair(0.3), chosen, rejected)
    assert bound > loss_of(objectives.dpo(0.3), chosen, rejected)[0]


def test_apo_zero_moves_the_responses_apart_and_apo_down_moves_both_down_at_the_reference():
  assert loss_of(objectives.apo_zero(0.4), 0.0, 0.0)[1] == pytest.approx([-0.1, 0.1])
  # y_w is at balance between its own penalty and the contrast; one step along the gradient it is pushed down
  assert loss_of(objectives.apo_down(0.4), 0.0, 0.0)[1] == pytest.approx([0.0, 0.1], abs=1e-7)
  assert loss_of(objectives.apo_down(0.4), 0.0, -0.5)[1][0] > 0


@pytest.mark.parametrize(
  ('name', 'least'), quick.first(1, [('apo_zero', (40.0, -40.0)), ('apo_down', (-40.0, -120.0))])
)
def test_anchored_losses_lie_between_zero_and_two(name, least):
  objective = objectives.OBJECTIVES[name](1.0)
  assert loss_of(objective, *least)[0] == pytest.approx(0.0, abs=1e-6)
  for pair in np.random.default_rng(1).normal(0, 20, (20, 2)):
    assert 0.0 <= loss_of(objective, *pair)[0] <= 2.0


def test_weight_zero_leaves_the_contrast_alone():
  chosen, rejected = 2.0, -0.7
  value, gradient = loss_of(objectives.c2_dpo(0.3, weight=0.0), chosen, rejected)
  known, slope = loss_of(objectives.dpo(0.3), chosen, rejected)
  assert value == pytest.approx(known, rel=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=1e-6)
  assert loss_of(objectives.cal_dpo(0.3, weight=0.0), chosen, rejected)[0] == pytest.approx(
    loss_of(objectives.dpo(1.0), chosen, rejected)[0], rel=1e-6
  )


def test_c2_dpo_penalises_only_mass_that_leaves_or_enters_both():
  plain, constrained = objectives.dpo(0.3), objectives.c2_dpo(0.3, weight=0.5)
  assert loss_of(constrained, 2.0, -2.0)[0] == pytest.approx(loss_of(plain, 2.0, -2.0)[0], rel=1e-6)
  for level in (-3.0, 3.0):
    extra = loss_of(constrained, 2.0 + level, -2.0 + level)[0] - loss_of(plain, 2.0 + level, -2.0 + level)[0]
    assert extra == pytest.approx(0.5 * (2 * level) ** 2, rel=1e-5)


@pytest.mark.parametrize('name', EVERY)
def test_the_level_of_the_rewards_matters_and_not_only_their_difference(name):
  objective = objectives.OBJECTIVES[name](0.3)
  here, there = (loss_of(objective, 1.0 + level, -2.0 + level)[0] for level in (0.0, 1.5))
  assert abs(here - there) > 1e-3


@pytest.mark.parametrize('name', quick.first(2, EVERY))  # oracle_test.py has soft labels
def test_a_label_is_an_expectation_over_swapped_responses(name):
  objective = objectives.OBJECTIVES[name](0.3)
  straight, swapped = loss_of(objective, 1.3, -0.4)[0], loss_of(objective, -0.4, 1.3)[0]
  assert loss_of(objective, 1.3, -0.4, label=0.0)[0] == pytest.approx(swapped, rel=1e-6)
  assert loss_of(objective, 1.3, -0.4, label=0.7)[0] == pytest.approx(0.7 * straight + 0.3 * swapped, rel=1e-6)
  assert straight != pytest.approx(swapped, rel=1e-2)


@pytest.mark.parametrize('name', EVERY)
@pytest.mark.parametrize('beta', [0.0, -1.0, float('nan')])
def test_impossible_beta_is_named(name, beta):
  with pytest.raises(ValueError, match=f'{name}: beta must be positive'):
    objectives.OBJECTIVES[name](beta)


@pytest.mark.parametrize('name', ['cal_dpo', 'c2_dpo'])
@pytest.mark.parametrize('weight', [-1.0, float('nan')])
def test_impossible_weight_is_named(name, weight):
  with pytest.raises(ValueError, match=f'{name}: weight must not be negative'):
    objectives.OBJECTIVES[name](weight=weight)


@pytest.mark.parametrize('name', EVERY)
def test_a_pair_is_required_and_the_objective_named(name):
  batch = fixtures.preference_batch(responses=3)
  values = {key: -jnp.ones(batch.response.shape) for key in ('logp', 'reference_logp')}
  with pytest.raises(ValueError, match=rf'{name} compares .* N = 3'):
    objectives.OBJECTIVES[name]().apply(stats.StatTable.create(values, batch.response_length), batch)
