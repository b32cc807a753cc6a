"""The contract that every exported objective keeps, whatever it computes.

An objective that is added to `alignjax.objectives.OBJECTIVES` needs a case in `tests/oracles`, with its value at policy
== reference if that is documented; all properties then hold it to account.
"""

import dataclasses
import inspect
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.types import PreferenceBatch
from tests import fixtures
from tests.oracles import cases


class RecordingTable:
  """A table that notes which statistics an objective reads."""

  def __init__(self, table: stats.StatTable):
    self._table, self.read = table, set()

  def __getitem__(self, stat):
    self.read.add(stat)
    return self._table[stat]

  length = property(lambda self: self._table.length)
  memory = property(lambda self: self._table.memory)
  mask = property(lambda self: self._table.mask)
  sum = stats.StatTable.sum
  mean = stats.StatTable.mean
  log_ratio = stats.StatTable.log_ratio


def evaluate(objective, policy, reference, batch):
  return objective.apply(stats.from_logits(objective.needs, policy, reference, batch), batch)


def total(objective, policy, reference, batch):
  return jnp.sum(batch.weight * evaluate(objective, policy, reference, batch).loss)


FIRST = list({case.expression.split('(')[0]: case for case in reversed(cases.CASES)}.values())  # of each objective
COUPLED = [case for case in cases.CASES if objectives.parse(case.expression).couples_rows]
# For properties that take long to compile, and depend on hyper-parameters only where these couple rows.
ON_FEWER = pytest.mark.parametrize(
  'case', FIRST + [case for case in COUPLED if case not in FIRST], indirect=True, ids=lambda case: case.expression
)


@pytest.fixture(scope='module', params=cases.CASES, ids=lambda case: case.expression)
def case(request):
  known = request.param
  batch = fixtures.preference_batch(seed=3, responses=known.responses)
  return (
    known,
    objectives.parse(known.expression),
    batch,
    fixtures.logits(1, batch),
    fixtures.logits(2, batch),
  )


def test_every_exported_objective_has_a_case():
  tested = ' '.join(case.expression for case in cases.CASES)
  assert [name for name in objectives.OBJECTIVES if not re.search(rf'\b{name}\(', tested)] == []
  assert set(objectives.OBJECTIVES) <= set(objectives.__all__)


def test_reads_exactly_what_it_declares(case):
  _, objective, batch, policy, reference = case
  table = RecordingTable(stats.from_logits(objective.needs, policy, reference, batch))
  objective.apply(table, batch)
  assert table.read == objective.needs


def test_loss_is_float32_and_finite_for_bfloat16_logits(case):
  _, objective, batch, policy, reference = case
  term = evaluate(objective, policy.astype(jnp.bfloat16), reference.astype(jnp.bfloat16), batch)
  chex.assert_shape(term.loss, (batch.prompt.shape[0],))
  chex.assert_type(term.loss, jnp.float32)
  for value in term.metrics.values():
    chex.assert_shape(value, (batch.prompt.shape[0],))
  chex.assert_tree_all_finite(term)


@pytest.mark.parametrize('magnitude', [0.0, 1e-4, 1e4])
def test_finite_for_extreme_log_ratios(case, magnitude):
  _, objective, batch, policy, reference = case
  chex.assert_tree_all_finite(jax.grad(total, 1)(objective, magnitude * policy, -magnitude * reference, batch))
  chex.assert_tree_all_finite(evaluate(objective, magnitude * policy, -magnitude * reference, batch))


def test_padding_content_changes_neither_loss_nor_gradient(case):
  _, objective, batch, policy, reference = case
  padding = ~np.asarray(stats.from_logits(objective.needs, policy, reference, batch).mask)
  junk = dataclasses.replace(batch, response=jnp.where(padding, (batch.response + 3) % 11, batch.response))
  noisy = jnp.where(padding[..., None], 50.0 * jnp.cos(jnp.arange(policy.size).reshape(policy.shape)), policy)
  value, gradient = jax.value_and_grad(total, 1)(objective, policy, reference, batch)
  noisy_value, noisy_gradient = jax.value_and_grad(total, 1)(objective, noisy, reference, junk)
  assert value == noisy_value
  np.testing.assert_array_equal(gradient, noisy_gradient)
  assert not np.any(np.asarray(gradient)[padding])
  assert np.any(gradient)


def test_permuting_prompts_permutes_losses(case):
  _, objective, batch, policy, reference = case
  order = np.random.default_rng(0).permutation(batch.prompt.shape[0])
  permuted = jax.tree.map(lambda x: x[order], (policy, reference, batch))
  np.testing.assert_allclose(
    evaluate(objective, *permuted).loss, evaluate(objective, policy, reference, batch).loss[order], rtol=1e-6
  )


@ON_FEWER
def test_weight_zero_is_deletion(case):
  _, objective, batch, policy, reference = case
  keep = jnp.asarray([1, 0, 1, 1, 0, 1], jnp.float32)
  masked = dataclasses.replace(batch, weight=batch.weight * keep)
  deleted = jax.tree.map(lambda x: x[np.asarray(keep) > 0], (policy, reference, batch))
  gradient = jax.grad(total, 1)(objective, policy, reference, masked)
  np.testing.assert_allclose(total(objective, policy, reference, masked), total(objective, *deleted), rtol=1e-6)
  np.testing.assert_allclose(
    gradient[np.asarray(keep) > 0], jax.grad(total, 1)(objective, *deleted), rtol=1e-5, atol=1e-7
  )
  assert not np.any(gradient[np.asarray(keep) == 0])


def test_no_gradient_enters_the_reference(case):
  _, objective, batch, policy, reference = case
  assert not np.any(jax.grad(total, 2)(objective, policy, reference, batch))


def test_metrics_carry_no_gradient(case):
  _, objective, batch, policy, reference = case

  def metrics(policy):
    return sum(jnp.sum(value) for value in evaluate(objective, policy, reference, batch).metrics.values())

  assert not np.any(jax.grad(metrics)(policy))


@ON_FEWER
def test_eager_jit_vmap_pmap_agree(case):
  _, objective, batch, policy, reference = case

  def loss(policy: jax.Array, reference: jax.Array, batch: PreferenceBatch) -> jax.Array:
    return evaluate(objective, policy, reference, batch).loss

  expected = loss(policy, reference, batch)
  np.testing.assert_allclose(jax.jit(loss)(policy, reference, batch), expected, rtol=1e-5, atol=1e-6)
  if objective.couples_rows:
    return  # one prompt alone is another batch
  for transform in (jax.vmap, jax.pmap):
    rows = jax.tree.map(lambda x: x[:, None], (policy, reference, batch))
    np.testing.assert_allclose(transform(loss)(*rows)[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_documented_value_at_the_reference(case):
  known, objective, batch, policy, _ = case
  if known.at_reference is None:
    return
  hard = dataclasses.replace(batch, label=jnp.ones_like(batch.label))
  term = evaluate(objective, policy, policy, hard)
  np.testing.assert_allclose(term.loss, known.at_reference, rtol=1e-6, atol=1e-6)
  for side in ('reward_chosen', 'reward_rejected', 'reward_margin'):
    np.testing.assert_array_equal(term.metrics.get(side, 0.0), 0.0)
  np.testing.assert_array_equal(term.metrics.get('reward_accuracy', 0.5), 0.5)


def test_algebra(case):
  known, objective, batch, policy, reference = case
  other = objectives.dpo(beta=0.7) if known.responses == 2 else objectives.sft()
  combined = evaluate(objective + 0.5 * other, policy, reference, batch)
  one, two = (evaluate(part, policy, reference, batch) for part in (objective, other))
  np.testing.assert_allclose(combined.loss, one.loss + 0.5 * two.loss, rtol=1e-6)
  np.testing.assert_allclose(evaluate(2 * objective, policy, reference, batch).loss, 2 * one.loss, rtol=1e-6)
  assert (objective + other).needs == objective.needs | other.needs
  for name, value in one.metrics.items():
    np.testing.assert_array_equal(combined.metrics[name], value)
  assert (objective + other).memory.initial == objective.memory.initial


def test_name_builds_the_same_objective(case):
  _, objective, batch, policy, reference = case
  again = objectives.parse(objective.name)
  assert again.name == objective.name
  assert (again.needs, again.couples_rows) == (objective.needs, objective.couples_rows)
  np.testing.assert_array_equal(
    evaluate(again, policy, reference, batch).loss, evaluate(objective, policy, reference, batch).loss
  )


def test_missing_reference_is_named(case):
  _, objective, batch, policy, _ = case
  if any(stat.reference for stat in objective.needs):
    with pytest.raises(ValueError, match='read the reference'):
      evaluate(objective, policy, None, batch)
  else:
    assert np.all(np.isfinite(evaluate(objective, policy, None, batch).loss))


@pytest.mark.parametrize('responses', [1, 2, 3])
@pytest.mark.parametrize('scored', [True, False], ids=['scored', 'unscored'])
def test_a_batch_is_taken_or_refused_by_name_when_it_is_traced(case, responses, scored):
  _, objective, *_ = case
  batch = fixtures.preference_batch(seed=4, prompts=2, responses=responses)
  batch = batch if scored else dataclasses.replace(batch, score=None)
  values = jax.ShapeDtypeStruct(batch.response.shape, jnp.float32)
  table = stats.StatTable({stat.name: values for stat in objective.needs}, batch.response_length)
  refusal = ''
  try:
    assert jax.eval_shape(objective.apply, table, batch).loss.shape == (2,)
  except ValueError as error:
    refusal = str(error)
  if refusal:
    assert re.match(r'\w+', refusal)[0] in re.findall(r'(\w+)\(', objective.name)
    assert 'N = ' in refusal or 'batch.score' in refusal


def hyper_parameters():
  for name, build in objectives.OBJECTIVES.items():
    for parameter in inspect.signature(build).parameters.values():
      if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
        yield pytest.param(name, parameter.name, id=f'{name}({parameter.name}=nan)')


@pytest.mark.parametrize(('name', 'parameter'), list(hyper_parameters()))
def test_a_hyper_parameter_that_is_no_number_is_refused_by_name(name, parameter):
  build = objectives.OBJECTIVES[name]
  inner = [objectives.dpo()] if next(iter(inspect.signature(build).parameters)) == 'objective' else []
  with pytest.raises(ValueError, match=rf'{name}: '):
    build(*inner, **{parameter: math.nan})
