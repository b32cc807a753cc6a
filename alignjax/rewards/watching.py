"""Runs a user's function with a time limit, and calls another function while it runs."""

from collections.abc import Callable
import math
import threading
import time
from typing import Any, NamedTuple


class Watch(NamedTuple):
  """How a computation is watched."""

  seconds: float  # its time limit; 0 for none
  tick: Callable[[], None] | None  # called about once per second


def watched[T](compute: Callable[[], T], watch: Watch) -> T:
  """Computes a value. A computation that exceeds its time limit keeps its thread."""
  if not watch.seconds and watch.tick is None:
    return compute()
  outcome: list[Any] = []

  def run() -> None:
    try:
      outcome.append((compute(), None))
    except BaseException as error:
      outcome.append((None, error))

  thread = threading.Thread(target=run, daemon=True, name='reward')
  thread.start()
  deadline = time.monotonic() + (watch.seconds or math.inf)
  while not outcome:
    left = deadline - time.monotonic()
    if left <= 0:
      raise TookTooLong
    thread.join(min(1.0, left))
    if watch.tick is not None:
      watch.tick()
  value, error = outcome[0]
  if error is not None:
    raise error
  return value


class TookTooLong(Exception):
  """The time limit is exceeded. No subclass of TimeoutError, which a reward itself may raise."""
