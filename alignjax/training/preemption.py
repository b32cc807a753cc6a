"""Noticing that this run is about to be evicted, in time to save it."""

import signal
import types

from absl import logging
import jax
from jax.experimental import multihost_utils


class Preemption:
  """Notices SIGTERM, while entered as a context.

  A single process sets a flag. Several must stop at the same step although only one may have been told: then JAX's own
  service, which starts with `jax.distributed`, notices the signal and agrees on a step with the others.
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
    """Whether to save and leave now. Every process must ask before every step."""
    if jax.process_count() == 1:
      return self._noticed
    return multihost_utils.reached_preemption_sync_point(step)

  def _notice(self, signum: int, frame: types.FrameType | None) -> None:
    del signum, frame
    self._noticed = True
    logging.warning('SIGTERM: the run will be saved after this step, and end')
