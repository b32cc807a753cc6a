"""SIGTERM while training: a run that is about to be evicted saves first."""

import contextlib
import signal

import jax
from jax.experimental import multihost_utils

from alignjax import stopping


class Preemption:
  """Watches for SIGTERM while entered as a context.

  A single process asks `stopping`. Several processes must stop at the same step, although the signal may reach only one
  of them: the preemption service of `jax.distributed` catches it and agrees on a step with the other processes.
  """

  def __init__(self):
    self._requested = False
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> 'Preemption':
    if jax.process_count() == 1:
      self._stack.enter_context(stopping.heard())
      self._stack.enter_context(stopping.deferred())
    return self

  def __exit__(self, *error: object) -> None:
    self._stack.close()

  def reached(self, step: int) -> bool:
    """Whether to save and exit before the next update. Every process must call this before every update."""
    if jax.process_count() == 1:
      return self.noticed()
    return multihost_utils.reached_preemption_sync_point(step)

  def noticed(self) -> bool:
    """Whether a single process is about to stop, so that it should not begin anything long. False in several."""
    return jax.process_count() == 1 and (self._requested or stopping.requested())

  def request(self) -> None:
    """Requests the same stop as SIGTERM, from inside this process. One process is enough to stop all."""
    if jax.process_count() == 1:
      self._requested = True
    else:
      signal.raise_signal(signal.SIGTERM)
