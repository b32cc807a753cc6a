"""Measures the cost of a run: seconds per stage."""

from collections.abc import Iterator
import contextlib
import time


class Clock:
  """Measures seconds per stage: `with clock('train'): ...`. Time in a nested stage counts only for that stage."""

  def __init__(self):
    self._start = time.monotonic()
    self._seconds: dict[str, float] = {}
    self._within = [0.0]

  @contextlib.contextmanager
  def __call__(self, stage: str) -> Iterator[None]:
    start = time.monotonic()
    self._within.append(0.0)
    yield
    elapsed = time.monotonic() - start
    self._seconds[stage] = self._seconds.get(stage, 0.0) + elapsed - self._within.pop()
    self._within[-1] += elapsed

  def seconds(self) -> dict[str, float]:
    """Seconds per stage, and in total since the clock was created."""
    return self._seconds | {'total': time.monotonic() - self._start}
