"""The properties of objectives for single labelled responses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.training import forward
from tests import fixtures

BETA = 0.5


def batch_of(log_ratio, label=None, weight=None, memory=None):
  """A table and a batch with these log-ratios [B, N]; hard labels and unit weights unless given."""
  log_ratio = jnp.asarray(log_ratio, jnp.float32)
  prompts, responses = log_ratio.shape
  batch = fixtures.preference_batch(prompts=prompts, responses=responses, response_size=1)
  batch = dataclasses.replace(
    batch,
    label=jnp.ones(prompts) if label is None else jnp.asarray(label, jnp.float32),
    weight=jnp.ones(prompts) if weight is None else jnp.asarray(weight, jnp.float32),
    response_length=jnp.ones((prompts, responses), jnp.int32),
  )
  values = {'logp': log_ratio[..., None] - 4.0, 'reference_logp': jnp.full((prompts, responses, 1), -4.0)}
  return stats.StatTable(values, batch.response_length, memory or {}), batch


def loss_of(objective, *args, **kwargs):
  return np.asarray(jax.jit(objective.apply)(*batch_of(*args, **kwargs)).loss, np.float64)


def gradient_of(objective, log_ratio, label=None):
  """Of the summed loss in each log-ratio."""

  @jax.jit
  @jax.grad
  def gradient(log_ratio):
    return jnp.sum(objective.apply(*batch_of(log_ratio, label)).loss)

  return np.asarray(gradient(jnp.asarray(log_ratio)))


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


SINGLES = np.array([[3.0], [-1.0], [2.0], [0.5]])
LABELS = np.array([1.0, 0.0, 0.3, 1.0])


@pytest.mark.parametrize('objective', [objectives.kto(BETA), objectives.bco(BETA)], ids=lambda o: o.label)
def test_a_pair_is_a_desirable_and_an_undesirable_response(objective):
  pairs = np.array([[3.0, -1.0], [0.5, 2.0]])
  label = np.array([1.0, 0.3])
  singles = loss_of(objective, pairs.reshape(4, 1), np.stack([label, 1 - label], 1).reshape(4))
  np.testing.assert_allclose(loss_of(objective, pairs, label), singles.reshape(2, 2).mean(1), rtol=1e-5)


def test_the_reference_point_of_kto_is_the_mean_reward_where_that_is_positive():
  z = BETA * SINGLES.mean()
  reward = BETA * SINGLES[:, 0]
  expected = LABELS * (1 - sigmoid(reward - z)) + (1 - LABELS) * (1 - sigmoid(z - reward))
  np.testing.assert_allclose(loss_of(objectives.kto(BETA), SINGLES, LABELS), expected, rtol=1e-5)
  lower = SINGLES - 2.0  # the mean is negative now, the reference point 0
  expected = LABELS * (1 - sigmoid(reward - 2.0 * BETA)) + (1 - LABELS) * sigmoid(reward - 2.0 * BETA)
  np.testing.assert_allclose(loss_of(objectives.kto(BETA), lower, LABELS), expected, rtol=1e-5)


def test_a_common_shift_of_rewards_leaves_kto_alone_while_the_reference_point_is_positive_and_bco_always():
  kto, bco = objectives.kto(BETA), objectives.bco(BETA)
  for shift in (5.0, 40.0):
    np.testing.assert_allclose(loss_of(kto, SINGLES + shift, LABELS), loss_of(kto, SINGLES, LABELS), rtol=1e-4)
  for shift in (-40.0, -1.0, 5.0, 40.0):
    np.testing.assert_allclose(loss_of(bco, SINGLES + shift, LABELS), loss_of(bco, SINGLES, LABELS), rtol=1e-4)
  assert np.all(np.abs(loss_of(kto, SINGLES - 5.0, LABELS) - loss_of(kto, SINGLES, LABELS)) > 1e-2)
  # Without its shift the classifier is not invariant: the pair loss is not
  pair = np.array([[1.0, -2.0]])
  assert abs(loss_of(objectives.bco_pair(BETA), pair + 5.0) - loss_of(objectives.bco_pair(BETA), pair)) > 0.1


def test_bco_subtracts_the_midpoint_of_both_kinds_however_many_there_are_of_each():
  rewards = np.array([[8.0], [8.0], [8.0], [-2.0]])
  label = np.array([1.0, 1.0, 1.0, 0.0])
  middle = BETA * (8.0 - 2.0) / 2
  expected = -np.log(sigmoid(np.where(label == 1, 1, -1) * (BETA * rewards[:, 0] - middle)))
  np.testing.assert_allclose(loss_of(objectives.bco(BETA), rewards, label), expected, rtol=1e-5)


@pytest.mark.parametrize('label', [0.0, 1.0])
def test_bco_without_responses_of_one_kind_subtracts_the_mean_of_the_other(label):
  reward = np.array([[3.0], [1.0]])
  expected = -np.log(sigmoid((2 * label - 1) * BETA * (reward[:, 0] - 2.0)))
  np.testing.assert_allclose(loss_of(objectives.bco(BETA), reward, [label, label]), expected, rtol=1e-5)


@pytest.mark.parametrize('objective', [objectives.kto(BETA), objectives.bco(BETA)], ids=lambda o: o.label)
def test_batch_statistics_are_weighted_and_carry_no_gradient(objective):
  weight = np.array([2.0, 1.0, 0.0, 1.0])
  repeated = np.array([0, 0, 1, 3])
  few = loss_of(objective, SINGLES, LABELS, weight)
  np.testing.assert_allclose(few[repeated], loss_of(objective, SINGLES[repeated], LABELS[repeated]), rtol=1e-5)
  # A gradient through the statistic would let each loss push every response
  gradient = jax.jacobian(lambda x: objective.apply(*batch_of(x, LABELS)).loss)(jnp.asarray(SINGLES))[..., 0]
  assert np.all(np.diag(gradient) != 0)
  np.testing.assert_array_equal(gradient, np.diag(np.diag(gradient)))


def test_kto_pushes_desirable_up_and_undesirable_down_in_proportion_to_their_weights():
  log_ratio = np.zeros((2, 1), np.float32)
  gradient = gradient_of(objectives.kto(BETA, desirable_weight=3.0, undesirable_weight=0.5), log_ratio, [1.0, 0.0])
  np.testing.assert_allclose(gradient[:, 0], [-3.0 * BETA / 4, 0.5 * BETA / 4], rtol=1e-6)


def test_kto_saturates_for_losses_as_for_gains():
  extreme = np.array([[60.0], [-60.0], [0.0]], np.float32)
  gradient = gradient_of(objectives.kto(1.0), extreme, [1.0, 1.0, 1.0])[:, 0]
  assert np.all(np.abs(gradient[:2]) < 1e-20)
  assert gradient[2] == pytest.approx(-0.25)


def sums_of(objective, log_ratio, label, memory=None):
  return objective.memory.update(*batch_of(log_ratio, label, memory=memory))


def test_the_running_shift_of_bco_weighs_batches_by_their_age_and_needs_no_warm_up():
  objective = objectives.bco(BETA, momentum=0.75)
  first, second = np.array([[4.0, 0.0]]), np.array([[9.0, -1.0], [7.0, 1.0]])
  memory = {name: jnp.asarray(value) for name, value in objective.memory.initial.items()}
  memory = sums_of(objective, first, [1.0], memory)
  # After one batch, the shift is that of the batch: no bias towards the zero at the start
  alone = loss_of(objectives.bco(BETA), first)
  np.testing.assert_allclose(loss_of(objective, first, memory=memory), alone, rtol=1e-6)
  memory = sums_of(objective, second, [1.0, 1.0], memory)
  middle = BETA * 0.5 * ((0.75 * 4.0 + 16.0) / (0.75 + 2) + (0.75 * 0.0 + 0.0) / (0.75 + 2))
  metrics = objective.apply(*batch_of(second, memory=memory)).metrics
  np.testing.assert_allclose(metrics['reward_shift'], [middle, middle], rtol=1e-6)
  # In evaluation the memory is read, and not the batch
  other = objective.apply(*batch_of(second + 30.0, memory=memory)).metrics
  np.testing.assert_allclose(other['reward_shift'], [middle, middle], rtol=1e-6)


def test_before_the_first_step_the_running_shift_of_bco_is_that_of_the_batch():
  objective = objectives.bco(BETA, momentum=0.9)
  memory = {name: jnp.asarray(value) for name, value in objective.memory.initial.items()}
  for known in (memory, {}):
    found = loss_of(objective, SINGLES, LABELS, memory=known)
    np.testing.assert_allclose(found, loss_of(objectives.bco(BETA), SINGLES, LABELS), rtol=1e-6)


def test_bco_without_momentum_remembers_nothing():
  assert not objectives.bco().memory.initial


@pytest.mark.parametrize('build', [objectives.kto, objectives.bco])
def test_more_than_two_responses_are_refused(build):
  with pytest.raises(ValueError, match=rf'{build.__name__} .* N = 1 or 2 responses to a prompt, got N = 3'):
    build().apply(*batch_of(np.zeros((2, 3))))


@pytest.mark.parametrize(
  ('build', 'arguments', 'message'),
  [
    (objectives.kto, {'beta': 0.0}, 'kto: beta must be positive'),
    (objectives.kto, {'desirable_weight': 0.0}, 'kto: desirable_weight must be positive'),
    (objectives.kto, {'undesirable_weight': float('nan')}, 'kto: undesirable_weight must be positive'),
    (objectives.bco, {'beta': float('nan')}, 'bco: beta must be positive'),
    (objectives.bco, {'momentum': 1.0}, r'bco: momentum must be in \[0, 1\)'),
    (objectives.bco, {'momentum': -0.1}, r'bco: momentum must be in \[0, 1\)'),
  ],
)
def test_impossible_hyper_parameters_are_named(build, arguments, message):
  with pytest.raises(ValueError, match=message):
    build(**arguments)


def test_values_at_the_reference():
  zero = np.zeros((3, 1))
  np.testing.assert_allclose(loss_of(objectives.kto(BETA), zero, [1.0, 0.0, 0.3]), 0.5, rtol=1e-6)
  np.testing.assert_allclose(loss_of(objectives.bco(BETA), zero, [1.0, 0.0, 0.3]), math.log(2), rtol=1e-6)


@pytest.mark.parametrize('objective', [objectives.kto(BETA), objectives.bco(BETA)], ids=lambda o: o.label)
def test_mean_rewards_are_reported_for_each_kind_of_response(objective):
  weight = np.array([1.0, 2.0, 0.5, 0.0])
  table, batch = batch_of(SINGLES, LABELS, weight)
  sums = forward.weighted_sums(objective, table, batch)
  summary = objective.summary({name: value.mean() for name, value in sums.items()})
  reward = BETA * SINGLES[:, 0]
  for kind, share in {'desirable': weight * LABELS, 'undesirable': weight * (1 - LABELS)}.items():
    np.testing.assert_allclose(summary[f'reward_{kind}'], share @ reward / share.sum(), rtol=1e-5)
  only_desirable = forward.weighted_sums(objective, *batch_of(SINGLES))
  summary = objective.summary({name: value.mean() for name, value in only_desirable.items()})
  assert summary['reward_undesirable'] == 0.0
