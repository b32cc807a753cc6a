"""Ends a process that hangs: prints the stacks of all threads, and exits so that a launcher starts it again.

A process has one watchdog. Code marks what it does with `during`, and its progress with `progress` and `step`; without
a watchdog they do nothing. Time in which the whole process was suspended does not count.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import faulthandler
import math
import os
import statistics
import sys
import threading
import time

from alignjax import exit_codes

FACTOR = 5  # a step may take this many times the median of the last ones
_FEW = 5  # steps before their median counts
Leave = Callable[[int], None]


class _Watchdog:
  """Watches from a thread of its own.

  Args:
    limits: seconds without progress, by phase; 0 or absent: no limit.
    leave: ends the process; called with the exit code.
  """

  def __init__(self, limits: Mapping[str, float], leave: Leave):
    self._limits, self._leave = limits, leave
    self._phases: list[str] = []
    self._marks = 0  # only the watched thread writes it
    self._steps: collections.deque[float] = collections.deque(maxlen=101)  # seconds
    self._clock = time.monotonic()
    self._tick = min([1.0, *(limit / 10 for limit in limits.values() if limit)])
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

  def start(self) -> None:
    self._thread.start()

  def stop(self) -> None:
    self._ended.set()
    self._thread.join()

  def progress(self) -> None:
    self._marks += 1
    self._clock = time.monotonic()

  def step(self) -> None:
    self._steps.append(time.monotonic() - self._clock)
    self.progress()

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    self._phases.append(phase)
    self.progress()
    try:
      yield
    finally:
      self._phases.pop()
      self.progress()

  def limit(self) -> float:
    """The limit of the current phase, in seconds."""
    phase = self._phases[-1] if self._phases else ''
    limit = self._limits.get(phase, 0) or math.inf
    if phase != 'step':
      return limit
    if len(self._steps) < _FEW:  # the first steps allocate, warm up, and have no median to compare with
      return max(limit, self._limits.get('compile', 0) or math.inf)
    return max(limit, FACTOR * statistics.median(self._steps))

  def _watch(self) -> None:
    idle, marks, last = 0.0, self._marks, time.monotonic()
    while not self._ended.wait(self._tick):
      now = time.monotonic()
      idle, last = idle + min(now - last, 2 * self._tick), now
      if self._marks != marks:
        idle, marks = 0.0, self._marks
      elif idle > self.limit():
        self._bark(idle)
        return

  def _bark(self, idle: float) -> None:
    phase = self._phases[-1] if self._phases else 'idle'
    text = f'no progress for {idle:.0f} s (phase: {phase}, limit: {self.limit():.0f} s). Stacks of all threads:\n'
    os.write(2, f'error: {text}'.encode())
    faulthandler.dump_traceback(file=2, all_threads=True)
    os.write(2, b'The same command resumes from the newest checkpoint. --watch.<phase>=<seconds> sets a limit\n')
    self._leave(exit_codes.CRASHED)


def _leave(code: int) -> None:
  """Ends the process without waiting for the thread that hangs."""
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  os._exit(code)


_current: _Watchdog | None = None


@contextlib.contextmanager
def watching(limits: Mapping[str, float], leave: Leave = _leave) -> Iterator[None]:
  """Watches a block.

  Args:
    limits: seconds without progress, by phase: step, compile, save, restore, evaluation, export. 0 or absent: no limit.
      A step may always take 5 times the median of the last ones.
    leave: ends the process; called with the exit code.
  """
  global _current
  previous, _current = _current, _Watchdog(limits, leave)
  _current.start()
  try:
    yield
  finally:
    _current.stop()
    _current = previous


def during(phase: str) -> contextlib.AbstractContextManager[None]:
  """Marks a block as a phase, with the limit of that phase."""
  return contextlib.nullcontext() if _current is None else _current.during(phase)


def progress() -> None:
  """Marks progress within a phase, such as a batch of an evaluation."""
  if _current is not None:
    _current.progress()


def step() -> None:
  """Marks the end of a training step."""
  if _current is not None:
    _current.step()
