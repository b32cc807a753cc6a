"""Resumes a run from the newest checkpoint that it can continue from."""

from collections.abc import Callable
from typing import Any

from absl import logging

from alignjax.training import checkpoint, loop, source, watchdog
from alignjax.training.state import TrainState


def restore(checkpoints: checkpoint.Checkpoints, like: Any, batches: source.Source) -> checkpoint.Restored | None:
  """Restores the newest checkpoint whose arrays are finite. Those that it skips are logged, one line each.

  Args, Returns: see `Checkpoints.restore`.

  Raises:
    NonFiniteError: there are checkpoints, and none of them is finite.
  """
  faults: list[str] = []
  while (restored := _read(checkpoints, like, batches)) is not None:
    wrong = loop.not_finite(restored.state)
    if not wrong:
      return restored
    faults.append(f'checkpoint {restored.step}: {wrong} are not finite')
    logging.error('%s. Trying the one before it', faults[-1])
    checkpoints.doubt(restored.step)
    restored = None  # frees its memory before the next one is read
  if faults:
    raise loop.NonFiniteError(f'{"; ".join(faults)}. No checkpoint is left: start over in another work directory')
  return None


def _read(checkpoints: checkpoint.Checkpoints, like: Any, batches: source.Source) -> checkpoint.Restored | None:
  with watchdog.during('restore'):
    return checkpoints.restore(like, batches)


def resume(
  attempt: Callable[[TrainState, int], loop.Result],
  restored: checkpoint.Restored,
  checkpoints: checkpoint.Checkpoints,
  restore_next: Callable[[], checkpoint.Restored | None],
) -> loop.Result:
  """Trains from a checkpoint; if a step fails right after it, from the checkpoint before it, and so on.

  Right after means within two steps: an update with damaged moments shows in the loss of the next step.

  Args:
    attempt: trains from a state; called with the state and its step.
    restored: the newest checkpoint.
    checkpoints: the checkpoints of the run.
    restore_next: restores the newest checkpoint that is not in doubt.

  Raises:
    NonFiniteError: a later step fails, or a step fails right after every checkpoint.
  """
  first: loop.NonFiniteError | None = None
  while True:
    state, step = restored.state, restored.step
    try:
      return attempt(state, step)
    except loop.NonFiniteError as error:
      failure = error.with_traceback(None)  # its frames hold the state
    if failure.step > step + 2:
      raise failure
    first = first or failure
    checkpoints.doubt(step)
    del state, restored
    if not checkpoints.steps():
      raise first
    reason = str(failure).partition('. ')[0]
    logging.error('checkpoint %d: training fails right after it (%s). Trying the one before it', step, reason)
    try:
      restored = restore_next()
    except checkpoint.CorruptCheckpointError as error:
      raise first from error
