"""Saves by time: every so many minutes, at a step on which all processes agree.

Only process 0 looks at its clock. The processes meet at steps that they have agreed on at the meeting before: process 0
tells the others how many steps later they meet again, or that they save now. It plans to meet after half of the time
that is left, so there are few meetings, and a run that becomes slower is late by little.
"""

from collections.abc import Callable
import time

import jax

from alignjax.training import processes


class SaveTimer:
  """Decides at which steps to save. All processes decide alike.

  Args:
    minutes: time from one save to the next; 0 never saves.
    done: updates done when training starts.
    clock: seconds; only that of process 0 counts.
  """

  def __init__(self, minutes: float, done: int, clock: Callable[[], float] = time.monotonic):
    self._seconds, self._clock = 60 * minutes, clock
    self.restart(done)

  def restart(self, done: int) -> None:
    """Counts from now on. Every process calls it after a save, whatever its cause."""
    self._last = self._met = self._clock()  # times of the last save and of the last meeting
    self._met_at = done
    self._next = done + 1

  def due(self, done: int) -> bool:
    """Whether to save after this update. Every process must call it after every update that is not saved anyway."""
    if not self._seconds or done < self._next:
      return False
    wait = processes.gather(self._wait(done))[0]
    self._next = done + wait
    return wait == 0

  def _wait(self, done: int) -> int:
    """Updates until the next meeting; 0 to save now."""
    now = self._clock()
    left = self._last + self._seconds - now
    if left <= 0:
      return 0
    if jax.process_count() == 1:
      return 1  # meetings cost nothing
    steps = done - self._met_at
    per_step = (now - self._met) / steps
    self._met, self._met_at = now, done
    # At most twice as many as since the last meeting, because the first steps are dispatched without waiting.
    return max(1, min(2 * steps, int(left / 2 / per_step) if per_step else 2 * steps))
