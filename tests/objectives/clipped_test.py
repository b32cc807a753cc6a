"""The clipped policy gradient against the plain one, and its identities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from tests import fixtures

LEVELS = ('token', 'sequence')
AGGREGATES = ('sequence_mean', 'token_mean', 'token_sum')
BATCH = fixtures.preference_batch(seed=1, responses=3)
POLICY = fixtures.logits(2, BATCH)


def logp_of(batch, logits):
  return stats.from_logits({stats.logp}, logits, None, batch)[stats.logp]


def drawn_by(logits, batch=BATCH):
  return dataclasses.replace(batch, cached={'behaviour_token_logp': logp_of(batch, logits)})


def value_and_gradient(objective, batch, policy=POLICY):
  def total(policy):
    return jnp.sum(objective.apply(stats.from_logits(objective.needs, policy, None, batch), batch).loss)

  return jax.value_and_grad(total)(policy)


def gradient(objective, batch, policy=POLICY):
  return np.asarray(value_and_gradient(objective, batch, policy)[1])


def test_at_the_first_update_the_gradient_is_that_of_the_plain_policy_gradient():
  batch = drawn_by(POLICY)
  plain = gradient(objectives.rlhf(beta=0.0), batch)
  found = gradient(objectives.clipped_policy_gradient(aggregate='token_sum'), batch)
  np.testing.assert_allclose(found, plain, atol=1e-6)
  assert np.abs(plain).max() > 0.1
  # By sequences, the ratio is a geometric mean over tokens: the gradient of a response is divided by its length.
  by_sequence = gradient(objectives.clipped_policy_gradient(level='sequence', aggregate='token_sum'), batch)
  np.testing.assert_allclose(by_sequence, found, atol=1e-6)


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('aggregate', AGGREGATES)
def test_inside_the_interval_the_clip_is_inactive(level, aggregate):
  batch = drawn_by(POLICY + 0.01 * fixtures.logits(3, BATCH))
  wide, narrow = (
    objectives.clipped_policy_gradient(level=level, aggregate=aggregate, low=bound, high=bound) for bound in (0.9, 0.3)
  )
  np.testing.assert_array_equal(gradient(wide, batch), gradient(narrow, batch))
  assert np.any(gradient(wide, batch))


@pytest.mark.parametrize('level', LEVELS)
def test_a_ratio_that_has_moved_with_its_advantage_has_no_gradient(level):
  objective = objectives.clipped_policy_gradient(level=level)
  score = jnp.broadcast_to(jnp.asarray([1.0, 0.0, -1.0]), BATCH.score.shape)
  batch = dataclasses.replace(drawn_by(POLICY), score=score)
  mask = np.asarray(stats.from_logits({stats.logp}, POLICY, None, batch).mask)
  for shift, sides in ((-1.0, (False, True)), (1.0, (True, False))):  # ratios above, and below the interval
    moved = {'behaviour_token_logp': batch.cached['behaviour_token_logp'] + shift}
    found = np.abs(gradient(objective, dataclasses.replace(batch, cached=moved))).sum(axis=-1)
    for n, moves in ((0, sides[0]), (2, sides[1])):
      assert np.all((found[:, n][mask[:, n]] > 0) == moves)


def test_the_cap_bounds_the_loss_of_responses_with_a_negative_advantage():
  batch = drawn_by(POLICY)
  far = dataclasses.replace(batch, cached={'behaviour_token_logp': batch.cached['behaviour_token_logp'] - 200.0})
  for objective in (objectives.clipped_policy_gradient(), objectives.clipped_policy_gradient(cap=3.0)):
    assert np.all(np.isfinite(gradient(objective, far)))
  capped, _ = value_and_gradient(objectives.clipped_policy_gradient(cap=3.0), far)
  advantage = np.asarray(BATCH.score) * 1.5 - np.asarray(BATCH.score).mean(axis=1, keepdims=True) * 1.5
  expected = -np.where(advantage > 0, 1.2, 3.0) * advantage
  np.testing.assert_allclose(capped, expected.mean(axis=1).sum(), rtol=1e-5)


def test_levels_coincide_for_responses_of_one_token():
  batch = dataclasses.replace(BATCH, response_length=jnp.ones_like(BATCH.response_length))
  batch = drawn_by(POLICY + 0.3 * fixtures.logits(3, BATCH), batch)
  by_token, by_sequence = (objectives.clipped_policy_gradient(level=level) for level in LEVELS)
  np.testing.assert_array_equal(gradient(by_token, batch), gradient(by_sequence, batch))


def test_ratios_are_one_if_the_policy_drew_the_responses():
  for level in LEVELS:
    batch = drawn_by(POLICY)
    objective = objectives.clipped_policy_gradient(level=level)
    term = objective.apply(stats.from_logits(objective.needs, POLICY, None, batch), batch)
    np.testing.assert_array_equal(term.metrics['ratio'], 1.0)
    np.testing.assert_array_equal(term.metrics['clipped'], 0.0)
    np.testing.assert_allclose(term.loss, 0.0, atol=1e-6)


@pytest.mark.parametrize('advantage', ['loo', 'group', 'centred'])
def test_a_constant_added_to_the_scores_of_a_prompt_changes_no_gradient(advantage):
  batch = drawn_by(POLICY + 0.1 * fixtures.logits(3, BATCH))
  objective = objectives.clipped_policy_gradient(advantage=advantage)
  shifted = dataclasses.replace(batch, score=batch.score + 4.0 * jnp.arange(6.0)[:, None])
  np.testing.assert_allclose(gradient(objective, shifted), gradient(objective, batch), atol=1e-5)
  plain = objectives.rlhf(beta=0.0)
  np.testing.assert_allclose(gradient(plain, shifted), gradient(plain, batch), atol=1e-5)


def test_scaling_the_scores_scales_the_gradient_but_not_that_of_standardised_ones():
  batch = drawn_by(POLICY + 0.1 * fixtures.logits(3, BATCH))
  scaled = dataclasses.replace(batch, score=8.0 * batch.score)
  for objective, factor in (
    (objectives.rlhf(beta=0.0), 8.0),
    (objectives.clipped_policy_gradient(), 8.0),
    (objectives.clipped_policy_gradient(advantage='centred'), 8.0),
    (objectives.clipped_policy_gradient(advantage='group'), 1.0),
  ):
    np.testing.assert_allclose(gradient(objective, scaled), factor * gradient(objective, batch), rtol=2e-3, atol=2e-4)


def test_the_mean_over_tokens_is_that_of_the_whole_batch():
  batch = drawn_by(POLICY + 0.1 * fixtures.logits(3, BATCH))
  mean, total = (objectives.clipped_policy_gradient(aggregate=aggregate) for aggregate in ('token_mean', 'token_sum'))
  loss = [
    objective.apply(stats.from_logits(objective.needs, POLICY, None, batch), batch).loss for objective in (mean, total)
  ]
  weight, tokens = np.asarray(batch.weight), np.asarray(batch.response_length).sum(axis=1)
  found = (weight * np.asarray(loss[0])).sum() / weight.sum()
  expected = (weight * 3 * np.asarray(loss[1])).sum() / (weight * tokens).sum()
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ("clipped_policy_gradient(advantage='mean')", 'advantage must be loo, centred or group'),
    ("clipped_policy_gradient(level='word')", 'level must be token or sequence'),
    ("clipped_policy_gradient(aggregate='sum')", 'aggregate must be sequence_mean, token_mean or token_sum'),
    ('clipped_policy_gradient(low=1.0)', r'low must be in \[0, 1\)'),
    ('clipped_policy_gradient(high=-0.1)', 'high must not be negative'),
    ('clipped_policy_gradient(cap=1.0)', 'cap must be greater than 1'),
    ("clipped_policy_gradient(aggregate='token_sum', length=0)", 'length must be positive'),
  ],
)
def test_wrong_arguments_are_named(text, message):
  with pytest.raises(ValueError, match=message):
    objectives.parse(text)


def test_data_without_log_probabilities_are_refused_by_name():
  with pytest.raises(ValueError, match='reads `behaviour_token_logp`, log-probabilities of the tokens'):
    objectives.check_batch(objectives.clipped_policy_gradient(), ['score', 'behaviour_logp'], 2)
