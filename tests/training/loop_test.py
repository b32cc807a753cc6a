"""The training loop, around a step that is simple enough to predict."""

import os
import pathlib
import signal
import types

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.data.batches import batching, order
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import checkpoint, held_out, hooking, loop, metrics, owner, placement, source
from alignjax.training import state as state_lib
from alignjax.types import PreferenceBatch, WeightedSum

MESH = mesh_lib.make_mesh(1, 2, 1, devices=jax.devices()[:2])
TX = optax.adam(1e-1)
ROWS = 8
POISON = 13  # the batch with this number makes the loss infinite
OVERFLOW = 17  # ... and this one only the new parameters


def make_batch(index: int) -> batching.Batch:
  """A batch of one of two shapes, whose first token is its number."""
  tokens = 6 if index % 10 == 7 else 4
  prompt = np.full((ROWS, tokens), index, np.int32)
  response = np.zeros((ROWS, 2, tokens), np.int32)
  data = PreferenceBatch(
    prompt=prompt,
    prompt_length=np.full(ROWS, 3, np.int32),
    response=response,
    response_length=np.full((ROWS, 2), 2, np.int32),
    label=np.ones(ROWS, np.float32),
    weight=np.r_[np.ones(ROWS - 1), 0].astype(np.float32),
  )
  return batching.Batch(data, np.r_[np.arange(ROWS - 1) + 100 * index, order.PADDING_ID])


HELD_OUT = [make_batch(1), make_batch(2), make_batch(6)]


def make_source(first: int = 1, count: int = 10**6) -> source.GrainSource:
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return source.GrainSource(iter(grain.MapDataset.range(first, first + count).map(make_batch).to_iter_dataset(options)))


def make_state() -> state_lib.TrainState:
  params = {'embed': {'embedding': np.linspace(-1, 1, 128, dtype=np.float32).reshape(16, 8)}}
  params = jax.device_put(params, rules.param_shardings(MESH, params))
  return placement.create_state(MESH, params, TX, jax.random.key(0))


def step(state: state_lib.TrainState, frozen: state_lib.Frozen, batch: PreferenceBatch):
  """Pulls the parameters towards a random target that the batch and the key choose."""
  del frozen
  key = jax.random.fold_in(state.key, state.step)
  index = batch.prompt[0, 0]
  target = jax.random.key_data(key)[0].astype(jnp.float32) * 2.0**-32 + index

  def loss_of(params):
    loss = jnp.mean((params['embed']['embedding'] - target) ** 2)
    return jnp.where(index == POISON, jnp.inf, 1.0) * loss

  loss, gradient = jax.value_and_grad(loss_of)(state.params)
  updates, opt_state = TX.update(gradient, state.opt_state, state.params)
  updates = jax.tree.map(lambda u: jnp.where(index == OVERFLOW, jnp.inf, u), updates)
  params = optax.apply_updates(state.params, updates)
  values = {'loss': loss, 'gradient_norm': optax.tree.norm(gradient)}
  return state_lib.TrainState(state.step + 1, params, opt_state, key), values


def eval_step(params, frozen, batch):
  del frozen
  values = batch.prompt[:, 0] + jnp.mean(params['embed']['embedding'])
  return {'loss': WeightedSum.of(values, batch.weight)}


class Recorder:
  """A writer that remembers, and may act when a step is written."""

  def __init__(self, act=lambda step: None):
    self.records: list[tuple[int, dict[str, float]]] = []
    self._act = act

  def write(self, step: int, values) -> None:
    self.records.append((step, dict(values)))
    self._act(step)

  def close(self) -> None:
    pass


def open_checkpoints(folder: pathlib.Path) -> checkpoint.Checkpoints:
  return checkpoint.Checkpoints(folder, config={}, identity={}, keep=3)


def schedule(count):
  return 0.5 ** jnp.asarray(count, jnp.float32)


def per_row(batch, seconds):
  return {'time/seconds_per_row': seconds / len(batch.prompt)}


def run(
  steps: int, *, state=None, batches=None, recorder=None, log=None, nonfinite_limit=5, **options
) -> tuple[loop.Result, Recorder]:
  recorder = recorder or Recorder()
  result = loop.train(
    make_state() if state is None else state,
    make_source() if batches is None else batches,
    loop.Training(step, state_lib.Frozen(), MESH, steps, schedule, nonfinite_limit),
    log=loop.Logging([recorder], **({'times': per_row} | (log or {}))),
    **options,
  )
  return result, recorder


def deterministic(records) -> list[tuple[int, dict[str, float]]]:
  return [(s, {k: v for k, v in values.items() if not k.startswith(metrics.TIME_PREFIX)}) for s, values in records]


def params_of(state: state_lib.TrainState) -> bytes:
  return np.asarray(state.params['embed']['embedding']).tobytes()


@pytest.fixture(name='plain', scope='module')
def run_plainly():
  """A run of nine steps, what it announced, and the state that it was given."""
  state, announced = make_state(), []
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  result, recorder = run(9, state=state, log={'announce': announced.append})
  return types.SimpleNamespace(
    result=result, records=recorder.records, announced=announced, start=state, shardings=shardings
  )


@pytest.fixture(name='evaluated', scope='module')
def run_with_evaluation():
  """The same run, evaluated."""
  return run(9, evaluation=held_out.Evaluation(eval_step, HELD_OUT, every=4))


def test_every_step_is_recorded_once_with_what_the_loop_knows(plain):
  result = plain.result
  assert (result.step, int(result.state.step), result.preempted) == (9, 9, False)
  assert [s for s, _ in plain.records] == list(range(1, 10))
  for s, values in plain.records:
    assert values['learning_rate'] == 0.5 ** (s - 1)
    assert values['tokens'] == (ROWS - 1) * (3 + 2 + 2)  # a padding row has no tokens
    assert values['time/tokens_per_second'] == pytest.approx(values['tokens'] / values['time/seconds'])
    assert values['time/peak_memory_gib'] > 0
    assert values['time/seconds_per_row'] == values['time/seconds'] / ROWS
  hashes = [values['batch_hash'] for _, values in plain.records]
  assert len(set(hashes)) == 9
  assert all(isinstance(h, int) for h in hashes)


def test_matches_a_plain_python_loop(plain):
  state, losses = make_state(), []
  batches, update = make_source(), jax.jit(step)
  for _ in range(9):
    state, values = update(state, state_lib.Frozen(), placement.to_global(MESH, batches.next(state).data))
    losses.append(float(values['loss']))
  np.testing.assert_allclose([values['loss'] for _, values in plain.records], losses, rtol=1e-6)
  np.testing.assert_allclose(
    plain.result.state.params['embed']['embedding'], state.params['embed']['embedding'], rtol=1e-5, atol=1e-6
  )


def test_compiles_once_for_each_shape_and_keeps_shardings(plain):
  assert plain.result.compilations == 2
  assert sum('training step, responses 8 x 2 x 4' in line for line in plain.announced) == 1
  assert jax.tree.map(lambda leaf: leaf.sharding, plain.result.state) == plain.shardings
  assert plain.start.params['embed']['embedding'].is_deleted()  # donated


def test_evaluates_before_in_between_and_after(evaluated):
  result, recorder = evaluated
  assert [s for s, values in recorder.records if 'eval/loss' in values] == [0, 4, 8, 9]
  assert [s for s, _ in recorder.records] == list(range(10))
  start = float(jnp.mean(make_state().params['embed']['embedding']))
  assert recorder.records[0][1] == {'eval/loss': pytest.approx(3.0 + start, rel=1e-6)}
  end = float(jnp.mean(result.state.params['embed']['embedding']))
  assert recorder.records[-1][1]['eval/loss'] == pytest.approx(3.0 + end, rel=1e-6)
  assert 'loss' in recorder.records[-1][1]


def test_hooks_follow_the_updates_that_they_ask_for_and_see_their_state():
  seen = []
  recorder = Recorder(lambda step: seen.append(('written', step)))

  def look(name):
    return lambda done, state: seen.append((name, done, int(state.step), params_of(state)))

  result, _ = run(5, recorder=recorder, hooks=[hooking.every(2, look('every')), hooking.at({0, 4, 5}, look('at'))])
  calls = [entry[:3] for entry in seen if entry[0] != 'written']
  assert calls == [('every', 2, 2), ('every', 4, 4), ('at', 4, 4), ('at', 5, 5)]
  assert seen[-1][3] == params_of(result.state)
  for entry in seen:  # the metrics of an update are written before its hooks are called
    if entry[0] != 'written':
      before = seen[: seen.index(entry)]
      assert max(e[1] for e in before if e[0] == 'written') == entry[1]


def test_a_hook_interval_must_be_positive():
  with pytest.raises(ValueError, match='steps=0'):
    hooking.every(0, lambda done, state: None)


def test_evaluation_does_not_touch_training(plain, evaluated):
  losses = [[values['loss'] for _, values in r if 'loss' in values] for r in (plain.records, evaluated[1].records)]
  assert losses[0] == losses[1]


def test_saves_on_schedule_and_at_the_end_and_a_finished_run_has_nothing_to_do(tmp_path):
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    run(5, saving=loop.Saving(checkpoints, 2))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    batches = make_source()
    restored = checkpoints.restore(make_state(), batches)
    result, recorder = run(5, state=restored.state, batches=batches, saving=loop.Saving(checkpoints))
  assert (result.step, result.compilations, recorder.records) == (5, 0, [])


def test_each_save_is_confirmed_first(tmp_path):
  """A run that finds the folder taken at its second save ends there."""
  left = iter([None])

  def confirm():
    if next(left, 'taken'):
      raise owner.OwnerError('taken')

  with open_checkpoints(tmp_path / 'c') as checkpoints:
    with pytest.raises(owner.OwnerError, match='taken'):
      run(8, saving=loop.Saving(checkpoints, 2, confirm))
    checkpoints.wait()
    assert checkpoints.steps() == [2]


@pytest.mark.parametrize(('bad_step', 'saved'), [(3, [2]), (4, [2]), (5, [2, 4])])
def test_infinite_loss_can_stop_at_once_and_nothing_is_saved_after(tmp_path, bad_step, saved):
  """Steps 2, 4, ... are saved; when the loss of step 3 is found to be bad, step 4 is already running."""
  recorder = Recorder()
  batches = make_source(POISON - bad_step + 1)
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    with pytest.raises(loop.NonFiniteError) as caught:
      run(
        8,
        batches=batches,
        saving=loop.Saving(checkpoints, 2),
        recorder=recorder,
        log={'origin': lambda i: f'd.jsonl:{i}'},
        nonfinite_limit=1,
      )
    checkpoints.wait()
    assert checkpoints.steps() == saved
    restored = checkpoints.restore(make_state(), make_source())
    assert np.isfinite(np.asarray(restored.state.params['embed']['embedding'])).all()
  message = str(caught.value)
  assert message.startswith(f'step {bad_step}: loss is inf, gradient_norm is inf')
  for i in range(ROWS - 1):
    assert f'd.jsonl:{100 * POISON + i}' in message
  assert 'd.jsonl:-1' not in message
  assert [s for s, _ in recorder.records] == list(range(1, bad_step))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
  """The update overflows although loss and gradient are finite, just before a save, or at the end without one."""
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    with pytest.raises(loop.NonFiniteError, match=r'step 4: parameters embed\.embedding are not finite'):
      run(8, batches=make_source(OVERFLOW - 3), saving=loop.Saving(checkpoints, 2))
    checkpoints.wait()
    assert checkpoints.steps() == [2]
  with pytest.raises(loop.NonFiniteError, match='step 1: parameters'):
    run(1, batches=make_source(OVERFLOW))


def test_data_that_end_early_are_an_error():
  with pytest.raises(ValueError, match='the data end after 3 of 5 steps'):
    run(5, batches=make_source(count=3))


def test_sigterm_saves_and_the_resumed_run_is_bit_identical(tmp_path, evaluated):
  whole, expected = evaluated
  recorders = []
  for stop_at in (0, 4, None):  # before the first step, in between, not at all

    def act(step: int, stop_at: int | None = stop_at) -> None:
      if step == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)

    recorders.append(Recorder(act))
    batches = make_source()
    with open_checkpoints(tmp_path / 'c') as checkpoints:
      restored = checkpoints.restore(make_state(), batches)
      result, _ = run(
        9,
        state=None if restored is None else restored.state,
        batches=batches,
        evaluation=held_out.Evaluation(eval_step, HELD_OUT, every=4),
        saving=loop.Saving(checkpoints, 3),
        recorder=recorders[-1],
      )
    assert result.preempted == (stop_at is not None)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the old handler is back
  records = [record for recorder in recorders for record in recorder.records]
  assert deterministic(records) == deterministic(expected.records)
  assert params_of(result.state) == params_of(whole.state)
  assert (jax.random.key_data(result.state.key) == jax.random.key_data(whole.state.key)).all()
