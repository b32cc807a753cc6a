"""Sums, differences and multiples of objectives: losses, names, metrics, summaries, and scheduled coefficients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.objectives import namespaces
from tests import fixtures

BATCH = fixtures.preference_batch(seed=1)
TABLE = fixtures.from_logits(
  {stats.logp, stats.reference_logp, stats.log_collision},
  fixtures.logits(1, BATCH),
  fixtures.logits(2, BATCH),
  BATCH,
)
DPO, SFT, IPO = objectives.dpo(), objectives.sft(), objectives.ipo()


def term(objective, step=None):
  return objective.apply(dataclasses.replace(TABLE, step=step), BATCH)


def loss(objective):
  return np.asarray(term(objective).loss, np.float64)


@pytest.mark.parametrize(
  ('objective', 'name', 'expected'),
  [
    (sum([DPO, SFT]), f'{DPO} + {SFT}', lambda: loss(DPO) + loss(SFT)),
    (DPO - SFT, f'{DPO} - {SFT}', lambda: loss(DPO) - loss(SFT)),
    (DPO - 2 * SFT, f'{DPO} - 2 * {SFT}', lambda: loss(DPO) - 2 * loss(SFT)),
    (DPO - (SFT + IPO), f'{DPO} - {SFT} - {IPO}', lambda: loss(DPO) - loss(SFT) - loss(IPO)),
    (DPO - 2 * (SFT - IPO), f'{DPO} - 2 * ({SFT} - {IPO})', lambda: loss(DPO) - 2 * (loss(SFT) - loss(IPO))),
    (-DPO, f'-1 * {DPO}', lambda: -loss(DPO)),
    (-(-1 * DPO), f'{DPO}', lambda: loss(DPO)),
    (DPO / 4, f'0.25 * {DPO}', lambda: loss(DPO) / 4),
    (np.float32(0.5) * DPO, f'0.5 * {DPO}', lambda: 0.5 * loss(DPO)),
    (DPO * np.int64(3), f'3 * {DPO}', lambda: 3 * loss(DPO)),
    (jnp.float32(0.5) * DPO, f'0.5 * {DPO}', lambda: 0.5 * loss(DPO)),
    (2 * (3 * SFT), f'2 * (3 * {SFT})', lambda: 6 * loss(SFT)),
  ],
  ids=lambda value: value.name if isinstance(value, objectives.Objective) else '',
)
def test_operators(objective, name, expected):
  assert repr(objective) == objective.name == name
  np.testing.assert_allclose(loss(objective), expected(), rtol=1e-6, atol=1e-7)
  again = objectives.parse(name)
  assert again.name == name
  np.testing.assert_array_equal(loss(again), loss(objective))


@pytest.mark.parametrize('coefficient', [True, np.bool_(True), jnp.asarray(True)])
def test_a_truth_value_is_no_coefficient(coefficient):
  with pytest.raises(TypeError, match='truth value'):
    coefficient * DPO


@pytest.mark.parametrize('coefficient', [float('inf'), np.float32('nan'), jnp.float32('inf'), np.ones(2)])
def test_a_coefficient_is_one_finite_number(coefficient):
  with pytest.raises(ValueError, match=r'finite number|one real number'):
    DPO * coefficient


def test_a_traced_coefficient_is_differentiable():
  slope = jax.grad(lambda c: jnp.sum(term(c * DPO + SFT).loss))(jnp.float32(0.3))
  np.testing.assert_allclose(slope, loss(DPO).sum(), rtol=1e-5)


def test_parts_are_the_summands_with_their_coefficients():
  assert DPO.parts == ()
  inside = IPO + SFT
  one, two, three = (DPO - 0.5 * SFT + 2 * inside).parts
  assert (one, two) == ((1, DPO), (-0.5, SFT))
  assert three.coefficient == 2
  assert three.objective is inside
  assert [leaf.label for leaf in (2 * (IPO + SFT) + DPO).leaves] == ['ipo', 'sft', 'dpo']


def test_replacing_a_field_of_a_sum_makes_it_one_part():
  def halved(table, batch):
    found = (DPO + SFT).apply(table, batch)
    return found._replace(loss=0.5 * found.loss)

  single = dataclasses.replace(DPO + SFT, apply=halved, name='halved()')
  assert single.parts == ()
  np.testing.assert_allclose(loss(single + IPO), 0.5 * loss(DPO + SFT) + loss(IPO), rtol=1e-6)


def test_two_weighted_parts_report_two_effective_sample_shares():
  one, two = objectives.importance_weighted(DPO, clip=None), objectives.importance_weighted(IPO, per_length=True)

  def summary(objective):
    means = {name: jnp.average(value, weights=BATCH.weight) for name, value in term(objective).metrics.items()}
    return {name: float(value) for name, value in objective.summary(means).items()}

  share = 'importance/effective_sample_share'
  expected = summary(one)[share], summary(two)[share]
  assert expected[0] != pytest.approx(expected[1], rel=1e-3)
  both = summary(one + 0.5 * two)
  assert both[share] == pytest.approx(expected[0], rel=1e-6)
  assert both[f'importance_weighted_2/{share}'] == pytest.approx(expected[1], rel=1e-6)
  nested = summary(objectives.wpo_weighted(DPO + two) + one)
  assert nested[share] == pytest.approx(expected[1], rel=1e-6)
  assert nested[f'importance_weighted/{share}'] == pytest.approx(expected[0], rel=1e-6)
  twice = summary(objectives.importance_weighted(two, clip=None))
  assert twice[share] == pytest.approx(expected[0], rel=1e-6)
  assert twice[f'inner/{share}'] == pytest.approx(expected[1], rel=1e-6)


def test_a_part_of_a_nested_sum_labels_its_own_metrics():
  metrics = term(objectives.simpo() + 2 * (SFT + DPO)).metrics
  np.testing.assert_array_equal(metrics['dpo/reward_margin'], term(DPO).metrics['reward_margin'])
  assert 'sft/reward_margin' not in metrics


def test_namespaces_are_inverse():
  names = namespaces.Namespaces(['a', 'b', 'a'])
  parts = [{'x': 1, 'b/x': 2}, {'x': 3, 'y': 4}, {'x': 5, 'y': 6, 'a_2/x': 7}]
  joined = names.join(parts)
  assert len(joined) == 7
  for i, part in enumerate(parts):
    assert names.view(i, joined).items() >= part.items()


@pytest.mark.parametrize(('step', 'expected'), [(None, 0.8), (0, 0.8), (1, 0.65), (4, 0.2), (9, 0.2)])
def test_a_schedule_is_linear_and_then_constant(step, expected):
  objective = objectives.parse('dpo() + schedule(0.8, 0.2, steps=4) * sft()')
  step = None if step is None else jnp.int32(step)
  found = term(objective, step)
  np.testing.assert_allclose(found.loss, loss(DPO) + expected * loss(SFT), rtol=1e-6)
  np.testing.assert_allclose(found.metrics['sft/coefficient'], expected, rtol=1e-6)
  assert found.metrics['sft/coefficient'].shape == BATCH.label.shape
  assert not any('coefficient' in name for name in term(DPO + 0.5 * SFT).metrics)


def test_a_schedule_over_a_sum_is_reported_by_each_part_and_subtracts():
  schedule = objectives.schedule(1.0, 0.0, 4)
  found = term(IPO - 2 * (schedule * (DPO + SFT)), jnp.int32(1))
  np.testing.assert_allclose(found.loss, loss(IPO) - 1.5 * (loss(DPO) + loss(SFT)), rtol=1e-6)
  for name in ('dpo', 'sft'):
    np.testing.assert_allclose(found.metrics[f'{name}/coefficient'], -1.5)
  np.testing.assert_allclose(term(DPO - schedule * SFT, jnp.int32(1)).loss, loss(DPO) - 0.75 * loss(SFT), rtol=1e-6)


@pytest.mark.parametrize(
  'arguments', [(np.nan, 0.0, 3), (1.0, np.inf, 3), (1.0, 0.0, 0), (1.0, 0.0, 2.5), (1, True, 3)]
)
def test_a_schedule_that_cannot_be_is_refused_by_name(arguments):
  with pytest.raises(ValueError, match='schedule: '):
    objectives.schedule(*arguments)
