"""The properties of DPO under other divergences."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives
from tests.objectives import pairs
from tests.objectives.pairs import at

FAMILY = (
  objectives.forward_kl_dpo(0.3),
  objectives.jensen_shannon_dpo(0.3),
  objectives.alpha_divergence_dpo(0.3, 0.4),
  objectives.chi_po(0.3),
)
EVERY = pytest.mark.parametrize('objective', FAMILY, ids=lambda objective: objective.label)


@pytest.mark.slow  # oracle_test.py compares all of them with their equations
def test_the_alpha_divergence_goes_from_dpo_to_the_forward_kl():
  """DPO has the reverse KL: f'(u) = log(u), to which (1 - u^-alpha) / alpha tends as alpha goes to 0."""
  batch, logp, reference = pairs.random_pairs()
  nearly_reverse = objectives.alpha_divergence_dpo(0.3, alpha=1e-8)
  pairs.assert_same(nearly_reverse, objectives.dpo(0.3), batch, logp, reference)
  forward = objectives.alpha_divergence_dpo(0.3, alpha=1.0)
  pairs.assert_same(forward, objectives.forward_kl_dpo(0.3), batch, logp, reference)


@EVERY
def test_the_gradient_at_the_reference_is_minus_half_beta_times_the_curvature_of_the_divergence(objective):
  """With f''(1) = 1 that is DPO's; the Jensen-Shannon divergence has 1/2 and that of chi-PO has 2."""
  curvature = {'jensen_shannon_dpo': 0.5, 'chi_po': 2.0}.get(objective.label, 1.0)
  loss, (chosen, rejected) = at(objective, 0.0, 0.0)
  assert loss == pytest.approx(math.log(2.0), rel=1e-6)
  assert chosen == pytest.approx(-0.3 / 2 * curvature, rel=1e-6)
  assert rejected == pytest.approx(-chosen)


def test_chi_po_has_twice_the_gradient_of_dpo_at_the_reference():
  chi, dpo = at(objectives.chi_po(0.3), 0.0, 0.0)[1], at(objectives.dpo(0.3), 0.0, 0.0)[1]
  assert chi == pytest.approx((2 * dpo[0], 2 * dpo[1]), rel=1e-6)


@EVERY
def test_rewards_grow_with_the_log_ratio(objective):
  """Each f' increases, so raising the preferred response always lowers the loss and never raises it."""
  for chosen in (-3.0, 0.0, 0.7):
    for rejected in (-2.0, 0.5):
      _, (first, second) = at(objective, chosen, rejected)
      assert first < 0 < second


def test_where_each_divergence_resists():
  """Seen in the reward for a log-ratio: the forward KL below, chi-squared above, Jensen-Shannon saturates above."""

  def reward(objective, log_ratio):
    batch, logp = single(pairs.random_pairs(prompts=1)[0], log_ratio)
    return float(pairs.evaluate(objective, batch, logp, 0.0 * logp).metrics['reward_chosen'][0])

  forward, shannon, _, chi = FAMILY
  assert reward(forward, -5.0) == pytest.approx(0.3 * (1 - math.exp(5.0)), rel=1e-5)
  assert reward(forward, 50.0) == pytest.approx(0.3, rel=1e-5)
  assert reward(shannon, 50.0) == pytest.approx(0.3 * math.log(2.0), rel=1e-5)
  assert reward(shannon, -50.0) == pytest.approx(0.3 * (math.log(2.0) - 50.0), rel=1e-5)
  assert reward(chi, 5.0) == pytest.approx(0.3 * (math.exp(5.0) + 5.0 - 1.0), rel=1e-5)
  assert reward(chi, -50.0) == pytest.approx(0.3 * (-50.0 - 1.0), rel=1e-5)


def single(batch, log_ratio):
  """One pair of single tokens, the preferred one with this log-ratio."""
  logp = jnp.zeros(batch.response.shape).at[:, 0, 0].set(log_ratio)
  lengths, labels = jnp.ones_like(batch.response_length), jnp.ones_like(batch.label)
  return dataclasses.replace(batch, response_length=lengths, label=labels), logp


def test_chi_po_is_indifferent_beyond_twice_the_largest_reward():
  objective = objectives.chi_po(beta=1.0, r_max=0.5)
  for chosen, end in ((3.0, 1.0), (-3.0, -1.0)):
    loss, slopes = at(objective, chosen, 0.0)
    assert loss == pytest.approx(math.log1p(math.exp(-end)), rel=1e-5)
    assert slopes == (0.0, 0.0)
  assert at(objective, 0.2, 0.0)[1][0] < 0


def test_chi_po_clips_the_ratio_but_not_its_logarithm():
  """Past the clip of the exponent the reward has DPO's slope."""
  wide = objectives.chi_po(beta=1e-9, r_max=1e9)
  beyond = np.asarray([at(wide, chosen, 0.0)[1][0] for chosen in (25.0, 30.0)])
  probability = 1 / (1 + math.exp(1e-9 * (math.exp(20.0) + 25.0)))
  np.testing.assert_allclose(beyond, -1e-9 * probability, rtol=1e-4)


@pytest.mark.parametrize('objective', [objectives.forward_kl_dpo(0.1), objectives.alpha_divergence_dpo(0.1, 0.5)])
def test_a_response_that_the_policy_has_all_but_lost_has_a_constant_reward(objective):
  far = at(objective, -100.0, -100.0)
  assert far[0] == pytest.approx(math.log(2.0), rel=1e-6)
  assert far[1] == (0.0, 0.0)
  assert at(objective, -25.0, -25.0)[1][0] < 0


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('forward_kl_dpo', {'beta': 0.0}, 'forward_kl_dpo: beta must be positive'),
    ('jensen_shannon_dpo', {'beta': math.nan}, 'jensen_shannon_dpo: beta must be positive'),
    ('alpha_divergence_dpo', {'beta': 0.0}, 'alpha_divergence_dpo: beta must be positive'),
    ('alpha_divergence_dpo', {'alpha': 0.0}, r'alpha_divergence_dpo: alpha must be in \(0, 1\], got 0.0'),
    ('alpha_divergence_dpo', {'alpha': 1.1}, 'alpha_divergence_dpo: alpha must be in'),
    ('chi_po', {'beta': -1.0}, 'chi_po: beta must be positive'),
    ('chi_po', {'r_max': 0.0}, 'chi_po: r_max must be positive and finite'),
    ('chi_po', {'r_max': math.inf}, 'chi_po: r_max must be positive and finite'),
  ],
)
def test_impossible_hyper_parameters_are_named(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    objectives.OBJECTIVES[name](**arguments)
