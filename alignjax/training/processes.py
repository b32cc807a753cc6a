"""Agreement between the processes of a run."""

from collections.abc import Callable
import json
import time

import jax
from jax.experimental import multihost_utils
import numpy as np


def gather(value: int) -> list[int]:
  """Gathers one uint32 from each process. All processes must call it."""
  if jax.process_count() == 1:
    return [value]
  return [int(x) for x in multihost_utils.process_allgather(np.array([value], np.uint32)).ravel()]


def gather_text(text: str) -> list[str]:
  """Gathers a text from each process. All processes must call it."""
  if jax.process_count() == 1:
    return [text]
  encoded = np.frombuffer(text.encode(), np.uint8)
  sizes = gather(encoded.size)
  padded = np.zeros(max(sizes), np.uint8)
  padded[: encoded.size] = encoded
  rows = multihost_utils.process_allgather(padded)
  return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


PULSE = 5.0  # seconds between signs of life of process 0 while the others wait for it
_WORKING, _DONE, _FAILED = range(3)


def from_first(call: Callable[[Callable[[], None]], str]) -> str:
  """Calls a function on process 0, and returns its result on all processes. They wait however long it takes.

  Some machines limit the time of a collective, so process 0 gives a sign of life every few seconds.

  Args:
    call: called with a function that it must call often, at least every few seconds.

  Raises:
    ValueError: it has raised a ValueError or an OSError. Every process raises, process 0 the error itself.
  """
  if jax.process_count() == 1:
    return call(lambda: None)
  if jax.process_index():
    while (status := gather(_WORKING)[0]) == _WORKING:
      pass
    result = gather_text('')[0]
    if status == _FAILED:
      raise ValueError(result)
    return result
  last = time.monotonic()

  def alive() -> None:
    nonlocal last
    if time.monotonic() - last > PULSE:
      gather(_WORKING)
      last = time.monotonic()

  try:
    result = call(alive)
  except (ValueError, OSError) as error:
    gather(_FAILED)
    gather_text(str(error))
    raise
  gather(_DONE)
  return gather_text(result)[0]


def on_first(call: Callable[[], None]) -> None:
  """Calls a function on process 0, for which the other processes wait. See `from_first`."""

  def run(alive: Callable[[], None]) -> str:
    del alive
    call()
    return ''

  from_first(run)


def on_all[Result](call: Callable[[], Result]) -> Result:
  """Calls a function on every process, and raises on all of them if it fails on one.

  Raises:
    ValueError: it has raised a ValueError on some process. Those raise the error itself.
    OSError: the same for an OSError, with its number.
  """
  result, error = None, None
  try:
    result = call()
  except (ValueError, OSError) as raised:
    error = raised
  complaint = '' if error is None else json.dumps([getattr(error, 'errno', None), str(error) or type(error).__name__])
  complaints = gather_text(complaint)
  if error is not None:
    raise error
  if any(complaints):
    number, text = json.loads(next(filter(None, complaints)))
    raise ValueError(text) if number is None else OSError(number, text)
  return result
