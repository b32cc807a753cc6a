"""What objectives remember of the margins of earlier batches: which batches count, how, and for whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.objectives import moving_average
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from tests import drift

AVERAGE = moving_average.MarginAverage(0.9, length_normalised=True)


def target(objective, table, batch):
  return np.asarray(jax.jit(objective.apply)(table, batch).metrics['target_margin'], np.float64)


def test_after_equal_batches_the_average_lacks_a_power_of_its_decay_and_the_correction_removes_that():
  batch = drift.batch_of()
  table = drift.table_of(batch)
  own = moving_average.of_batch(AVERAGE.margin(table), batch)
  for steps in range(1, 8):
    table = dataclasses.replace(table, memory=AVERAGE.memory.update(table, batch))
    assert AVERAGE.count(table) == steps
    raw, corrected = AVERAGE.uncorrected(table, batch), AVERAGE.corrected(table, batch)
    np.testing.assert_allclose(raw, (1 - 0.9**steps) * np.asarray(own), rtol=1e-5)
    np.testing.assert_allclose(corrected, own, rtol=1e-5)


def test_the_average_weighs_earlier_batches_by_powers_of_its_decay():
  batch = drift.batch_of()
  memory, means, deviations = {}, [], []
  for seed in range(4):
    table = drift.table_of(batch, seed, memory)
    memory = AVERAGE.memory.update(table, batch)
    own = moving_average.of_batch(AVERAGE.margin(table), batch)
    means.append(float(own.mean))
    deviations.append(float(own.deviation))
  powers = 0.9 ** np.arange(3, -1, -1)
  found = AVERAGE.corrected(dataclasses.replace(table, memory=memory), batch)
  assert float(found.mean) == pytest.approx(np.average(means, weights=powers), rel=1e-5)
  assert float(found.deviation) == pytest.approx(np.average(deviations, weights=powers), rel=1e-5)


def test_the_moving_average_standardises_by_what_was_seen_and_not_by_the_batch_at_hand():
  batch = drift.batch_of()
  objective = objectives.alpha_dpo(normaliser='ema')
  memory = objective.memory.update(drift.table_of(batch, seed=1, drift=0.1), batch)
  now = drift.table_of(batch, seed=2, drift=2.0)
  without = target(objectives.alpha_dpo(normaliser='batch'), now, batch)
  np.testing.assert_array_equal(target(objective, now, batch), without)  # nothing is remembered yet
  empty = dataclasses.replace(now, memory={name: jnp.float32(0) for name in memory})
  np.testing.assert_array_equal(target(objective, empty, batch), without)
  seen = target(objective, dataclasses.replace(now, memory=memory), batch)
  assert np.std(seen) > 5 * np.std(without)


@pytest.mark.parametrize('weight', [[0.0] * 8, [1.0] + [0.0] * 7])
def test_a_batch_without_a_deviation_is_not_remembered(weight):
  objective = objectives.alpha_dpo(normaliser='ema')
  batch = drift.batch_of()
  memory = objective.memory.update(drift.table_of(batch), batch)
  small = dataclasses.replace(batch, weight=jnp.asarray(weight))
  for before in (memory, dict.fromkeys(memory, jnp.float32(0))):
    after = objective.memory.update(drift.table_of(small, seed=3, memory=before), small)
    assert after == before


def test_one_group_is_the_whole_batch():
  batch = drift.batch_of()
  table = drift.table_of(batch)
  whole, grouped = objectives.alpha_dpo_released(), objectives.alpha_dpo_released(statistics_rows=8)
  losses = [jax.jit(objective.apply)(table, batch).loss for objective in (grouped, whole)]
  np.testing.assert_allclose(*losses, rtol=1e-5)
  found, expected = grouped.memory.update(table, batch), whole.memory.update(table, batch)
  assert not set(found) & set(expected)
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-6)


def test_rows_of_weight_zero_belong_to_no_group():
  batch = drift.batch_of(weight=jnp.asarray([1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 1.0]))
  table = drift.table_of(batch)
  counted = np.flatnonzero(batch.weight)
  rows, values = jax.tree.map(lambda x: x[counted], (batch, dict(table.values)))
  without = stats.StatTable(values, rows.response_length)
  objective = objectives.alpha_dpo_released(statistics_rows=2)
  np.testing.assert_allclose(target(objective, table, batch)[counted], target(objective, without, rows), rtol=1e-6)


def test_evaluation_reads_the_stored_average_for_all_groups():
  batch = drift.batch_of()
  grouped, whole = objectives.alpha_dpo_released(statistics_rows=2), objectives.alpha_dpo_released()
  memory = grouped.memory.update(drift.table_of(batch, seed=1), batch)
  assert memory['margin_average(decay=0.9, length_normalised=True, rows=2)/count'] == 4
  now = drift.table_of(batch, seed=2, memory=memory)
  same = dataclasses.replace(now, memory={name.replace(', rows=2', ''): value for name, value in memory.items()})
  np.testing.assert_allclose(target(grouped, now, batch), target(whole, same, batch), rtol=1e-6)
  trained = dataclasses.replace(now, memory=grouped.memory.update(now, batch), before=memory)
  assert np.all(target(grouped, trained, batch) != target(grouped, now, batch))


def test_reading_leaves_the_memory_as_it_is():
  batch = drift.batch_of()
  for objective in (objectives.alpha_dpo(normaliser='ema'), objectives.alpha_dpo_released(), objectives.beta_dpo()):
    memory = dict(objective.memory.update(drift.table_of(batch), batch))
    before = {name: float(value) for name, value in memory.items()}
    first = objective.apply(drift.table_of(batch, seed=2, memory=memory), batch).loss
    second = objective.apply(drift.table_of(batch, seed=2, memory=memory), batch).loss
    np.testing.assert_array_equal(first, second)
    assert {name: float(value) for name, value in memory.items()} == before


def test_parts_of_a_sum_share_the_statistic_that_they_share():
  one, other = objectives.alpha_dpo(beta=1.0, normaliser='ema'), objectives.alpha_dpo_released(beta=3.0)
  both = one + 0.5 * other
  assert set(both.memory.initial) == set(one.memory.initial) == set(other.memory.initial)
  assert set(one.memory.initial) == {
    f'margin_average(decay=0.9, length_normalised=True)/{name}' for name in ('count', 'mean', 'deviation')
  }
  batch = drift.batch_of()
  table = drift.table_of(batch)
  assert both.memory.update(table, batch) == one.memory.update(table, batch)
  sums = objectives.alpha_dpo(length_normalised=False, normaliser='ema')
  assert not set(sums.memory.initial) & set(one.memory.initial)
  assert set(sums.memory.initial) == set(objectives.beta_dpo().memory.initial)
  assert not objectives.alpha_dpo(normaliser='batch').memory.initial


SHARDED = [
  objectives.alpha_dpo_released(statistics_rows=4),
  *(
    pytest.param(objective, marks=pytest.mark.slow)
    for objective in (
      objectives.alpha_dpo(beta=1.5, gamma=0.4, alpha=0.3),
      objectives.alpha_dpo(normaliser='ema'),
      objectives.alpha_dpo_released(),
      objectives.beta_dpo(beta=0.3),
    )
  ),
]


@pytest.mark.parametrize('objective', SHARDED, ids=str)
def test_a_sharded_batch_has_the_losses_and_the_memory_of_a_whole_one(objective):
  """Which statistics of each shard would not give."""
  batch = drift.batch_of(prompts=16)
  table = drift.table_of(batch)
  sharding = rules.batch_sharding(mesh_lib.make_mesh(2, 4, 1))
  spread = jax.device_put((dict(table.values), batch), sharding)

  @jax.jit
  def losses(values, batch):
    table = stats.StatTable(values, batch.response_length)
    return objective.apply(table, batch).loss, objective.memory.update(table, batch)

  found, memory = losses(*spread)
  expected, expected_memory = losses(dict(table.values), batch)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for name, value in expected_memory.items():
    np.testing.assert_allclose(memory[name], value, rtol=1e-5, atol=1e-6)
  halves = [jax.tree.map(lambda x, i=i: x[i : i + 8], (dict(table.values), batch)) for i in (0, 8)]
  alone = np.concatenate([losses(*half)[0] for half in halves])
  assert not np.allclose(alone, found, rtol=1e-3)
