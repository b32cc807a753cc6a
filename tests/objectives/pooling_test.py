"""Pools: the losses of parts of a batch are those of the whole, given the sums over all parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, testing
from alignjax.objectives import base, pooling

ALL = 'kto(beta=0.5) + 0.5 * bco(beta=0.5) + kto(beta=1.0)'
OTHERS = (  # relatives of the first
  'bco(momentum=0.9)',
  'importance_weighted(dpo(), self_normalised=True)',
  "clipped_policy_gradient(aggregate='token_mean')",
)


@pytest.mark.parametrize('expression', [ALL, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_losses_of_parts_are_those_of_the_whole(expression):
  objective = objectives.parse(expression)
  setting = testing.Setting.of(objective, 2)
  parts = [jax.tree.map(lambda x, at=at: x[at], (setting.table, setting.batch)) for at in (slice(0, 1), slice(1, None))]
  sums = [objective.pool.sums(*part) for part in parts]
  assert sums[0].keys() == objective.pool.names
  total = {name: sums[0][name] + sums[1][name] for name in sums[0]}

  def losses(pool):
    return np.concatenate(
      [objective.apply(dataclasses.replace(table, pool=pool), batch).loss for table, batch in parts]
    )

  np.testing.assert_allclose(losses(total), setting.term.loss, rtol=1e-6, atol=1e-7)
  assert np.abs(losses({}) - setting.term.loss).max() > 1e-4  # without the sums, each part is a batch of its own


def test_sums_have_no_gradient():
  objective = objectives.parse(ALL)
  setting = testing.Setting.of(objective, 2)

  def total(values):
    sums = objective.pool.sums(dataclasses.replace(setting.table, values=values), setting.batch)
    return sum(each.total + each.weight for each in sums.values())

  assert not any(map(np.any, jax.tree.leaves(jax.grad(total)(dict(setting.table.values)))))


def test_the_pool_of_a_sum_has_each_sum_once():
  one, other = objectives.kto(beta=0.5), objectives.kto(beta=1.0)
  assert len((one + 0.1 * one).pool.names) == 1
  assert (one + other + objectives.sft()).pool.names == one.pool.names | other.pool.names
  assert not (objectives.dpo() + objectives.aot()).pool.names


def test_a_pool_is_a_coupling():
  pool = pooling.Pool(frozenset({'x'}), lambda table, batch: {'x': jnp.zeros(())})
  with pytest.raises(ValueError, match=r'mine: an objective that pools prompts must declare couples_rows=True'):
    base.Objective(frozenset(), lambda table, batch: None, pool=pool, name='mine')
