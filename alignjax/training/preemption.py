"""SIGTERM handling: a run that is about to be evicted saves first."""

import signal
import types

from absl import logging
import jax
from jax.experimental import multihost_utils


class Preemption:
  """Watches for SIGTERM while entered as a context.

  A single process sets a flag. Several processes must stop at the same step, although the signal may reach only one of
  them: the preemption service of `jax.distributed` catches it and agrees on a step with the other processes.
  """

  def __init__(self):
    self._noticed = False
    self._previous: signal.Handlers | None = None

  def __enter__(self) -> 'Preemption':
    if jax.process_count() == 1:
      self._previous = signal.signal(signal.SIGTERM, self._notice)
    return self

  def __exit__(self, *error: object) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def reached(self, step: int) -> bool:
    """Whether to save and exit before the next update. Every process must call this before every update."""
    if jax.process_count() == 1:
      return self._noticed
    return multihost_utils.reached_preemption_sync_point(step)

  def request(self) -> None:
    """Requests the same stop as SIGTERM, from inside this process. One process is enough to stop all."""
    if jax.process_count() == 1:
      self._noticed = True
    else:
      signal.raise_signal(signal.SIGTERM)

  def _notice(self, signum: int, frame: types.FrameType | None) -> None:
    del signum, frame
    self._noticed = True
    logging.warning('SIGTERM received: saving and exiting after this step')
