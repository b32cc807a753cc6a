"""The properties of objectives in which the pairs of a batch meet."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from tests import fixtures

BETA = 0.4
EVERY = (objectives.aot, objectives.aot_unpaired, objectives.dr_dpo)


def loss_of(objective, policy, reference, label=None, weight=None):
  """The losses of pairs with log-probabilities `policy` and `reference`, [B, 2], of responses of one token."""
  prompts = len(policy)
  batch = fixtures.preference_batch(prompts=prompts, response_size=1)
  batch = dataclasses.replace(
    batch,
    label=jnp.ones(prompts) if label is None else jnp.asarray(label, jnp.float32),
    weight=jnp.ones(prompts) if weight is None else jnp.asarray(weight, jnp.float32),
    response_length=jnp.ones((prompts, 2), jnp.int32),
  )
  values = {'logp': jnp.asarray(policy)[..., None], 'reference_logp': jnp.asarray(reference)[..., None]}
  return np.asarray(objective.apply(stats.StatTable.create(values, batch.response_length), batch).loss, np.float64)


@pytest.fixture
def pairs():
  rng = np.random.default_rng(3)
  return -rng.exponential(4.0, (5, 2)).astype(np.float32), -rng.exponential(4.0, (5, 2)).astype(np.float32)


def dpo(policy, reference, label=None):
  return loss_of(objectives.dpo(BETA), policy, reference, label)


@pytest.mark.parametrize('build', EVERY)
@pytest.mark.parametrize('label', [1.0, 0.7, 0.2, 0.0])
def test_a_batch_of_one_is_dpo(build, label, pairs):
  for row in range(5):
    one = [side[row : row + 1] for side in pairs]
    np.testing.assert_allclose(loss_of(build(BETA), *one, [label]), dpo(*one, [label]), rtol=1e-5)


@pytest.mark.parametrize('build', EVERY)
@pytest.mark.parametrize('label', [None, [0.2, 0.9, 0.4, 1.0, 0.0]])
def test_the_order_of_the_batch_does_not_matter(build, label, pairs):
  order = np.array([3, 0, 4, 1, 2])
  straight = loss_of(build(BETA), *pairs, label)
  permuted = loss_of(build(BETA), *(side[order] for side in pairs), None if label is None else np.asarray(label)[order])
  np.testing.assert_allclose(permuted, straight[order], rtol=1e-6)
  assert permuted.sum() == pytest.approx(straight.sum(), rel=1e-6)


def test_paired_aot_does_not_see_which_prompt_a_reference_margin_belongs_to(pairs):
  policy, reference = pairs
  other = reference[np.array([3, 0, 4, 1, 2])]
  np.testing.assert_allclose(
    loss_of(objectives.aot(BETA), policy, other), loss_of(objectives.aot(BETA), policy, reference), rtol=1e-6
  )
  assert not np.allclose(dpo(policy, other), dpo(policy, reference), rtol=1e-2)


def test_unpaired_aot_does_not_see_which_rejection_belongs_to_a_preferred_response(pairs):
  order = np.array([3, 0, 4, 1, 2])
  other = [np.stack([side[:, 0], side[order, 1]], 1) for side in pairs]
  objective = objectives.aot_unpaired(BETA)
  np.testing.assert_allclose(loss_of(objective, *other), loss_of(objective, *pairs), rtol=1e-6)
  assert not np.allclose(dpo(*other), dpo(*pairs), rtol=1e-2)


@pytest.mark.parametrize('build', [objectives.aot, objectives.aot_unpaired])
def test_sorting_is_the_cheapest_transport(build, pairs):
  """Of all ways to match the two distributions, for a convex loss of the difference the sorted one costs least."""
  policy, reference = (side.astype(np.float64) for side in pairs)
  first, second = policy[:, 0] - policy[:, 1], reference[:, 0] - reference[:, 1]
  if build is objectives.aot_unpaired:
    first, second = (policy - reference).T
  cost = [np.logaddexp(0, -BETA * (first - second[list(p)])).sum() for p in itertools.permutations(range(5))]
  assert loss_of(build(BETA), *pairs).sum() == pytest.approx(min(cost), rel=1e-5)
  assert min(cost) < max(cost) - 0.5


@pytest.mark.parametrize('build', [objectives.aot, objectives.aot_unpaired])
@pytest.mark.parametrize('missing', [0, 3])
def test_padding_rows_are_not_sorted_and_other_weights_do_not_matter(build, missing, pairs):
  keep = np.arange(5) != missing
  found = loss_of(build(BETA), *pairs, weight=np.where(keep, [0.5, 2.0, 1.0, 3.0, 0.1], 0.0))
  np.testing.assert_allclose(found[keep], loss_of(build(BETA), *(side[keep] for side in pairs)), rtol=1e-6)


@pytest.mark.parametrize('build', [objectives.aot, objectives.aot_unpaired])
def test_a_pair_with_label_zero_is_the_pair_turned_round(build, pairs):
  turned = [np.concatenate([side[:2, ::-1], side[2:]]) for side in pairs]
  found = loss_of(build(BETA), *pairs, label=[0.0, 0.2, 1.0, 1.0, 1.0])
  np.testing.assert_allclose(found, loss_of(build(BETA), *turned, label=[1.0, 0.8, 1.0, 1.0, 1.0]), rtol=1e-5)


@pytest.mark.parametrize('beta_prime', [0.05, 0.3, 2.0, 50.0])
def test_dr_dpo_lies_between_the_smallest_and_the_mean_dpo_loss(beta_prime, pairs):
  known = dpo(*pairs)
  found = loss_of(objectives.dr_dpo(BETA, beta_prime), *pairs)
  assert np.all(found == found[0])
  assert known.min() < found[0] < known.mean()


def test_dr_dpo_tends_to_the_mean_for_a_large_and_to_the_minimum_for_a_small_temperature(pairs):
  known = dpo(*pairs)
  assert known.max() - known.min() > 0.5
  assert loss_of(objectives.dr_dpo(BETA, 1e3), *pairs)[0] == pytest.approx(known.mean(), rel=1e-3)
  assert loss_of(objectives.dr_dpo(BETA, 1e-3), *pairs)[0] == pytest.approx(known.min(), abs=2e-3)


def test_dr_dpo_weighs_hard_pairs_less(pairs):
  """The derivative of the loss in one pair's DPO loss is that pair's softmin weight."""
  policy, reference = pairs
  known = dpo(policy, reference)
  hard, easy = known.argmax(), known.argmin()

  def influence(row):
    moved = policy.copy()
    moved[row, 0] += 0.05
    change = (
      loss_of(objectives.dr_dpo(BETA, 0.5), moved, reference)[0]
      - loss_of(objectives.dr_dpo(BETA, 0.5), policy, reference)[0]
    )
    return change / (dpo(moved, reference) - known)[row]

  expected = np.exp(-known / 0.5) / np.exp(-known / 0.5).sum()
  assert influence(easy) == pytest.approx(expected[easy], rel=2e-2)
  assert influence(hard) == pytest.approx(expected[hard], rel=5e-2, abs=1e-4)
  assert influence(hard) < 0.5 * influence(easy)


def test_weights_of_dr_dpo_are_repetitions(pairs):
  repeated = np.array([0, 0, 2, 3])
  weight = [2.0, 0.0, 1.0, 1.0, 0.0]
  found = loss_of(objectives.dr_dpo(BETA, 0.5), *pairs, weight=weight)[0]
  assert found == pytest.approx(loss_of(objectives.dr_dpo(BETA, 0.5), *(side[repeated] for side in pairs))[0], rel=1e-6)


@pytest.mark.parametrize('build', EVERY)
@pytest.mark.parametrize('beta', [0.0, -1.0, float('nan')])
def test_impossible_beta_is_named(build, beta):
  with pytest.raises(ValueError, match=f'{build.__name__}: beta must be positive'):
    build(beta)


@pytest.mark.parametrize('beta_prime', [0.0, float('nan')])
def test_impossible_temperature_is_named(beta_prime):
  with pytest.raises(ValueError, match='dr_dpo: beta_prime must be positive'):
    objectives.dr_dpo(beta_prime=beta_prime)


@pytest.mark.parametrize('build', EVERY)
def test_a_pair_is_required_and_the_objective_named(build):
  batch = fixtures.preference_batch(responses=3)
  values = {key: -jnp.ones(batch.response.shape) for key in ('logp', 'reference_logp')}
  with pytest.raises(ValueError, match=rf'{build.__name__} compares .* N = 3'):
    build().apply(stats.StatTable.create(values, batch.response_length), batch)
