"""The properties of DPO with other margins."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives
from tests import quick
from tests.objectives import pairs
from tests.objectives.pairs import at

SCORED = (objectives.odpo, objectives.mmpo)


@pytest.mark.parametrize(
  ('neutral', 'beta'),
  [
    (objectives.odpo(beta=0.3, alpha=0.0), 0.3),
    (objectives.dpop(beta=0.3, penalty=0.0), 0.3),
    (objectives.dpo_shift(beta=0.3, shift=1.0), 0.3),
    (objectives.h_dpo(beta=0.3, alpha=1.0), 0.3),
  ],
  ids=lambda x: getattr(x, 'name', None),
)
def test_without_its_change_each_is_dpo(neutral, beta):
  pairs.assert_same(neutral, objectives.dpo(beta), *pairs.random_pairs())


def with_scores(batch, gap):
  score = jnp.stack([gap, jnp.zeros_like(gap)], axis=1)
  return dataclasses.replace(batch, score=score, label=jnp.ones_like(batch.label))


@pytest.mark.parametrize('unit', [1.0, 4.0])
def test_odpo_whose_offset_vanishes_is_dpo(unit):
  """The offset alpha log(gap) is 0 for a gap of 1 at every alpha; other gaps shift the margin by a constant."""
  batch, *logps = pairs.random_pairs()
  batch = with_scores(batch, jnp.ones_like(batch.label))
  pairs.assert_same(objectives.odpo(0.3, unit), objectives.dpo(0.3), batch, *logps)
  shifted = at(objectives.odpo(0.5, unit), 2.0, -1.0, score=(3.0, 1.0))
  assert shifted[0] == pytest.approx(math.log1p(math.exp(-(1.5 - unit * math.log(2.0)))), rel=1e-5)


def test_odpo_asks_for_more_where_the_scores_are_further_apart():
  slopes = [at(objectives.odpo(0.5, 1.0), 1.0, 0.0, score=(gap, 0.0))[1][0] for gap in (0.1, 1.0, 3.0, 10.0)]
  assert slopes == sorted(slopes, reverse=True)


def test_odpo_of_a_tie_or_a_contradiction_asks_for_next_to_nothing_and_continuously_so():
  losses = [at(objectives.odpo(0.5, 1.0), 1.0, 0.0, score=(gap, 0.0))[0] for gap in (-5.0, 0.0, 1e-6, 1e-5)]
  assert losses[0] == losses[1] == pytest.approx(losses[2])
  assert 0 < losses[0] < losses[3] < 1e-4
  agreement = [
    float(
      pairs.evaluate(objectives.odpo(), with_scores(batch, jnp.full_like(batch.label, gap)), *logps).metrics[
        'score_agreement'
      ][0]
    )
    for batch, *logps in [pairs.random_pairs(prompts=1)]
    for gap in (-1.0, 0.0, 1.0)
  ]
  assert agreement == [0.0, 0.5, 1.0]


def test_mmpo_of_a_certain_score_is_dpo():
  batch, *logps = pairs.random_pairs()
  batch = with_scores(batch, jnp.ones_like(batch.label))
  pairs.assert_same(objectives.mmpo(0.3, gamma=100.0), objectives.dpo(0.3), batch, *logps)


def test_mmpo_has_its_optimum_where_the_implicit_reward_has_the_margin_of_the_scores():
  """beta h = gamma (score gap): the loss is a cross-entropy, least where the policy's preference is the target."""
  beta, gamma, gap = 0.5, 0.7, 3.0
  objective, optimum = objectives.mmpo(beta, gamma), gamma * gap / beta
  assert at(objective, optimum, 0.0, score=(gap, 0.0))[1][0] == pytest.approx(0.0, abs=1e-6)
  assert at(objective, optimum - 0.2, 0.0, score=(gap, 0.0))[1][0] < 0
  assert at(objective, optimum + 0.2, 0.0, score=(gap, 0.0))[1][0] > 0


def test_mmpo_does_not_see_the_order_of_the_responses_or_the_label():
  objective = objectives.mmpo(0.5, 0.7)
  loss, (chosen, rejected) = at(objective, 2.0, -1.0, score=(0.5, 1.5), label=1.0)
  again, (swapped_rejected, swapped_chosen) = at(objective, -1.0, 2.0, score=(1.5, 0.5), label=0.3)
  assert loss == pytest.approx(again)
  assert (chosen, rejected) == pytest.approx((swapped_chosen, swapped_rejected))


@pytest.mark.parametrize('build', SCORED)
def test_scores_are_required_and_carry_no_gradient(build):
  batch, logp, reference = pairs.random_pairs(prompts=4)
  with pytest.raises(ValueError, match=f'{build.__name__} reads batch.score'):
    pairs.evaluate(build(), dataclasses.replace(batch, score=None), logp, reference)

  def total(score):
    return jnp.sum(pairs.evaluate(build(), dataclasses.replace(batch, score=score), logp, reference).loss)

  assert not np.any(jax.grad(total)(batch.score))


def test_dpop_is_dpo_until_the_preferred_response_loses_likelihood_and_then_raises_it_whatever_the_margin():
  dpop, dpo = objectives.dpop(0.5, penalty=4.0), objectives.dpo(0.5)
  assert at(dpop, 0.5, -3.0) == at(dpo, 0.5, -3.0)
  loss, (chosen, rejected) = at(dpop, -1.0, -20.0)
  assert loss == pytest.approx(at(dpo, -5.0, -20.0)[0], rel=1e-5)
  assert chosen == pytest.approx(-5.0 * rejected, rel=1e-5)
  assert chosen < 0 < rejected


def test_dpo_shift_weighs_the_dispreferred_response_less():
  chosen, rejected = at(objectives.dpo_shift(0.5, shift=0.4), 1.0, 2.0)[1]
  assert rejected == pytest.approx(-0.4 * chosen, rel=1e-6)
  assert at(objectives.dpo_shift(0.5, shift=0.4), 1.0, 2.0)[0] == pytest.approx(at(objectives.dpo(0.5), 1.0, 0.8)[0])


def test_h_dpo_weighs_only_the_likelihood_of_the_policy():
  """Its margin is beta h less (1 - alpha) beta times the difference of the policy's log-probabilities."""
  beta, alpha, reference = 0.5, 0.8, (-3.0, -7.0)
  loss, (chosen, rejected) = at(objectives.h_dpo(beta, alpha), 1.0, 2.0, reference=reference)
  policy = (reference[0] + 1.0) - (reference[1] + 2.0)
  margin = beta * (1.0 - 2.0) - (1 - alpha) * beta * policy
  assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-5)
  assert chosen == pytest.approx(-alpha * beta / (1 + math.exp(margin)), rel=1e-5)
  assert rejected == pytest.approx(-chosen)


def test_bpo_moves_only_the_response_that_lags_behind():
  objective = objectives.bpo(0.5, factor=0.5)
  _, (chosen, rejected) = at(objective, 1.0, -4.0)  # 1.0 < 0.5 * 4.0
  assert chosen < 0
  assert rejected == 0.0
  _, (chosen, rejected) = at(objective, 3.0, -4.0)
  assert chosen == 0.0
  assert rejected > 0
  loss, (chosen, rejected) = at(objective, 0.0, 0.0)
  assert loss == pytest.approx(math.log(2.0))
  assert (chosen, rejected) == pytest.approx((-0.5 / 4, 0.5 * 0.5 / 4))


def test_bpo_of_factor_one_is_never_below_dpo_of_twice_the_margin():
  """min(a, b) <= (a + b) / 2, with equality where both responses gained the same."""
  for chosen, rejected in ((1.0, -1.0), (3.0, -1.0), (-2.0, 1.0)):
    balanced, dpo = at(objectives.bpo(0.5, 1.0), chosen, rejected)[0], at(objectives.dpo(0.25), chosen, rejected)[0]
    assert balanced >= dpo - 1e-6
    assert (balanced == pytest.approx(dpo)) == (chosen == -rejected)


def test_minor_dpo_leaves_a_dispreferred_response_alone_once_it_is_below_the_reference():
  objective = objectives.minor_dpo(0.5)
  assert at(objective, 1.0, 0.5) == at(objectives.dpo(0.5), 1.0, 0.5)
  loss, (chosen, rejected) = at(objective, 1.0, -0.5)
  assert (loss, chosen) == pytest.approx((at(objectives.dpo(0.5), 1.0, 0.0)[0], -0.5 / (1 + math.exp(0.5))))
  assert rejected == 0.0


@pytest.mark.parametrize(
  'objective',
  quick.first(
    2,  # oracle_test.py has soft labels
    [
      objectives.odpo(0.5),
      objectives.dpop(0.5, 2.0),
      objectives.dpo_shift(0.5, 0.6),
      objectives.h_dpo(0.5, 0.8),
      objectives.bpo(0.5, 0.5),
      objectives.minor_dpo(0.5),
    ],
  ),
  ids=lambda objective: objective.name,
)
def test_a_soft_label_is_the_expectation_over_the_order_of_the_responses(objective):
  """And the opposite label is the swapped pair."""
  score, reference = (0.7, 0.2), (-2.0, -5.0)
  sure, _ = at(objective, 1.5, -0.5, score, 1.0, reference)
  opposite, _ = at(objective, 1.5, -0.5, score, 0.0, reference)
  swapped, _ = at(objective, -0.5, 1.5, score[::-1], 1.0, reference[::-1])
  soft, _ = at(objective, 1.5, -0.5, score, 0.3, reference)
  assert opposite == pytest.approx(swapped, rel=1e-6)
  assert soft == pytest.approx(0.3 * sure + 0.7 * opposite, rel=1e-6)
  assert sure != pytest.approx(opposite)


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('odpo', {'beta': 0.0}, 'odpo: beta must be positive'),
    ('odpo', {'alpha': -1.0}, 'odpo: alpha must not be negative'),
    ('mmpo', {'beta': 0.0}, 'mmpo: beta must be positive'),
    ('mmpo', {'gamma': 0.0}, 'mmpo: gamma must be positive'),
    ('dpop', {'beta': math.nan}, 'dpop: beta must be positive'),
    ('dpop', {'penalty': -1.0}, 'dpop: penalty must not be negative'),
    ('dpo_shift', {'beta': 0.0}, 'dpo_shift: beta must be positive'),
    ('dpo_shift', {'shift': 0.0}, r'dpo_shift: shift must be in \(0, 1\], got 0.0'),
    ('dpo_shift', {'shift': 1.5}, r'dpo_shift: shift must be in \(0, 1\], got 1.5'),
    ('h_dpo', {'beta': 0.0}, 'h_dpo: beta must be positive'),
    ('h_dpo', {'alpha': 0.0}, 'h_dpo: alpha must be positive'),
    ('bpo', {'beta': 0.0}, 'bpo: beta must be positive'),
    ('bpo', {'factor': 0.0}, 'bpo: factor must be positive'),
    ('minor_dpo', {'beta': -0.1}, 'minor_dpo: beta must be positive'),
  ],
)
def test_impossible_hyper_parameters_are_named(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    objectives.OBJECTIVES[name](**arguments)
