"""Losses and metrics follow the label: swapping the responses of a pair and its label changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.objectives import examples
from tests import fixtures
from tests.oracles import cases

DRAWN_BY_POSITION = ('sampo', 'beta_dpo')  # the draws of a pair depend on which response comes first
PAIRED = [
  case for case in cases.CASES if case.responses == 2 and not any(name in case.expression for name in DRAWN_BY_POSITION)
]


# The first of each module of objectives; oracle_test.py has soft labels in the loss of each objective.
FIRST = {cases.module_of(case): case for case in reversed(PAIRED)}.values()
EACH = [pytest.param(case, marks=() if case in FIRST else pytest.mark.slow) for case in PAIRED]


def evaluate(objective, batch, policy, reference):
  return objective.apply(examples.table(objective.needs, policy, reference, batch), batch)


@pytest.mark.parametrize('case', EACH, ids=lambda case: case.expression)
def test_swapping_responses_and_label_changes_neither_loss_nor_metrics(case):
  objective = objectives.parse(case.expression)
  batch = fixtures.preference_batch(seed=6)
  behaviour = fixtures.logits(3, batch)[..., 0]
  batch = dataclasses.replace(batch, cached={stats.BEHAVIOUR_TOKEN_LOGP: behaviour})
  # Rewards of both responses differ, so that a metric of the wrong response is seen.
  policy, reference = fixtures.logits(1, batch), fixtures.logits(2, batch)
  swapped = dataclasses.replace(
    batch,
    response=batch.response[:, ::-1],
    response_length=batch.response_length[:, ::-1],
    score=batch.score[:, ::-1],
    behaviour_logp=batch.behaviour_logp[:, ::-1],
    cached={stats.BEHAVIOUR_TOKEN_LOGP: behaviour[:, ::-1]},
    label=1.0 - batch.label,
  )
  one = evaluate(objective, batch, policy, reference)
  other = evaluate(objective, swapped, policy[:, ::-1], reference[:, ::-1])
  np.testing.assert_allclose(other.loss, one.loss, rtol=1e-4, atol=1e-5)
  for name, value in one.metrics.items():
    np.testing.assert_allclose(other.metrics[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_metrics_are_expectations_over_a_soft_label():
  batch = fixtures.preference_batch(seed=6)
  policy, reference = fixtures.logits(1, batch), fixtures.logits(2, batch)
  objective = objectives.dpo()
  hard = evaluate(objective, dataclasses.replace(batch, label=jnp.ones(6)), policy, reference).metrics
  soft = evaluate(objective, batch, policy, reference).metrics
  q = np.asarray(batch.label)
  chosen, rejected = np.asarray(hard['reward_chosen']), np.asarray(hard['reward_rejected'])
  np.testing.assert_allclose(soft['reward_chosen'], q * chosen + (1 - q) * rejected, rtol=1e-5)
  np.testing.assert_allclose(soft['reward_rejected'], (1 - q) * chosen + q * rejected, rtol=1e-5)
  np.testing.assert_allclose(soft['reward_margin'], (2 * q - 1) * (chosen - rejected), rtol=1e-5)
  np.testing.assert_allclose(soft['reward_accuracy'], np.where(chosen > rejected, q, 1 - q), rtol=1e-5)


@pytest.mark.parametrize(('label', 'weights'), [(1.0, (1, 0)), (0.0, (0, 1)), (0.25, (0.25, 0.75))])
def test_sft_imitates_the_labelled_response(label, weights):
  batch = dataclasses.replace(fixtures.preference_batch(), label=jnp.full(6, label))
  logits = fixtures.logits(1, batch)

  def total(logits):
    return jnp.sum(evaluate(objectives.sft(), batch, logits, None).loss)

  mean = np.asarray(stats.from_logits({stats.logp}, logits, None, batch).mean(stats.logp))
  np.testing.assert_allclose(total(logits), -(mean * weights).sum(), rtol=1e-5)
  gradient = np.abs(np.asarray(jax.grad(total)(logits))).sum(axis=(0, 2, 3))
  assert [bool(g) for g in gradient] == [bool(w) for w in weights]


def test_sft_of_single_responses_leaves_the_undesirable_ones_alone():
  batch = fixtures.preference_batch(responses=1)
  batch = dataclasses.replace(batch, label=jnp.asarray([1.0, 0.0, 1.0, 0.0, 0.5, 1.0]))
  logits = fixtures.logits(1, batch)
  loss = evaluate(objectives.sft(), batch, logits, None).loss
  mean = stats.from_logits({stats.logp}, logits, None, batch).mean(stats.logp)[:, 0]
  np.testing.assert_allclose(loss, -np.asarray(batch.label) * np.asarray(mean), rtol=1e-6)
