"""What ends a run, and what does not: full disks, and states that are not finite."""

import contextlib
import dataclasses
import signal

import jax
import jax.numpy as jnp
import pytest

from alignjax.parallel import rules
from alignjax.training import checkpoint, loop, metrics, source
from alignjax.training import state as state_lib
from tests import disks
from tests.training import loop_test


@contextlib.contextmanager
def time_limit(seconds: int):
  """Raises in the main thread if the block takes longer."""

  def stop(*_) -> None:
    raise TimeoutError(f'no end after {seconds} s')

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_full_disk_under_tensorboard_does_not_stop_training(tmp_path, caplog):
  with disks.small(tmp_path / 'events', '4k') as folder, time_limit(120), caplog.at_level('WARNING', 'absl'):
    writers = [metrics.JsonlWriter(tmp_path / 'm.jsonl'), metrics.TensorBoardWriter(folder)]
    result = loop.train(
      loop_test.make_state(),
      loop_test.make_source(20),
      loop.Training(loop_test.step, state_lib.Frozen(), loop_test.MESH, 60, loop_test.schedule),
      log=loop.Logging(writers),
    )
    for writer in writers:
      writer.close()
  assert result.step == 60
  assert [record['step'] for record in metrics.read_jsonl(tmp_path / 'm.jsonl')] == list(range(1, 61))
  (message,) = [text for text in caplog.messages if 'TensorBoard' in text]
  assert message.startswith(f'{folder}: cannot be written: the disk is full. TensorBoard is off from step ')


def test_metrics_that_cannot_be_written_end_the_run_after_a_save(tmp_path):
  def act(step: int) -> None:
    if step >= 3:
      raise metrics.MetricsError('m.jsonl: cannot be written')

  with loop_test.open_checkpoints(tmp_path / 'c') as checkpoints:
    message = 'm.jsonl: cannot be written. Step 4 is saved: remove the cause, then the same command resumes the run'
    with pytest.raises(metrics.MetricsError, match=message):
      loop_test.run(9, recorder=loop_test.Recorder(act), saving=loop.Saving(checkpoints))
    batches = loop_test.make_source()
    restored = checkpoints.restore(loop_test.make_state(), batches)
    assert restored.step == 4
    result, _ = loop_test.run(9, state=restored.state, batches=batches)
  assert loop_test.params_of(result.state) == loop_test.params_of(loop_test.run(9)[0].state)


def test_batches_that_cannot_be_produced_end_the_run_after_a_save(tmp_path, monkeypatch):
  batches, taken = loop_test.make_source(), []
  following = batches.next

  def fail(state):
    if len(taken) == 3:
      raise source.SourceError('no answer')
    taken.append(0)
    return following(state)

  monkeypatch.setattr(batches, 'next', fail)
  with loop_test.open_checkpoints(tmp_path / 'c') as checkpoints:
    with pytest.raises(source.SourceError, match=r'^no answer\. Step 3 is saved: remove'):
      loop_test.run(9, batches=batches, saving=loop.Saving(checkpoints))
    batches = loop_test.make_source()
    restored = checkpoints.restore(loop_test.make_state(), batches)
    assert restored.step == 3
    result, _ = loop_test.run(9, state=restored.state, batches=batches)
  assert loop_test.params_of(result.state) == loop_test.params_of(loop_test.run(9)[0].state)


class FailingCheckpoints:
  """Checkpoints whose saves in the background fail."""

  saved: tuple[int, ...] = ()

  def steps(self) -> list[int]:
    return []

  def save(self, step: int, *_) -> None:
    self.saved += (step,)

  def check(self) -> None:
    if self.saved:
      raise checkpoint.SaveError('the disk is full')

  wait = check


def test_a_failed_save_ends_the_run_at_the_next_step():
  checkpoints, recorder = FailingCheckpoints(), loop_test.Recorder()
  with pytest.raises(checkpoint.SaveError, match='the disk is full'):
    loop_test.run(9, recorder=recorder, saving=loop.Saving(checkpoints, 4))
  assert checkpoints.saved == (4,)
  assert [s for s, _ in recorder.records] == [1, 2, 3, 4]


def test_metrics_and_a_save_that_both_fail_are_one_error():
  def act(step: int) -> None:
    raise metrics.MetricsError('m.jsonl: the disk is full')

  message = '^m.jsonl: the disk is full. The step cannot be saved either: the disk is full$'
  with pytest.raises(metrics.MetricsError, match=message):
    loop_test.run(9, recorder=loop_test.Recorder(act), saving=loop.Saving(FailingCheckpoints()))


def spoil(state: state_lib.TrainState, what: str) -> state_lib.TrainState:
  """The state with a NaN in Adam's mean or in the objective's memory."""
  nan = jnp.full((), jnp.nan, jnp.float32)
  if what == 'memory':
    return dataclasses.replace(state, memory={'mean': jax.device_put(nan, rules.replicated(loop_test.MESH))})
  paths, treedef = jax.tree_util.tree_flatten_with_path(state)
  leaves = [leaf * nan if '.mu' in jax.tree_util.keystr(path) else leaf for path, leaf in paths]
  return jax.tree.unflatten(treedef, leaves)


@pytest.mark.parametrize(
  ('what', 'message'),
  [
    ('moments', r'step 0: opt_state\.0\.mu\.embed\.embedding are not finite'),
    ('memory', r'step 0: memory\.mean are not finite'),
  ],
)
def test_a_state_that_is_not_finite_anywhere_is_not_saved(tmp_path, what, message):
  with loop_test.open_checkpoints(tmp_path / 'c') as checkpoints:
    with pytest.raises(loop.NonFiniteError, match=message):
      loop_test.run(0, state=spoil(loop_test.make_state(), what), saving=loop.Saving(checkpoints))
    assert checkpoints.steps() == []


def test_memory_that_is_not_finite_stops_the_run_as_a_loss_does():
  def spoiled(state, frozen, batch):
    state, values = loop_test.step(state, frozen, batch)
    broken = jnp.where(state.step == 3, jnp.nan, 1.0)
    return dataclasses.replace(state, memory={'mean': broken}), values

  recorder = loop_test.Recorder()
  memory = {'mean': jax.device_put(jnp.ones(()), rules.replicated(loop_test.MESH))}
  state = dataclasses.replace(loop_test.make_state(), memory=memory)
  with pytest.raises(loop.NonFiniteError, match='step 3: the memory mean of the objective is not finite') as caught:
    loop.train(
      state,
      loop_test.make_source(),
      loop.Training(spoiled, state_lib.Frozen(), loop_test.MESH, 9, nonfinite_limit=1),
      log=loop.Logging([recorder]),
    )
  assert caught.value.step == 3
  assert [s for s, _ in recorder.records] == [1, 2]
