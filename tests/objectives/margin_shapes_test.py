"""The properties of losses that are functions of one margin."""

import math

import pytest

from alignjax import objectives
from tests import quick
from tests.objectives import pairs
from tests.objectives.pairs import at, slope, value

MARGINS = (-7.0, -0.5, 0.0, 1.0, 6.0)


@pytest.mark.parametrize('margin', MARGINS)
@pytest.mark.parametrize('rate', quick.first(1, [0.3, 0.05]))
def test_robust_dpo_is_unbiased_under_label_flips(margin, rate):
  robust, dpo = objectives.robust_dpo(0.5, rate), objectives.dpo(0.5)
  mean = (1 - rate) * value(robust, margin) + rate * value(robust, -margin)
  assert mean == pytest.approx(value(dpo, margin), rel=1e-5, abs=1e-6)
  mean_slope = (1 - rate) * slope(robust, margin) - rate * slope(robust, -margin)
  assert mean_slope == pytest.approx(slope(dpo, margin), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize('margin', MARGINS)
def test_robust_dpo_is_dpo_minus_a_linear_term_and_so_has_no_lower_bound(margin):
  beta, rate = 0.5, 0.2
  expected = value(objectives.dpo(beta), margin) - rate * beta * margin / (1 - 2 * rate)
  assert value(objectives.robust_dpo(beta, rate), margin) == pytest.approx(expected, rel=1e-5)
  assert value(objectives.robust_dpo(beta, rate), 1e4) < -1e3


def test_robust_dpo_of_clean_labels_is_dpo():
  pairs.assert_same(objectives.robust_dpo(0.3, 0.0), objectives.dpo(0.3), *pairs.random_pairs())


@pytest.mark.parametrize('rate', [1e-3, 0.2, 0.4])
def test_exo_vanishes_exactly_at_the_logit_of_its_label(rate):
  objective = objectives.exo(beta=0.5, label_smoothing=rate)
  optimum = math.log((1 - rate) / rate) / 0.5
  assert value(objective, optimum) == pytest.approx(0.0, abs=1e-6)
  assert slope(objective, optimum) == pytest.approx(0.0, abs=1e-6)
  for elsewhere in (optimum - 1.0, optimum + 1.0, -optimum, 0.0):
    assert value(objective, elsewhere) > 1e-5


@pytest.mark.parametrize(('margin', 'log_target'), [(-1e4, -math.log(1e-3)), (1e4, -math.log1p(-1e-3))])
def test_exo_of_a_certain_policy_is_the_cross_entropy_of_its_label(margin, log_target):
  assert value(objectives.exo(beta=0.5), margin) == pytest.approx(log_target, rel=1e-5)


def test_discopop_is_logistic_for_wrongly_ranked_pairs_and_exponential_for_rightly_ranked_ones():
  objective = objectives.discopop(beta=0.5, temperature=0.05)
  assert value(objective, -4.0) == pytest.approx(value(objectives.dpo(0.5), -4.0), rel=1e-5)
  assert value(objective, 4.0) == pytest.approx(math.exp(-2.0), rel=1e-5)


def test_discopop_of_a_high_temperature_is_the_mean_of_both_losses():
  objective = objectives.discopop(beta=0.5, temperature=1e6)
  for margin in (-3.0, 2.0):
    mean = 0.5 * (value(objectives.dpo(0.5), margin) + math.exp(-0.5 * margin))
    assert value(objective, margin) == pytest.approx(mean, rel=1e-5)


def test_focal_po_without_modulation_is_dpo():
  pairs.assert_same(objectives.focal_po(0.3, 0.0), objectives.dpo(0.3), *pairs.random_pairs())


def test_focal_po_prefers_rightly_ranked_pairs_more_than_dpo_does():
  focal, dpo = objectives.focal_po(0.5, 1.0), objectives.dpo(0.5)
  share = [slope(focal, margin) / slope(dpo, margin) for margin in (-1.0, 0.0, 2.0, 8.0)]
  assert share == sorted(share)
  assert share[-1] == pytest.approx(1.0, abs=0.05)


def test_focal_po_turns_round_at_minus_one_over_gamma():
  beta, gamma = 0.5, 0.25
  turn = -math.log(math.exp(1 / gamma) - 1) / beta  # where log sigmoid(beta h) = -1 / gamma
  objective = objectives.focal_po(beta, gamma)
  assert slope(objective, turn) == pytest.approx(0.0, abs=1e-6)
  assert slope(objective, turn + 2.0) < 0 < slope(objective, turn - 2.0)


def test_spo_and_the_entropy_of_the_preference_make_up_dpo():
  for margin in MARGINS:
    p = 1 / (1 + math.exp(-0.5 * margin))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert value(objectives.spo(0.5), margin) + entropy == pytest.approx(value(objectives.dpo(0.5), margin), rel=1e-5)


def test_spo_has_its_minimum_at_a_finite_margin():
  objective = objectives.spo(0.5)
  assert slope(objective, 1.27 / 0.5) < 0 < slope(objective, 1.29 / 0.5)
  assert slope(objective, 0.0) < 0 < slope(objective, 10.0)


@pytest.mark.parametrize(
  ('build', 'shape'),
  [
    (objectives.exponential_po, lambda u: math.exp(-u)),
    (objectives.truncated_quadratic_po, lambda u: max(0.0, 1 - u) ** 2),
    (objectives.savage_po, lambda u: (1 + math.exp(u)) ** -2),
    (objectives.spo, lambda u: -u / (1 + math.exp(u))),
  ],
)
def test_beta_only_scales_the_margin(build, shape):
  for margin in MARGINS:
    assert value(build(beta=0.7), margin) == pytest.approx(shape(0.7 * margin), rel=1e-5, abs=1e-7)


def test_the_exponential_loss_is_constant_beyond_its_clip():
  objective = objectives.exponential_po(beta=1.0)
  assert value(objective, -31.0) == pytest.approx(math.exp(30.0), rel=1e-5)
  assert slope(objective, -31.0) == 0.0
  assert slope(objective, -29.0) == pytest.approx(-math.exp(29.0), rel=1e-5)


def test_the_squared_hinge_is_flat_beyond_its_margin_and_the_savage_loss_far_on_both_sides():
  assert at(objectives.truncated_quadratic_po(0.5), 2.5, 0.0) == (0.0, (0.0, 0.0))
  for margin in (-60.0, 60.0):
    assert slope(objectives.savage_po(0.5), margin) == pytest.approx(0.0, abs=1e-7)
  assert value(objectives.savage_po(0.5), -60.0) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
  ('objective', 'unit', 'first', 'second'),
  [
    (objectives.dpo(0.5), 0.5, -1 / 2, 1 / 4),
    (objectives.hinge(0.5), 0.5, -1, 0),
    (0.25 * objectives.ipo(tau=0.25), 0.5, -2, 2),  # 4 tau^2 (h - 1 / (2 tau))^2 = (u - 1)^2 for u = 2 tau h
    (objectives.robust_dpo(0.5, 0.2), 0.5, -1 / 2 - 0.2 / 0.6, 1 / 4),
    (objectives.exponential_po(0.5), 0.5, -1, 1),
    (objectives.truncated_quadratic_po(0.5), 0.5, -2, 2),
    (objectives.savage_po(0.5), 0.5, -1 / 4, 1 / 8),
    (objectives.spo(0.5), 0.5, -1 / 2, 1 / 2),
  ],
  ids=lambda x: getattr(x, 'name', None),
)
def test_taylor_coefficients_at_the_reference(objective, unit, first, second):
  """f'(0) and f''(0) of f(u), u = beta h, by central differences: f'' is what keeps the policy at the reference."""
  step = 0.05
  up, down = (slope(objective, sign * step / unit) / unit for sign in (1, -1))
  assert (value(objective, step / unit) - value(objective, -step / unit)) / (2 * step) == pytest.approx(first, rel=1e-3)
  assert (up - down) / (2 * step) == pytest.approx(second, rel=2e-3, abs=1e-4)


def test_ipo_has_its_optimum_where_the_label_says():
  """At h = (2 q - 1) / (2 tau) for a label q: a soft label asks for a smaller margin."""
  objective, tau = objectives.ipo(tau=0.25), 0.25
  for label in (1.0, 0.8, 0.5):
    optimum = (2 * label - 1) / (2 * tau)
    assert at(objective, optimum, 0.0, label=label)[1][0] == pytest.approx(0.0, abs=1e-6)
    assert (
      at(objective, optimum - 0.1, 0.0, label=label)[1][0] < 0 < at(objective, optimum + 0.1, 0.0, label=label)[1][0]
    )


def test_dpo_never_has_enough_where_the_hinge_has():
  """For a hard label DPO's optimal margin is infinite; the hinge asks for 1 / beta and no more."""
  for margin in (2.1, 10.0, 40.0):
    assert slope(objectives.dpo(0.5), margin) < 0
    assert slope(objectives.hinge(0.5), margin) == 0.0


def test_a_soft_label_bounds_the_margin_of_dpo():
  optimum = math.log(0.8 / 0.2) / 0.5
  assert at(objectives.dpo(0.5), optimum, 0.0, label=0.8)[1][0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('robust_dpo', {'beta': 0.0}, 'robust_dpo: beta must be positive'),
    ('robust_dpo', {'label_smoothing': 0.5}, r'robust_dpo: label_smoothing must be in \[0, 0.5\), got 0.5'),
    ('robust_dpo', {'label_smoothing': math.nan}, 'robust_dpo: label_smoothing'),
    ('exo', {'beta': -1.0}, 'exo: beta must be positive'),
    ('exo', {'label_smoothing': 0.0}, r'exo: label_smoothing must be in \(0, 0.5\), got 0.0'),
    ('discopop', {'beta': math.nan}, 'discopop: beta must be positive'),
    ('discopop', {'temperature': 0.0}, 'discopop: temperature must be positive'),
    ('focal_po', {'beta': 0.0}, 'focal_po: beta must be positive'),
    ('focal_po', {'gamma': -0.1}, 'focal_po: gamma must not be negative'),
    ('spo', {'beta': 0.0}, 'spo: beta must be positive'),
    ('exponential_po', {'beta': 0.0}, 'exponential_po: beta must be positive'),
    ('truncated_quadratic_po', {'beta': 0.0}, 'truncated_quadratic_po: beta must be positive'),
    ('savage_po', {'beta': 0.0}, 'savage_po: beta must be positive'),
  ],
)
def test_impossible_hyper_parameters_are_named(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    objectives.OBJECTIVES[name](**arguments)
