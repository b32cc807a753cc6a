"""Agreement between the processes of a run."""

from collections.abc import Callable
import json

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


def on_first(call: Callable[[], None]) -> None:
  """Calls a function on process 0, for which the other processes wait.

  Raises:
    ValueError: it has raised a ValueError or an OSError. Every process raises.
  """
  complaint = ''
  try:
    if jax.process_index() == 0:
      call()
  except (ValueError, OSError) as error:
    if jax.process_count() == 1:
      raise
    complaint = str(error)
  complaint = gather_text(complaint)[0]
  if complaint:
    raise ValueError(complaint)


def together[T](call: Callable[[], T]) -> T:
  """Calls a function on every process, each of which may read other files or other parts of them.

  Raises:
    ValueError: it has raised a ValueError on some process. Every process raises.
    OSError: the same for an OSError.
  """
  result, failure = None, None
  try:
    result = call()
  except (ValueError, OSError) as error:
    failure = error
  if jax.process_count() > 1 and any(gather(int(failure is not None))):
    number = getattr(failure, 'errno', None)
    told = '' if failure is None else json.dumps([number, str(failure)])
    number, text = json.loads(next(filter(None, gather_text(told))))
    if failure is None:
      failure = ValueError(text) if number is None else OSError(number, text)
  if failure is not None:
    raise failure
  return result


def from_first(call: Callable[[], str]) -> str:
  """The text that a function returns on process 0, on every process. Raises: see `together`."""
  return gather_text(together(lambda: call() if jax.process_index() == 0 else ''))[0]
