"""The properties that the papers of pairwise objectives state, and the algebra of objectives."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from tests import fixtures


def token_logps(seed, batch):
  rng = np.random.default_rng(seed)
  return (-rng.exponential(2.0, batch.response.shape).astype(np.float32) for _ in range(2))


def loss_of(objective, batch, logp, reference):
  table = stats.StatTable.create({'logp': logp, 'reference_logp': reference}, batch.response_length)
  return objective.apply(table, batch).loss


def pair(margin):
  """A batch of one pair whose log-ratio margin is `margin`, with a hard label."""
  batch = fixtures.preference_batch(prompts=1, response_size=1)
  batch = dataclasses.replace(batch, label=jnp.ones(1), response_length=jnp.ones((1, 2), jnp.int32))
  return batch, jnp.asarray([[[margin], [0.0]]]), jnp.zeros((1, 2, 1))


def value_and_slope(objective, margin):
  batch, logp, reference = pair(margin)
  value, gradient = jax.value_and_grad(lambda x: loss_of(objective, batch, x, reference)[0])(logp)
  return float(value), float(gradient[0, 0, 0])


def test_dpo_gradient_at_the_reference_is_half_beta():
  value, slope = value_and_slope(objectives.dpo(beta=0.3), 0.0)
  assert value == pytest.approx(math.log(2.0), rel=1e-6)
  assert slope == pytest.approx(-0.15, rel=1e-6)


@pytest.mark.parametrize('smoothing', [0.1, 0.3])
def test_conservative_dpo_is_dpo_plus_a_linear_term_and_has_its_minimum_at_the_logit(smoothing):
  beta, margin = 0.5, 3.0
  plain, _ = value_and_slope(objectives.dpo(beta), margin)
  smooth, _ = value_and_slope(objectives.dpo(beta, smoothing), margin)
  assert smooth == pytest.approx(plain + smoothing * beta * margin, rel=1e-5)
  optimum = math.log((1 - smoothing) / smoothing) / beta
  assert value_and_slope(objectives.dpo(beta, smoothing), optimum)[1] == pytest.approx(0.0, abs=1e-6)


def test_ipo_has_its_minimum_at_half_the_inverse_of_tau():
  value, slope = value_and_slope(objectives.ipo(tau=0.25), 2.0)
  assert (value, slope) == (0.0, 0.0)


def test_hinge_is_flat_beyond_its_margin():
  assert value_and_slope(objectives.hinge(beta=0.5), 2.5) == (0.0, 0.0)
  assert value_and_slope(objectives.hinge(beta=0.5), 1.0)[1] == pytest.approx(-0.5)


def test_simpo_and_sft_do_not_see_the_reference():
  for objective in (objectives.simpo(), objectives.sft()):
    assert not any(stat.reference for stat in objective.needs)


@pytest.mark.parametrize(
  ('build', 'arguments', 'message'),
  [
    (objectives.dpo, {'beta': 0.0}, 'dpo: beta must be positive, got 0.0'),
    (objectives.dpo, {'beta': -0.1}, 'dpo: beta must be positive'),
    (objectives.dpo, {'beta': float('nan')}, 'dpo: beta must be positive'),
    (objectives.dpo, {'label_smoothing': 0.6}, r'dpo: label_smoothing must be in \[0, 0.5\), got 0.6'),
    (objectives.ipo, {'tau': 0}, 'ipo: tau must be positive'),
    (objectives.hinge, {'beta': -1}, 'hinge: beta must be positive'),
    (objectives.simpo, {'gamma': -1.0}, 'simpo: gamma must not be negative'),
  ],
)
def test_impossible_hyper_parameters_are_named(build, arguments, message):
  with pytest.raises(ValueError, match=message):
    build(**arguments)


@pytest.mark.parametrize('build', [objectives.dpo, objectives.ipo, objectives.hinge, objectives.simpo])
@pytest.mark.parametrize('responses', [1, 3])
def test_a_pair_is_required_and_the_objective_named(build, responses):
  batch = fixtures.preference_batch(responses=responses)
  logp, reference = token_logps(0, batch)
  with pytest.raises(ValueError, match=rf'{build.__name__} compares .* N = {responses}'):
    jax.jit(lambda: loss_of(build(), batch, logp, reference))()


def test_an_objective_cannot_be_scaled_by_infinity_or_added_to_a_number():
  with pytest.raises(ValueError, match='finite'):
    float('inf') * objectives.sft()
  with pytest.raises(TypeError):
    objectives.sft() + 1.0
  with pytest.raises(TypeError):
    True * objectives.sft()


def test_a_sum_reports_the_loss_of_each_part_and_keeps_colliding_metrics_apart():
  batch = fixtures.preference_batch()
  logp, reference = token_logps(0, batch)
  objective = objectives.dpo() + 0.5 * objectives.simpo() + 2 * objectives.sft()
  table = stats.StatTable.create({'logp': logp, 'reference_logp': reference}, batch.response_length)
  loss, metrics = objective.apply(table, batch)
  assert {'dpo/loss', 'simpo/loss', 'sft/loss', 'reward_margin', 'simpo/reward_margin', 'nll'} <= set(metrics)
  np.testing.assert_allclose(metrics['dpo/loss'] + metrics['simpo/loss'] + metrics['sft/loss'], loss, rtol=1e-6)
