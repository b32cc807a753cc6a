"""A run resumes from the newest checkpoint that it can continue from, and loses none that it cannot judge."""

import pathlib

import jax
import numpy as np
import pytest

from alignjax.run import recovery
from alignjax.training import checkpoint, loop


class Source:
  """A source without data, at a position."""

  position = 0

  def get_state(self) -> int:
    return self.position

  def set_state(self, state: int) -> None:
    self.position = state


def make_state(*values: float) -> dict[str, jax.Array]:
  return {'params': jax.device_put(np.asarray(values, np.float32)), 'memory': jax.device_put(np.ones(2, np.float32))}


LIKE = make_state(0, 0)
STATES = {step: make_state(step, 1) for step in range(1, 6)}


@pytest.fixture
def checkpoints(tmp_path: pathlib.Path):
  with checkpoint.Checkpoints(tmp_path / 'c', config={}, identity={}, keep=9) as checkpoints:
    yield checkpoints


def save(checkpoints: checkpoint.Checkpoints, states: dict[int, dict[str, jax.Array]]) -> None:
  for step, state in states.items():
    checkpoints.save(step, state, Source())
  checkpoints.wait()


def aside(checkpoints: checkpoint.Checkpoints) -> list[str]:
  folder = checkpoints.folder.with_name('c-corrupt')
  return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def resume(checkpoints, attempt, batches=None) -> loop.Result:
  batches = batches or Source()

  def restore() -> checkpoint.Restored | None:
    return recovery.restore(checkpoints, LIKE, batches)

  return recovery.resume(attempt, restore(), checkpoints, restore)


def fail_at(step: int, reason: str = 'loss is nan') -> None:
  raise loop.NonFiniteError(f'step {step}: {reason}. Examples of this batch: a, b', step)


def test_a_checkpoint_that_is_not_finite_is_skipped_and_replaced_by_a_later_save(checkpoints, caplog):
  save(checkpoints, {3: STATES[3], 4: make_state(np.nan, 1), 5: make_state(5, np.inf)})
  with caplog.at_level('ERROR', 'absl'):
    restored = recovery.restore(checkpoints, LIKE, Source())
  assert restored.step == 3
  assert caplog.messages == [f'checkpoint {step}: params are not finite. Trying the one before it' for step in (5, 4)]
  assert (checkpoints.steps(), aside(checkpoints)) == ([3], [])
  save(checkpoints, {4: STATES[4]})
  assert (checkpoints.steps(), aside(checkpoints)) == ([3, 4], ['4.0'])
  save(checkpoints, {6: STATES[5]})
  assert (checkpoints.steps(), aside(checkpoints)) == ([3, 4, 6], ['4.0', '5.0'])


def test_no_finite_checkpoint_is_an_error_and_nothing_is_moved(checkpoints):
  save(checkpoints, {1: make_state(np.nan, 1), 2: make_state(np.inf, 1)})
  with pytest.raises(loop.NonFiniteError, match=r'^checkpoint 2: params are not finite; checkpoint 1: params'):
    recovery.restore(checkpoints, LIKE, Source())
  assert (sorted(path.name for path in checkpoints.folder.iterdir()), aside(checkpoints)) == (['1', '2'], [])


@pytest.mark.parametrize('late', [1, 2])
def test_a_step_that_fails_right_after_a_restore_tries_the_checkpoint_before(checkpoints, caplog, late):
  save(checkpoints, STATES)
  tried = []

  def attempt(state, step: int) -> loop.Result:
    tried.append((step, float(state['params'][0])))
    if step > 3:
      fail_at(step + late)
    save(checkpoints, {4: make_state(4, 4), 7: STATES[5]})
    return loop.Result(state, 7, False, 1)

  with caplog.at_level('ERROR', 'absl'):
    assert resume(checkpoints, attempt).step == 7
  assert tried == [(5, 5.0), (4, 4.0), (3, 3.0)]
  lines = [
    f'checkpoint {step}: training fails right after it (step {step + late}: loss is nan). Trying the one before it'
    for step in (5, 4)
  ]
  assert [message for message in caplog.messages if 'right after it' in message] == lines
  assert (checkpoints.steps(), aside(checkpoints)) == ([1, 2, 3, 4, 7], ['4.0', '5.0'])


def test_if_the_data_are_at_fault_no_checkpoint_is_lost(checkpoints):
  """The run from the checkpoint before reaches the same state, and then the same failure."""
  save(checkpoints, STATES)
  tried = []

  def attempt(state, step: int) -> loop.Result:
    tried.append(step)
    if step == 2:
      save(checkpoints, {3: STATES[3], 4: STATES[4], 5: STATES[5]})
    fail_at(6)

  checkpoints.doubt(4)
  checkpoints.doubt(3)
  with pytest.raises(loop.NonFiniteError, match='step 6'):
    resume(checkpoints, attempt)
  assert tried == [5, 2]
  assert (checkpoints.steps(), aside(checkpoints)) == ([1, 2, 3, 4, 5], [])


def test_each_older_checkpoint_is_tried_once_and_kept(checkpoints):
  save(checkpoints, STATES)
  tried = []

  def attempt(state, step: int) -> loop.Result:
    tried.append(step)
    fail_at(step + 1)

  with pytest.raises(loop.NonFiniteError, match=r'^step 6: loss is nan'):
    resume(checkpoints, attempt)
  assert tried == [5, 4, 3, 2, 1]
  assert sorted(path.name for path in checkpoints.folder.iterdir()) == ['1', '2', '3', '4', '5']


def test_a_later_failure_is_raised(checkpoints):
  save(checkpoints, STATES)
  with pytest.raises(loop.NonFiniteError, match='step 8'):
    resume(checkpoints, lambda state, step: fail_at(step + 3))
  assert checkpoints.steps() == [1, 2, 3, 4, 5]
