"""Training on packed rows is training on the same prompts in an ordinary batch: losses, metrics, gradients, caches."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives, stats
from alignjax.data.batches import packed, reference_cache
from alignjax.models import lora, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import forward, gradients, references, rows
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import Head
from tests import packed_batches
from tests.models import token_batches
from tests.oracles import cases
from tests.training import bigram

# With a reward besides the logits.
MODEL = bigram.MODEL._replace(
  head=lambda params: Head(params['embed']['embedding'].T, score=params['up']['kernel'][:, :1])
)
PARAMS = bigram.params(0)
# Close to the policy: exponentials of large log-ratios would magnify the rounding of their sums.
REFERENCE = jax.tree.map(lambda x, y: x + 0.1 * y, PARAMS, bigram.params(1))
CHUNK = 40


@functools.cache
def data_of(responses, count=9):
  return packed_batches.examples(count, responses, vocabulary=bigram.VOCAB, longest=(20, 12))


@functools.cache
def both(responses=2, unit=2):
  return packed_batches.both(data_of(responses), unit, final=True)


def frozen_of(objective, reference=REFERENCE):
  memory = {name: jnp.asarray(value, jnp.float32) for name, value in objective.memory.initial.items()}
  return training_state.Frozen(references.Live(reference), memory=memory, step=jnp.asarray(3, jnp.int32))


def gradient_of(objective, batch, layout, params=PARAMS):
  differentiate = gradients.coupled if objective.couples_rows else gradients.rowwise
  return differentiate(Policy(MODEL), objective, params, frozen_of(objective), batch, layout)


def assert_same(found, expected, name=''):
  """Gradients by their largest entry, sums and memory as means."""
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected.total))
  for a, b in zip(jax.tree.leaves(found.total), jax.tree.leaves(expected.total), strict=True):
    np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=3e-6, err_msg=name)
  assert found.sums.keys() == expected.sums.keys()
  for key, value in expected.sums.items():
    mean = float(value.mean())
    np.testing.assert_allclose(float(found.sums[key].mean()), mean, rtol=3e-6, atol=3e-6, err_msg=f'{name}: {key}')
  for key, value in expected.memory.items():
    np.testing.assert_allclose(found.memory[key], value, rtol=3e-6, atol=3e-6, err_msg=f'{name}: {key}')


def compare(chosen, responses, microbatches):
  """Compares objectives, all in one program."""
  layout, (batch, plain) = rows.Layout(CHUNK, microbatches), both(responses)

  @jax.jit
  def compute(batch, plain):
    return [
      (gradient_of(each, batch, layout), gradient_of(each, plain, rows.Layout(10_000))) for each in chosen.values()
    ]

  for name, (found, expected) in zip(chosen, compute(batch, plain), strict=True):
    assert_same(found, expected, name)


@pytest.mark.parametrize('name', ['dpo(beta=0.1)', pytest.param('alpha_dpo(beta=0.3)', marks=pytest.mark.slow)])
def test_microbatches_of_rows_give_what_a_batch_gives(name):
  compare({name: objectives.parse(name)}, 2, microbatches=2)


@pytest.mark.slow
@pytest.mark.parametrize('responses', sorted({case.responses for case in cases.CASES}))
@pytest.mark.parametrize('part', range(6))
def test_every_objective_sees_what_it_sees_in_a_batch(responses, part):
  chosen = [case.expression for case in cases.CASES if case.responses == responses][part::6]
  compare({name: objectives.parse(name) for name in chosen}, responses, microbatches=1)


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 4, 1)])
@pytest.mark.parametrize('name', ['dpo(beta=0.1)', 'alpha_dpo(beta=0.3)'])
@pytest.mark.parametrize('microbatches', [1, 2])
def test_meshes_and_microbatches_change_nothing(shape, name, microbatches):
  mesh, objective = parallel_mesh.make_mesh(*shape), objectives.parse(name)
  batch, plain = packed_batches.both(data_of(2, 24), unit=16, final=True)
  expected = jax.jit(lambda batch: gradient_of(objective, batch, rows.Layout(CHUNK)))(plain)
  place = jax.device_put(batch, rules.batch_sharding(mesh))
  params = jax.device_put(PARAMS, rules.replicated(mesh))
  found = jax.jit(lambda batch: gradient_of(objective, batch, rows.Layout(CHUNK, microbatches, mesh), params))(place)
  assert_same(jax.device_get(found), expected)


class Cache(NamedTuple):
  """Stands for a `ReferenceCache` of some column."""

  columns: dict[str, reference_cache.Column]
  values: list[list[np.ndarray]]  # of each example, one array per response

  def read(self, index):
    return dict.fromkeys(self.columns, self.values[index])


def test_cached_outputs_of_the_reference_are_read_where_they_belong():
  data, (_, plain) = data_of(2), both()
  hidden = forward.hidden_states(bigram.MODEL, REFERENCE, plain)
  table = jax.jit(lambda: stats.statistics({stats.reference_logp}, hidden, hidden, plain, chunk=10_000))()
  objective = objectives.dpo(beta=0.1) + 0.1 * objectives.sft()
  step = jax.jit(training_step.build_eval_step(Policy(bigram.MODEL), objective, chunk=CHUNK))
  spec = packed_batches.spec(data)
  ids = next(iter(packed.make_batches(data, spec, packed.Rows(2)))).ids
  expected = step(PARAMS, frozen_of(objective), plain)
  for reference, name, column, values in (
    (references.NotLoaded(), 'reference_logp', (), table[stats.reference_logp]),
    (references.CachedStates(bigram.MODEL.head(REFERENCE)), references.STATES, (bigram.WIDTH,), hidden.states),
  ):
    of_slot = [
      [np.asarray(value[n, :length]) for n, length in enumerate(lengths)]
      for value, lengths in zip(np.asarray(values), np.asarray(plain.response_length), strict=True)
    ]
    examples = {int(index): of_slot[slot] for slot, index in enumerate(ids) if index >= 0}
    cache = Cache({name: reference_cache.Column(column, 'float32')}, [examples[i] for i in range(len(data))])
    batch = next(iter(packed.make_batches(data, spec, packed.Rows(2), cache=cache))).data
    found = step(PARAMS, dataclasses.replace(frozen_of(objective), reference=reference), batch)
    for key, value in expected.items():
      np.testing.assert_allclose(found[key].mean(), value.mean(), rtol=3e-6, atol=1e-6, err_msg=key)


def shapes_in(jaxpr):
  """The shapes of all arrays that a program computes."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.shape for variable in equation.outvars if hasattr(variable.aval, 'shape'))
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        if hasattr(inner, 'jaxpr'):
          yield from shapes_in(inner.jaxpr)
        elif hasattr(inner, 'eqns'):
          yield from shapes_in(inner)


def test_logits_exist_for_one_chunk_at_a_time():
  vocabulary, objective, (batch, _) = 997, objectives.parse('tdpo()'), both()
  params = jax.eval_shape(lambda: bigram.params(0, vocabulary))
  tx = optax.sgd(1.0)
  state = jax.eval_shape(lambda params: training_state.TrainState.create(params, tx, jax.random.key(0)), params)
  step = training_step.build_train_step(Policy(bigram.MODEL), objective, tx, chunk=CHUNK)
  traced = jax.make_jaxpr(step)(state, training_state.Frozen(references.Live(params)), batch)
  wide = {shape for shape in shapes_in(traced.jaxpr) if vocabulary in shape}
  assert wide
  assert max(map(np.prod, wide)) <= CHUNK * vocabulary < batch.rows.target.shape[1] * vocabulary


def test_all_steps_of_an_epoch_have_one_shape():
  data = packed_batches.examples(40, vocabulary=bigram.VOCAB)
  batches = packed.make_batches(data, dataclasses.replace(packed_batches.spec(data), batch_size=8), packed.Rows(2))
  assert len({tuple(leaf.shape for leaf in jax.tree.leaves(batch.data)) for batch in batches}) == 1


@pytest.mark.slow
def test_a_decoder_with_adapters_trains_as_in_a_batch():
  config = dataclasses.replace(token_batches.CONFIG, layers=1)
  model, adapter = transformer.build(config), lora.LoRA(rank=2)
  base = jax.tree.map(jnp.asarray, token_batches.params(model))
  params = lora.init(jax.random.key(1), base, adapter)
  params = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
  objective, (batch, plain) = objectives.dpo(beta=0.3), packed_batches.both(packed_batches.examples())
  frozen = training_state.Frozen(references.Base(), base=base, step=jnp.zeros((), jnp.int32))

  @jax.jit
  def compute(params, batch):
    return gradients.rowwise(Policy(model, adapter), objective, params, frozen, batch, rows.Layout(CHUNK))

  assert_same(compute(params, batch), compute(params, plain))


def test_a_model_that_cannot_read_packed_rows_and_rows_without_final_states_are_refused():
  (batch, _), objective = both(), objectives.parse('bradley_terry()')
  with pytest.raises(ValueError, match='cannot read packed rows'):
    forward.hidden_states(bigram.MODEL._replace(packed=None), PARAMS, batch)
  short, _ = packed_batches.both(data_of(2))
  with pytest.raises(ValueError, match=r'Rows\(final=True\)'):
    forward.hidden_states(MODEL, PARAMS, short, objective.needs)


@pytest.mark.slow
def test_all_statistics_and_their_gradients_are_those_of_a_batch():
  """So every objective sees the same table; tests/contract_test.py checks that padding rows do not matter."""
  needs = frozenset().union(*(objectives.parse(case.expression).needs for case in cases.CASES))
  batch, plain = both()
  valid = jnp.asarray(packed_batches.valid(batch))

  def table_of(params, batch):
    hidden = forward.hidden_states(MODEL, params, batch, needs)
    reference = forward.hidden_states(MODEL, REFERENCE, batch)
    table = forward.table(needs, hidden, reference, batch, rows.Layout(10_000))
    kept = {2: valid[:, :, 0], 3: valid}
    return {name: jnp.where(kept[value.ndim], value, 0.0) for name, value in table.values.items()}

  @jax.jit
  def compute(params, batch, plain):
    expected, pull = jax.vjp(lambda params: table_of(params, plain), params)
    found, pull_packed = jax.vjp(lambda params: table_of(params, batch), params)
    cotangents = {
      name: jax.random.normal(jax.random.key(i), value.shape) for i, (name, value) in enumerate(expected.items())
    }
    return found, expected, pull_packed(cotangents), pull(cotangents)

  found, expected, gradient, expected_gradient = compute(PARAMS, batch, plain)
  assert {stat.name for stat in needs} == expected.keys()
  for name, value in expected.items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(found[name] / scale, value / scale, rtol=0, atol=2e-6, err_msg=name)
  for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
    np.testing.assert_allclose(one / np.abs(other).max(), other / np.abs(other).max(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_sums_of_an_evaluation_are_those_of_a_batch():
  (batch, plain), objective = both(responses=1), objectives.parse('kto()')
  pool = jax.jit(training_step.build_pool_step(Policy(MODEL), objective, chunk=CHUNK))
  found, expected = (pool(PARAMS, frozen_of(objective), each) for each in (batch, plain))
  assert expected.keys() == found.keys() != set()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name].mean(), value.mean(), rtol=3e-6, atol=1e-6)
