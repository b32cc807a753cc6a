"""beta-DPO: whom its filter keeps, and how its strength follows the margins."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats, testing
from alignjax.objectives import moving_average
from tests import drift, fixtures
from tests.oracles import adaptive as oracle
from tests.oracles.data import Data


def kept(objective, table, batch):
  return np.asarray(jax.jit(objective.apply)(table, batch).metrics['kept']) > 0


@pytest.mark.slow  # oracle_test.py compares the loss with its equation
def test_with_alpha_zero_and_every_pair_kept_it_is_dpo():
  batch = drift.batch_of(hard=False)
  table = drift.table_of(batch)
  memory = objectives.beta_dpo().memory.update(drift.table_of(batch, seed=3), batch)
  for remembered in ({}, memory):
    given = dataclasses.replace(table, memory=remembered)
    drift.assert_equal_objectives(
      objectives.beta_dpo(beta=0.3, alpha=0.0, ratio=1.0), objectives.dpo(beta=0.3), given, batch
    )


@pytest.mark.parametrize(
  ('ratio', 'rows', 'expected'),
  [
    *(pytest.param(*numbers, marks=pytest.mark.slow) for numbers in ((0.8, 8, 6), (0.1, 4, 1), (0.5, 7, 3))),
    (0.29, 100, 29),
  ],
)
def test_the_share_is_rounded_down_to_whole_pairs(ratio, rows, expected):
  weight = np.ones(rows + 2, np.float32)
  weight[[0, rows]] = 0.0  # two rows of padding
  batch = drift.batch_of(prompts=rows + 2, weight=jnp.asarray(weight))
  objective = objectives.beta_dpo(ratio=ratio)
  term = jax.jit(objective.apply)(drift.table_of(batch), batch)
  found = np.asarray(term.metrics['kept']) > 0
  assert found.sum() == expected
  assert not np.any(found[weight == 0])


@pytest.mark.slow  # oracle_test.py compares the loss of all pairs
def test_kept_pairs_have_the_loss_of_the_oracle_and_others_none():
  batch = fixtures.preference_batch(seed=5, prompts=12)
  policy, reference = fixtures.logits(1, batch), fixtures.logits(2, batch)
  objective = objectives.beta_dpo(beta=0.2, alpha=0.05, ratio=0.5)
  table = fixtures.from_logits(objective.needs, policy, reference, batch)
  loss, gradient = drift.value_and_gradient(objective, table, batch)
  chosen = kept(objective, table, batch)
  assert chosen.sum() == 6
  data = Data.of(batch, policy, reference)
  np.testing.assert_allclose(loss, oracle.beta_dpo(data, data, 0.2, 0.05, chosen), rtol=2e-6, atol=1e-6)
  assert not np.any(np.asarray(gradient['logp'])[~chosen])


@pytest.mark.slow  # oracle_test.py has the loss of kept pairs
def test_the_mean_over_the_batch_is_the_mean_over_the_kept_pairs():
  batch = drift.batch_of(hard=False)
  table = drift.table_of(batch, drift=0.0)
  loss = jax.jit(objectives.beta_dpo(ratio=0.6).apply)(table, batch).loss
  assert float(jnp.sum(batch.weight * loss) / jnp.sum(batch.weight)) == pytest.approx(math.log(2), rel=1e-6)


def test_strength_follows_the_margins_and_has_a_floor():
  batch = drift.batch_of()
  objective = objectives.beta_dpo(beta=0.1, alpha=0.6, ratio=1.0)
  memory = objective.memory.update(drift.table_of(batch), batch)
  own = moving_average.MarginAverage(0.9, length_normalised=False)
  found = []
  for shift in (-5.0, 0.0, 5.0):
    table = dataclasses.replace(drift.shifted(drift.table_of(batch), shift), memory=memory)
    strength = objective.apply(table, batch).metrics['beta']
    distance = float(moving_average.of_batch(own.margin(table), batch).mean - own.corrected(table, batch).mean)
    np.testing.assert_allclose(strength, max(0.1 * (1 + 0.6 * distance), 1e-3), rtol=1e-4)
    found.append(float(strength[0]))
  assert found[0] == pytest.approx(1e-3)
  assert found[1] == pytest.approx(0.1, rel=1e-4)
  assert found[2] > 0.2


def test_pairs_are_drawn_without_replacement_in_proportion_to_the_gaussian_of_their_margin():
  """One of four, 4000 times: the share of each is its weight over the sum; two of four: its inclusion probability."""
  draws_count, margins = 4000, np.asarray([0.0, 0.5, 1.0, 2.5])
  key = next(iter(objectives.beta_dpo().memory.initial)).rpartition('/')[0]
  base = drift.batch_of(prompts=4, weight=jnp.ones(4), response_length=jnp.ones((4, 2), jnp.int32))
  values = {'logp': jnp.zeros((4, 2, 7)).at[:, 0, 0].set(margins), 'reference_logp': jnp.zeros((4, 2, 7))}

  def draw(ratio):
    objective = objectives.beta_dpo(ratio=ratio)

    def once(count):
      correction = 1.0 - 0.9**count
      memory = {f'{key}/count': count, f'{key}/mean': 0.0 * correction, f'{key}/deviation': correction}
      table = stats.StatTable.create(values, base.response_length)
      return objective.apply(dataclasses.replace(table, memory=memory), base).metrics['kept']

    return np.asarray(jax.jit(jax.vmap(once))(jnp.arange(1.0, draws_count + 1)))

  weights = np.exp(-0.5 * margins**2)
  share = weights / weights.sum()
  tolerance = 4 * np.sqrt(0.25 / draws_count)
  np.testing.assert_allclose(draw(0.25).mean(axis=0), share, atol=tolerance)
  second = share + np.asarray([sum(share[j] * share[i] / (1 - share[j]) for j in range(4) if j != i) for i in range(4)])
  pairs = draw(0.5)
  assert np.all(pairs.sum(axis=1) == 2)
  np.testing.assert_allclose(pairs.mean(axis=0), second, atol=tolerance)


def test_draws_are_fresh_for_every_batch_and_the_same_in_evaluation():
  batch = drift.batch_of(prompts=16)
  table = drift.table_of(batch)
  objective = objectives.beta_dpo(ratio=0.5)
  seen = []
  for _ in range(4):
    table = dataclasses.replace(table, memory=objective.memory.update(table, batch))
    seen.append(kept(objective, table, batch))
    np.testing.assert_array_equal(kept(objective, table, batch), seen[-1])
  assert len({found.tobytes() for found in seen}) > 1


@pytest.fixture(scope='module')
def filtered():
  return testing.Setting.of(objectives.beta_dpo(beta=0.2, alpha=0.3, ratio=0.7))


@pytest.mark.slow  # the contract is checked for beta_dpo
@pytest.mark.parametrize('check', testing.PROPERTIES, ids=lambda check: check.__name__.removeprefix('check_'))
def test_the_filter_keeps_the_contract(filtered, check):
  check(filtered)
