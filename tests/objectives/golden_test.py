"""Objectives that reproduce released code, against numbers that `tests/golden/make_objectives.py` has worked out."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.types import PreferenceBatch

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / 'golden' / 'objectives.json').read_text(encoding='utf-8'))


def described(case):
  return ', '.join(f'{name}={value}' for name, value in case['arguments'].items())


def cases(name, quick=None):
  """The first `quick` cases, and with --slow the others."""
  every = GOLDEN[name]['cases']
  marked = [pytest.param(case, marks=pytest.mark.slow) for case in every[quick:]] if quick else []
  return pytest.mark.parametrize('case', [*every[:quick], *marked], ids=[described(case) for case in every])


def batch_of(length, target=None, behaviour_logp=None):
  length = jnp.asarray(length, jnp.int32)
  rows, size = length.shape[0], int(length.max())
  return PreferenceBatch(
    prompt=jnp.zeros((rows, 1), jnp.int32),
    prompt_length=jnp.ones(rows, jnp.int32),
    response=jnp.zeros((*length.shape, size), jnp.int32) if target is None else jnp.asarray(target, jnp.int32),
    response_length=length,
    label=jnp.ones(rows),
    weight=jnp.ones(rows),
    behaviour_logp=None if behaviour_logp is None else jnp.asarray(behaviour_logp, jnp.float32),
  )


def table_of(data):
  values = {name: jnp.asarray(data[name], jnp.float32) for name in ('logp', 'reference_logp')}
  return stats.StatTable.create(values, jnp.asarray(data['length'], jnp.int32))


def slopes(objective, table, batch):
  """d loss / d log-probability, summed over the tokens of each response: [B, 2]."""

  def total(logp):
    return jnp.sum(objective.apply(dataclasses.replace(table, values={**table.values, 'logp': logp}), batch).loss)

  return jnp.sum(jax.grad(total)(table[stats.logp]), axis=-1)


def assert_close(found, expected):
  expected = np.asarray(expected)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * max(1.0, np.abs(expected).max()))


@cases('alpha_dpo_released')
def test_alpha_dpo_over_four_steps(case):
  objective = objectives.alpha_dpo_released(**case['arguments'])
  memory = {name: jnp.asarray(value, jnp.float32) for name, value in objective.memory.initial.items()}
  for data, expected in zip(GOLDEN['alpha_dpo_released']['steps'], case['steps'], strict=True):
    batch, table = batch_of(data['length']), dataclasses.replace(table_of(data), memory=memory)
    memory = objective.memory.update(table, batch)
    table = dataclasses.replace(table, memory=memory)
    for name in ('mean', 'deviation'):
      assert_close(next(value for key, value in memory.items() if key.endswith(f'/{name}')), expected[name])
    assert_close(objective.apply(table, batch).loss, expected['loss'])
    found = slopes(objective, table, batch)  # of means over tokens: the sum over tokens is the slope in the mean
    assert_close(found[:, 0], expected['slope'])
    assert_close(found[:, 1], -np.asarray(expected['slope']))


@pytest.mark.slow  # the same steps one after another are tested above
@cases('alpha_dpo_released', quick=1)
def test_alpha_dpo_in_one_step_of_four_groups(case):
  """The four steps above are microbatches of one optimizer step, as in a published run."""
  steps = GOLDEN['alpha_dpo_released']['steps']
  rows = len(steps[0]['length'])
  objective = objectives.alpha_dpo_released(**case['arguments'], statistics_rows=rows)
  batch = batch_of(np.concatenate([step['length'] for step in steps]))
  whole = {name: np.concatenate([step[name] for step in steps]) for name in ('logp', 'reference_logp', 'length')}
  before = {name: jnp.asarray(value, jnp.float32) for name, value in objective.memory.initial.items()}
  table = dataclasses.replace(table_of(whole), memory=before)
  table = dataclasses.replace(table, memory=objective.memory.update(table, batch), before=before)
  for name in ('mean', 'deviation'):
    after = next(value for key, value in table.memory.items() if key.endswith(f'/{name}'))
    assert_close(after, case['steps'][-1][name])
  assert_close(objective.apply(table, batch).loss, np.concatenate([step['loss'] for step in case['steps']]))
  found = slopes(objective, table, batch)
  assert_close(found[:, 0], np.concatenate([step['slope'] for step in case['steps']]))


@cases('importance_weighted')
def test_importance_weighted_dpo(case):
  data, arguments = GOLDEN['importance_weighted'], case['arguments']
  objective = objectives.importance_weighted(objectives.dpo(beta=arguments['beta']), clip=arguments['epsilon'])
  batch = batch_of(data['length'], behaviour_logp=data['behaviour_logp'] if arguments['stored'] else None)
  table = table_of(data)
  term = objective.apply(table, batch)
  assert_close(term.metrics['importance/weight'], case['weight'])
  assert_close(term.loss, case['loss'])
  found = slopes(objective, table, batch) / table.length
  assert_close(found[:, 0], case['slope'])
  assert_close(found[:, 1], -np.asarray(case['slope']))


def test_importance_weights_are_clipped_in_some_rows_and_not_in_others():
  """Else the numbers above would not tell a clip from none."""
  for case in GOLDEN['importance_weighted']['cases']:
    if case['arguments']['epsilon'] == 0.25:
      clipped = np.isclose(case['weight'], np.exp(0.5))
      assert 0 < clipped.sum() < len(clipped)


@cases('ra_dpo_released', quick=3)  # both variants, and without the split
def test_risk_aware_dpo(case):
  data, arguments = GOLDEN['ra_dpo_released'], dict(case['arguments'])
  objective = objectives.ra_dpo_released(split_vocabulary=arguments.pop('split'), **arguments)
  batch = batch_of(data['length'], target=data['target'])
  reference = jnp.asarray(data['reference_logits'], jnp.float32)

  def total(logits):
    found = objective.apply(stats.from_logits(objective.needs, logits, reference, batch), batch)
    return jnp.sum(found.loss), found

  policy = jnp.asarray(data['policy_logits'], jnp.float32)
  (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(policy)
  assert_close(found.metrics['risk_ratio_chosen'], np.asarray(case['risk'])[:, 0])
  assert_close(found.metrics['risk_ratio_rejected'], np.asarray(case['risk'])[:, 1])
  assert_close(found.loss, case['loss'])
  assert_close(gradient, case['gradient'])


def test_every_setting_has_numbers_of_its_own():
  """Else a setting might be ignored and nobody would see."""
  for name, entry in GOLDEN.items():
    losses = [np.ravel([step['loss'] for step in case.get('steps', [case])]) for case in entry['cases']]
    assert len({tuple(np.round(loss, 5)) for loss in losses}) == len(losses), name
