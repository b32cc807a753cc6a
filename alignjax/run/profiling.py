"""Profiles some of the updates of a run, for TensorBoard's profile plugin, XProf or Perfetto."""

from collections.abc import Callable, Sequence
import pathlib
import re
from typing import NamedTuple

import jax

from alignjax.training import hooking

FOLDER = 'profile'  # in the work directory
TEXT = (
  'Updates to profile on the first process, first:last, such as 10:12; the trace is written to `profile` in workdir; '
  'empty: none.'
)


class Span(NamedTuple):
  """Updates, the last one included."""

  first: int
  last: int


def parse(text: str) -> Span | None:
  """Reads 'first:last'; None for ''.

  Raises:
    ValueError: the text is something else, or first is below 2. The first update compiles, so it is never profiled.
  """
  if not text:
    return None
  found = re.fullmatch(r'(\d{1,9}):(\d{1,9})', text)
  if not found or not 2 <= int(found[1]) <= int(found[2]):
    raise ValueError(f'{text!r} must be first:last with 2 <= first <= last, such as 10:12')
  return Span(int(found[1]), int(found[2]))


class Profiler:
  """Traces the updates of a span, as a context around the training loop that also gives the hooks for it.

  Args:
    span: the updates; None profiles nothing.
    workdir: the work directory of the run, on a disk.
    announce: called with the place of the trace.
  """

  def __init__(self, span: Span | None, workdir: pathlib.Path, announce: Callable[[str], None]):
    self._span = span if jax.process_index() == 0 else None
    self._folder, self._announce, self._active = workdir / FOLDER, announce, False

  @property
  def hooks(self) -> Sequence[hooking.Hook]:
    """The hooks that start and stop the trace."""
    if self._span is None:
      return ()
    return (
      hooking.at([self._span.first - 1], lambda done, state: self._start()),
      hooking.at([self._span.last], lambda done, state: self._stop()),
    )

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *_: object) -> None:
    self._stop()

  def _start(self) -> None:
    jax.profiler.start_trace(str(self._folder))
    self._active = True

  def _stop(self) -> None:
    if self._active:
      self._active = False
      jax.profiler.stop_trace()
      self._announce(f'wrote a trace of updates {self._span.first} to {self._span.last} to {self._folder}')
