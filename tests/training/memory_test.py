"""What an objective remembers of batches is carried by the step, saved and restored, and only read in evaluation."""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives, stats
from alignjax.data.batches import batching
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import checkpoint, held_out, loop, placement, references, source
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from tests import fixtures
from tests.training import bigram, step_test

MODEL = bigram.MODEL
# Statistics per token and per response, also of groups of rows, and a random choice of pairs, fresh at every step.
OBJECTIVE = (
  objectives.alpha_dpo(beta=1.0, normaliser='ema')
  + 0.5 * objectives.beta_dpo(beta=0.2, ratio=0.5)
  + 0.5 * objectives.alpha_dpo_released(beta=1.0, alpha=0.02, statistics_rows=4)
)
TX = optax.sgd(0.5)
MESH = mesh_lib.make_mesh(2, 2, 2)
ROWS, STEPS = 16, 3


def make_batch(index):
  batch = fixtures.preference_batch(seed=index, prompts=ROWS, vocab=bigram.VOCAB)
  return dataclasses.replace(batch, weight=batch.weight * (np.arange(ROWS) != 3))  # a padding row


@pytest.fixture(scope='module')
def params():
  return bigram.params(0), bigram.params(1)


def batches_of(name, steps):
  """The number of batches or groups, of at most 4 of the 15 rows that count, that a statistic has seen."""
  return 4 * steps if 'rows=4' in name else steps


def copies(tree):
  return jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), tree)


def plain_steps(params, reference, count):
  """Gradient descent through full logits, with the memory updated by hand before each step."""

  def table(params, batch, memory, before=None):
    def logits(params):
      states = MODEL.hidden(params, batch.prompt, batch.prompt_length, batch.response, batch.response_length)
      return jnp.einsum('bnrd,dv->bnrv', states, MODEL.head(params).kernel)

    found = stats.from_logits(OBJECTIVE.needs, logits(params), logits(reference), batch)
    return dataclasses.replace(found, memory=memory, before=before)

  @jax.jit
  def step(params, batch, before):
    memory = OBJECTIVE.memory.update(table(params, batch, before), batch)

    def loss(params):
      losses = OBJECTIVE.apply(table(params, batch, memory, before), batch).loss
      return jnp.sum(batch.weight * losses) / jnp.sum(batch.weight)

    return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params)), memory

  memory = {name: jnp.float32(0) for name in OBJECTIVE.memory.initial}
  for index in range(count):
    params, memory = step(params, make_batch(index), memory)
  return params, memory


@pytest.fixture(scope='module')
def expected(params):
  return plain_steps(*params, count=STEPS)


def check(state, expected):
  """A state after three steps against the parameters and the memory of plain steps."""
  wanted, memory = expected
  assert set(state.memory) == set(OBJECTIVE.memory.initial)
  for name, value in memory.items():
    np.testing.assert_allclose(state.memory[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    assert value == batches_of(name, STEPS) if name.endswith('count') else value != 0
  for found, value in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('microbatches', 'shape'),
  [
    pytest.param(1, None, marks=pytest.mark.slow),
    pytest.param(2, None, marks=pytest.mark.slow),
    pytest.param(4, None, marks=pytest.mark.slow),
    pytest.param(1, (8, 1, 1), marks=pytest.mark.slow),
    pytest.param(2, (2, 2, 2), marks=pytest.mark.slow),  # those of the run in a loop below
  ],
)
def test_it_is_that_of_whole_batches_for_any_number_of_microbatches_and_any_mesh(params, expected, microbatches, shape):
  mesh = None if shape is None else mesh_lib.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
  options = {'chunk': 64, 'microbatches': microbatches, 'mesh': mesh}
  step = jax.jit(step_lib.build_train_step(Policy(MODEL), OBJECTIVE, TX, **options))
  state = state_lib.TrainState.create(copies(params[0]), TX, jax.random.key(0), OBJECTIVE.memory.initial)
  frozen = state_lib.Frozen(references.Live(params[1]))
  if mesh is not None:
    state = jax.device_put(state, state_lib.shardings(mesh, state))
  for index in range(STEPS):
    batch = make_batch(index)
    state, _ = step(state, frozen, batch if mesh is None else step_test.placed(batch, rules.batch_sharding(mesh)))
  check(state, expected)


# Around the loop


def make_source():
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

  def batch(index):
    return batching.Batch(jax.device_get(make_batch(index)), np.arange(ROWS))

  return source.GrainSource(iter(grain.MapDataset.range(10**6).map(batch).to_iter_dataset(options)))


@pytest.fixture(scope='module')
def programs():
  step = step_lib.build_train_step(Policy(MODEL), OBJECTIVE, TX, chunk=64, microbatches=2, mesh=MESH)
  return step, step_lib.build_eval_step(Policy(MODEL), OBJECTIVE, chunk=64, mesh=MESH)


def make_state(params):
  placed = jax.device_put(copies(params[0]), rules.param_shardings(MESH, params[0]))
  return placement.create_state(MESH, placed, TX, jax.random.key(0), OBJECTIVE.memory.initial)


def frozen_of(params):
  return state_lib.Frozen(references.Live(jax.device_put(params[1], rules.param_shardings(MESH, params[1]))))


class Recorder:
  """A writer that remembers."""

  def __init__(self):
    self.records = []

  def write(self, step, values):
    self.records.append((step, {name: value for name, value in values.items() if not name.startswith('time/')}))

  def close(self):
    pass


def run(params, programs, steps, *, evaluated=False, state=None, batches=None, checkpoints=None):
  recorder = Recorder()
  evaluation = held_out.Evaluation(
    programs[1], [batching.Batch(jax.device_get(make_batch(99)), np.arange(ROWS))], every=1
  )
  result = loop.train(
    make_state(params) if state is None else state,
    make_source() if batches is None else batches,
    loop.Training(programs[0], frozen_of(params), MESH, steps, lambda count: 0.5),
    log=loop.Logging([recorder]),
    evaluation=evaluation if evaluated else None,
    saving=None if checkpoints is None else loop.Saving(checkpoints),
  )
  return result.state, recorder.records


@pytest.fixture(scope='module')
def whole(params, programs):
  """A run with evaluation after each step."""
  return run(params, programs, STEPS, evaluated=True)


def bits(state):
  return {
    jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, dict(state.memory)))
  }


@pytest.mark.slow  # objectives/moving_average_test.py has the memory of a sharded batch, coupled_test.py microbatches
def test_a_run_in_microbatches_on_a_mesh_remembers_what_whole_batches_give(whole, expected):
  check(whole[0], expected)


@pytest.mark.slow
def test_a_resumed_run_remembers_what_the_uninterrupted_one_does(tmp_path, params, programs, whole):
  folder = {'folder': tmp_path / 'c', 'config': {}, 'identity': {}, 'keep': 3}
  with checkpoint.Checkpoints(**folder) as checkpoints:
    stopped, first = run(params, programs, 2, evaluated=True, checkpoints=checkpoints)
    saved = bits(stopped)
  batches = make_source()
  with checkpoint.Checkpoints(**folder) as checkpoints:
    abstract = placement.abstract_state(MESH, params[0], TX, jax.random.key(0), OBJECTIVE.memory.initial)
    restored = checkpoints.restore(abstract, batches)
    assert restored.step == 2
    assert bits(restored.state) == saved
    assert all(float(v) == batches_of(name, 2) for name, v in restored.state.memory.items() if name.endswith('count'))
    resumed, second = run(params, programs, STEPS, evaluated=True, state=restored.state, batches=batches)
  assert bits(resumed) == bits(whole[0])
  assert first + second == whole[1]


def test_a_checkpoint_of_another_memory_is_not_restored(tmp_path, params):
  folder = {'folder': tmp_path / 'c', 'config': {}, 'identity': {}, 'keep': 3}
  with checkpoint.Checkpoints(**folder) as checkpoints:
    checkpoints.save(1, make_state(params), make_source())
  with checkpoint.Checkpoints(**folder) as checkpoints:
    abstract = placement.abstract_state(MESH, params[0], TX, jax.random.key(0), {'another': 0.0})
    with pytest.raises(ValueError, match='another'):
      checkpoints.restore(abstract, make_source())


@pytest.mark.slow  # with a program of its own; the test below compares both programs
def test_evaluation_does_not_change_it(params, programs, whole):
  plain, records = run(params, programs, STEPS)
  assert bits(plain) == bits(whole[0])
  trained = [
    (step, {name: value for name, value in values.items() if not name.startswith('eval/')})
    for step, values in whole[1]
    if step > 0
  ]
  assert trained == records


@pytest.mark.slow  # objectives/moving_average_test.py evaluates with a memory
def test_evaluation_reads_what_training_remembers(params, programs, whole):
  state, records = whole
  frozen = dataclasses.replace(frozen_of(params), memory=state.memory, step=state.updates)  # as in the loop
  evaluate = jax.jit(programs[1], out_shardings=rules.replicated(MESH))  # the program of the loop
  batch = placement.to_global(MESH, jax.device_get(make_batch(99)))
  held_out = evaluate(state.params, frozen, batch)
  assert float(held_out['loss'].mean()) == pytest.approx(records[-1][1]['eval/loss'], rel=1e-5)
  assert float(held_out['target_margin'].mean()) == pytest.approx(records[-1][1]['eval/target_margin'], rel=1e-5)
  forgetful = evaluate(state.params, dataclasses.replace(frozen, memory={}), batch)
  assert abs(float(forgetful['target_margin'].mean() - held_out['target_margin'].mean())) > 1e-3
  # The same pairs are drawn each time that the same memory is read.
  again = evaluate(state.params, frozen, batch)
  assert float(again['beta'].mean()) == float(held_out['beta'].mean())
