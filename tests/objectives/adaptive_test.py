"""alpha-DPO: its identities, and the objectives of which it is a special case or a rescaling."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.objectives import moving_average
from tests import drift, fixtures, quick

AVERAGE = moving_average.MarginAverage(0.9, length_normalised=True)
PAPER = objectives.alpha_dpo(beta=1.5, gamma=0.4, alpha=0.3)


def target(objective, table, batch):
  return np.asarray(objective.apply(table, batch).metrics['target_margin'], np.float64)


@pytest.mark.parametrize('build', [objectives.alpha_dpo, objectives.alpha_dpo_released])
@pytest.mark.parametrize('hard', quick.first(1, [False, True]))
def test_with_alpha_zero_it_is_simpo_in_loss_and_gradient(build, hard):
  batch = drift.batch_of(hard=hard)
  margin = {'gamma': 0.6} if build is objectives.alpha_dpo else {'gamma_beta_ratio': 0.3}
  drift.assert_equal_objectives(
    build(beta=2.0, alpha=0.0, **margin), objectives.simpo(beta=2.0, gamma=0.6), drift.table_of(batch), batch
  )


def test_with_alpha_and_gamma_zero_on_sums_it_is_dpo_with_a_uniform_reference():
  batch = drift.batch_of(hard=False)
  table = drift.table_of(batch)
  flat = dataclasses.replace(table, values={**table.values, 'reference_logp': jnp.zeros(batch.response.shape)})
  found, gradient = drift.value_and_gradient(
    objectives.alpha_dpo(beta=0.3, gamma=0.0, alpha=0.0, length_normalised=False), table, batch
  )
  expected, flat_gradient = drift.value_and_gradient(objectives.dpo(beta=0.3), flat, batch)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient['logp'], flat_gradient['logp'], rtol=1e-5, atol=1e-7)


def test_targets_have_mean_gamma_and_deviation_alpha_over_the_batch():
  batch = drift.batch_of(prompts=16, weight=jnp.ones(16))
  found = target(PAPER, drift.table_of(batch), batch)
  assert found.mean() == pytest.approx(0.4, abs=1e-6)
  assert found.std(ddof=1) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.slow  # moving_average_test.py has weights of 0 and 2
def test_a_weight_counts_rows():
  """A row of weight 2 is the same row twice, and a soft label the pair in both orders."""
  batch = drift.batch_of(prompts=5, weight=jnp.asarray([1.0, 2.0, 1.0, 0.0, 2.0]))
  table = drift.table_of(batch)
  again = np.asarray([0, 1, 1, 2, 4, 4])
  rows, values = jax.tree.map(lambda x: x[again], (batch, dict(table.values)))
  rows = dataclasses.replace(rows, weight=jnp.ones(6))
  repeated = stats.StatTable(values, rows.response_length)
  np.testing.assert_allclose(target(PAPER, table, batch)[again], target(PAPER, repeated, rows), rtol=1e-5)


def test_a_soft_label_is_the_pair_in_both_orders():
  batch = drift.batch_of(prompts=4, label=jnp.asarray([1.0, 0.5, 1.0, 0.25]), weight=jnp.full(4, 4.0))
  table = drift.table_of(batch)

  def swap(x):
    return jnp.concatenate([x, x[:, ::-1]])

  both = dataclasses.replace(
    batch,
    response=swap(batch.response),
    response_length=swap(batch.response_length),
    prompt=jnp.concatenate([batch.prompt] * 2),
    prompt_length=jnp.concatenate([batch.prompt_length] * 2),
    label=jnp.ones(8),
    weight=jnp.concatenate([4.0 * batch.label, 4.0 * (1.0 - batch.label)]),
  )
  split = stats.StatTable({name: swap(value) for name, value in table.values.items()}, both.response_length)
  once, twice = PAPER.apply(table, batch).loss, PAPER.apply(split, both).loss
  np.testing.assert_allclose(once, batch.label * twice[:4] + (1.0 - batch.label) * twice[4:], rtol=1e-5)


@pytest.mark.parametrize(('scale', 'shift'), [(1.0, 3.0), (0.2, 0.0), (5.0, -2.0)])
def test_the_target_does_not_see_scale_and_shift_of_the_drift(scale, shift):
  batch = drift.batch_of()
  table = drift.table_of(batch)
  moved = drift.shifted(table, shift, scale)
  margin = PAPER.apply(table, batch).metrics['drift_margin']
  np.testing.assert_allclose(PAPER.apply(moved, batch).metrics['drift_margin'], scale * margin + shift, atol=1e-5)
  np.testing.assert_allclose(target(PAPER, moved, batch), target(PAPER, table, batch), atol=1e-5)


@pytest.mark.parametrize('normaliser', ['batch', 'ema'])
def test_the_gradient_is_that_of_a_constant_target_and_none_enters_the_reference(normaliser):
  batch = drift.batch_of()
  table = drift.table_of(batch)
  objective = objectives.alpha_dpo(beta=1.5, gamma=0.4, alpha=0.8, normaliser=normaliser)
  _, gradient = drift.value_and_gradient(objective, table, batch)
  mean = np.asarray(table.mean(stats.logp), np.float64)
  logit = 1.5 * (mean[:, 0] - mean[:, 1]) - target(objective, table, batch)
  slope = -1.5 / (1.0 + np.exp(logit))  # d loss / d l_w, and its negative is d loss / d l_l
  expected = slope[:, None, None] * np.asarray([1.0, -1.0])[None, :, None] / np.asarray(table.length)[..., None]
  np.testing.assert_allclose(gradient['logp'], np.where(table.mask, expected, 0.0), rtol=1e-4, atol=1e-7)
  assert not np.any(gradient['reference_logp'])


@pytest.mark.parametrize('normaliser', ['batch', 'ema'])
def test_at_the_reference_it_is_exactly_simpo(normaliser):
  batch = drift.batch_of(hard=False)
  table = drift.table_of(batch, drift=0.0)
  objective = objectives.alpha_dpo(beta=1.5, gamma=0.4, alpha=5.0, normaliser=normaliser)
  for memory in ({}, {'unrelated': 1.0}, objective.memory.update(table, batch)):
    table = dataclasses.replace(table, memory=memory)
    np.testing.assert_array_equal(target(objective, table, batch), np.float32(0.4))
    np.testing.assert_array_equal(
      objective.apply(table, batch).loss, objectives.simpo(beta=1.5, gamma=0.4).apply(table, batch).loss
    )


@pytest.mark.parametrize('weight', [[1.0], [0.5], [0.0]])
def test_a_pair_that_is_alone_has_the_constant_target(weight):
  batch = drift.batch_of(prompts=1, weight=jnp.asarray(weight))
  np.testing.assert_array_equal(target(PAPER, drift.table_of(batch), batch), np.float32(0.4))


def test_without_stopped_gradient_and_normalisation_alpha_one_has_no_gradient():
  """The algebra behind the method: u - alpha M = beta ((1 - alpha) policy's ratio + alpha reference's ratio)."""
  rng = np.random.default_rng(0)
  policy, reference = rng.normal(size=(2, 5, 2))

  def logit(policy, alpha):
    moved = (policy - reference)[:, 0] - (policy - reference)[:, 1]
    return 2.0 * ((policy[:, 0] - policy[:, 1]) - alpha * moved)

  for alpha in (0.3, 1.0):
    mixed = (1 - alpha) * policy + alpha * reference
    np.testing.assert_allclose(logit(policy, alpha), 2.0 * (mixed[:, 0] - mixed[:, 1]), atol=1e-12)
  np.testing.assert_allclose(logit(policy + rng.normal(size=policy.shape), 1.0), logit(policy, 1.0), atol=1e-12)
  # With the gradient stopped, as in the objective, the same logit has the gradient of SimPO's.
  batch = drift.batch_of(hard=True)
  _, gradient = drift.value_and_gradient(objectives.alpha_dpo(alpha=1.0), drift.table_of(batch), batch)
  assert np.all(np.asarray(gradient['logp'])[np.asarray(drift.table_of(batch).mask)] != 0)


def test_the_released_form_is_the_papers_with_alpha_and_gamma_times_beta():
  """Where the averages have reached the batch's own mean and deviation."""
  batch = drift.batch_of(hard=False)
  table = drift.table_of(batch)
  own = moving_average.of_batch(AVERAGE.margin(table), batch)
  key = next(iter(AVERAGE.memory.initial)).rpartition('/')[0]
  memory = {f'{key}/count': jnp.float32(500), f'{key}/mean': own.mean, f'{key}/deviation': own.deviation}
  drift.assert_equal_objectives(
    objectives.alpha_dpo_released(beta=2.0, gamma_beta_ratio=0.25, alpha=0.15),
    objectives.alpha_dpo(beta=2.0, gamma=0.5, alpha=0.3),
    dataclasses.replace(table, memory=memory),
    batch,
  )


def test_the_released_form_starts_with_a_tenfold_target():
  batch = drift.batch_of(weight=jnp.ones(8))
  table = drift.table_of(batch)
  released = objectives.alpha_dpo_released(beta=2.0, gamma_beta_ratio=0.0, alpha=0.1)
  table = dataclasses.replace(table, memory=released.memory.update(table, batch))
  margin = np.asarray(AVERAGE.margin(table), np.float64)
  expected = 0.2 * (margin - 0.1 * margin.mean()) / (0.1 * margin.std(ddof=1))
  np.testing.assert_allclose(target(released, table, batch), expected, rtol=1e-4)


@pytest.mark.parametrize('smoothing', [0.1, 0.3])
def test_label_smoothing_adds_a_linear_term(smoothing):
  batch = drift.batch_of()
  table = drift.table_of(batch)
  plain = objectives.alpha_dpo_released(beta=2.0, alpha=0.05)
  smooth = objectives.alpha_dpo_released(beta=2.0, alpha=0.05, label_smoothing=smoothing)
  mean = table.mean(stats.logp)
  logit = 2.0 * (mean[:, 0] - mean[:, 1]) - target(plain, table, batch)
  expected = plain.apply(table, batch).loss + smoothing * logit
  np.testing.assert_allclose(smooth.apply(table, batch).loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # oracle_test.py has the targets
def test_a_larger_alpha_raises_the_weight_of_exactly_the_pairs_above_the_mean():
  batch = drift.batch_of(prompts=16)
  table = drift.table_of(batch)
  margin = AVERAGE.margin(table)
  above = np.asarray(margin > moving_average.of_batch(margin, batch).mean)
  assert 0 < above.sum() < 16
  weights = []
  for alpha in (0.0, 0.2, 0.5, 1.0):
    _, gradient = drift.value_and_gradient(objectives.alpha_dpo(beta=1.0, gamma=0.2, alpha=alpha), table, batch)
    weights.append(np.abs(np.asarray(gradient['logp'])[:, 0, 0]))
  assert np.all(np.diff(weights, axis=0)[:, above] > 0)
  assert np.all(np.diff(weights, axis=0)[:, ~above] < 0)


def test_repeating_every_token_changes_only_sums():
  batch = drift.batch_of(response_length=jnp.full((8, 2), 3, jnp.int32))
  table = drift.table_of(batch)

  def doubled(values):
    return {name: jnp.concatenate([value[..., :3], value[..., :3]], axis=-1) for name, value in values.items()}

  long = dataclasses.replace(table, values=doubled(table.values), length=2 * table.length)
  for normalised, factor in ((True, 1.0), (False, 2.0)):
    objective = objectives.alpha_dpo(beta=1.5, gamma=0.4, alpha=0.3, length_normalised=normalised)
    once, twice = objective.apply(table, batch), objective.apply(long, batch)
    np.testing.assert_allclose(
      twice.metrics['reward_margin'], factor * once.metrics['reward_margin'], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(twice.metrics['target_margin'], once.metrics['target_margin'], rtol=1e-4, atol=1e-6)
    assert np.allclose(twice.loss, once.loss, rtol=1e-5) == normalised


def test_swapping_responses_flips_drift_and_standardised_margin():
  batch = drift.batch_of()
  table = drift.table_of(batch)
  swapped = dataclasses.replace(batch, response_length=batch.response_length[:, ::-1])
  mirror = stats.StatTable({name: value[:, ::-1] for name, value in table.values.items()}, swapped.response_length)
  one, other = PAPER.apply(table, batch).metrics, PAPER.apply(mirror, swapped).metrics
  np.testing.assert_allclose(other['drift_margin'], -one['drift_margin'], rtol=1e-5)
  np.testing.assert_allclose(other['target_margin'] - 0.4, 0.4 - one['target_margin'], atol=1e-5)
  np.testing.assert_allclose(other['reward_margin'], -one['reward_margin'], rtol=1e-5)
  # Told that the labels are wrong, it is as if nothing had been swapped.
  wrong = dataclasses.replace(swapped, label=jnp.zeros(8))
  np.testing.assert_allclose(PAPER.apply(mirror, wrong).loss, PAPER.apply(table, batch).loss, rtol=1e-5)


@pytest.mark.parametrize(
  ('build', 'arguments', 'message'),
  [
    (objectives.alpha_dpo, {'beta': 0.0}, 'alpha_dpo: beta must be positive, got 0.0'),
    (objectives.alpha_dpo, {'beta': math.nan}, 'alpha_dpo: beta must be positive'),
    (objectives.alpha_dpo, {'gamma': -1.0}, 'alpha_dpo: gamma must not be negative'),
    (objectives.alpha_dpo, {'alpha': -0.1}, 'alpha_dpo: alpha must not be negative'),
    (objectives.alpha_dpo, {'alpha': math.nan}, 'alpha_dpo: alpha must not be negative'),
    (objectives.alpha_dpo, {'normaliser': 'median'}, "alpha_dpo: normaliser must be one of batch, ema, got 'median'"),
    (objectives.alpha_dpo_released, {'beta': -1.0}, 'alpha_dpo_released: beta must be positive'),
    (objectives.alpha_dpo_released, {'gamma_beta_ratio': -1.0}, 'gamma_beta_ratio must not be negative, got -1.0'),
    (objectives.alpha_dpo_released, {'alpha': -1.0}, 'alpha_dpo_released: alpha must not be negative, got -1.0'),
    (objectives.alpha_dpo_released, {'label_smoothing': 0.5}, r'label_smoothing must be in \[0, 0.5\)'),
    *(
      (objectives.alpha_dpo_released, {'statistics_rows': rows}, f'statistics_rows must be None or .* 2, got {rows}')
      for rows in (0, 1, 2.5, True)
    ),
    (objectives.beta_dpo, {'beta': 1e-4}, 'beta_dpo: beta must be at least 0.001'),
    (objectives.beta_dpo, {'beta': math.nan}, 'beta_dpo: beta must be at least 0.001'),
    (objectives.beta_dpo, {'alpha': -1.0}, 'beta_dpo: alpha must not be negative'),
    (objectives.beta_dpo, {'ratio': 0.0}, r'beta_dpo: ratio must be in \(0, 1\]'),
    (objectives.beta_dpo, {'ratio': 1.2}, r'beta_dpo: ratio must be in \(0, 1\]'),
  ],
)
def test_impossible_hyper_parameters_are_named(build, arguments, message):
  with pytest.raises(ValueError, match=message):
    build(**arguments)


@pytest.mark.parametrize('build', [objectives.alpha_dpo, objectives.alpha_dpo_released, objectives.beta_dpo])
def test_a_pair_is_required(build):
  batch = fixtures.preference_batch(responses=3)
  with pytest.raises(ValueError, match=rf'{build.__name__} compares .* N = 3'):
    build().apply(drift.table_of(batch), batch)
