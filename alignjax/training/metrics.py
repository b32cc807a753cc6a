"""Writers of metrics: console, JSONL and TensorBoard, from process 0 only.

A record is a step and a flat mapping of names to numbers. Names under `time/` (seconds, tokens per second) differ from
run to run; everything else is identical when a run is repeated or resumed on the same mesh.
"""

import collections
from collections.abc import Mapping
import json
import math
import os
import pathlib
import statistics
import sys
from typing import Protocol, TextIO

import jax
from rich import console as rich_console
from rich import progress
import tensorboardX

TIME_PREFIX = 'time/'
Values = Mapping[str, float | int]

# Metrics on the console: name, label, format.
_SHOWN = (
  ('loss', 'loss', '{:.4f}'),
  ('reward_accuracy', 'accuracy', '{:.3f}'),
  ('reward_margin', 'margin', '{:+.4f}'),
  ('gradient_norm', 'grad norm', '{:.3g}'),
  ('time/tokens_per_second', 'tok/s', '{:,.0f}'),
)


class Writer(Protocol):
  """Receives every record. Each process calls every writer, in the same order."""

  def write(self, step: int, values: Values) -> None: ...

  def close(self) -> None: ...


class JsonlWriter:
  """One JSON object per line, `{"step": 3, "loss": 0.6931471824645996, ...}`, flushed after each record.

  Floats have as many digits as it takes to read back the same bits. JSON has no infinities, so a value that is not
  finite becomes a string that `float` reads: "nan", "inf", "-inf".

  Args:
    file: created, or continued.
    resumed_at: the step of the restored checkpoint. Later records are removed, since their updates run again. None
      starts an empty file.
  """

  def __init__(self, file: str | pathlib.Path, resumed_at: int | None = None):
    self._stream: TextIO | None = None
    if jax.process_index() != 0:
      return
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = [] if resumed_at is None else _lines_up_to(file, resumed_at)
    partial = file.with_name(file.name + '.partial')
    partial.write_text(''.join(kept), encoding='utf-8')
    os.replace(partial, file)  # atomic: a crash leaves the old file or the new one
    self._stream = file.open('a', encoding='utf-8')

  def write(self, step: int, values: Values) -> None:
    if self._stream is not None:
      record = {'step': step} | {name: _jsonable(value) for name, value in values.items()}
      self._stream.write(json.dumps(record, allow_nan=False) + '\n')
      self._stream.flush()

  def close(self) -> None:
    if self._stream is not None:
      self._stream.close()


def read_jsonl(file: str | pathlib.Path) -> list[dict[str, float | int]]:
  """Reads the records of a JsonlWriter. Ignores a last line that a crash cut short."""
  records = []
  for line in pathlib.Path(file).read_text(encoding='utf-8').splitlines(keepends=True):
    if line.endswith('\n'):
      records.append({name: float(v) if isinstance(v, str) else v for name, v in json.loads(line).items()})
  return records


def _lines_up_to(file: pathlib.Path, step: int) -> list[str]:
  if not file.exists():
    return []
  lines = file.read_text(encoding='utf-8').splitlines(keepends=True)
  return [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= step]


def _jsonable(value: float | int) -> float | int | str:
  return value if isinstance(value, int) or math.isfinite(value) else str(value)


class TensorBoardWriter:
  """Event files for TensorBoard.

  Args:
    folder: created if absent.
    resumed_at: the step of the restored checkpoint. TensorBoard hides earlier events of later steps. None hides all.
  """

  def __init__(self, folder: str | pathlib.Path, resumed_at: int | None = None):
    self._writer = None
    if jax.process_index() == 0:
      self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=0 if resumed_at is None else resumed_at + 1)

  def write(self, step: int, values: Values) -> None:
    if self._writer is not None:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


class ConsoleWriter:
  """A progress bar on a terminal; plain lines elsewhere.

  Args:
    total: steps of the whole run.
    every: steps between two plain lines; the first and the last step always have one.
    stream: None is standard output.
  """

  def __init__(self, total: int, every: int = 10, stream: TextIO | None = None):
    if every < 1:
      raise ValueError(f'every={every}: must be at least 1 step between two lines')
    self._total, self._every = total, every
    self._stream = sys.stdout if stream is None else stream
    self._quiet = jax.process_index() != 0
    self._seconds: collections.deque[float] = collections.deque(maxlen=21)  # of the last steps
    self._started = False
    self._bar: progress.Progress | None = None
    if not self._quiet and self._stream.isatty():
      self._bar = _progress_bar(self._stream)
      self._task = self._bar.add_task('', total=total, shown='starting', left='')
      self._bar.start()

  def write(self, step: int, values: Values) -> None:
    if self._quiet:
      return
    left = self._time_left(step, values)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, shown=_shown(values), left=left)
    elif _shown(values) and (not self._started or step % self._every == 0 or step == self._total):
      self._print(f'step {step}/{self._total}  {_shown(values)}' + (f'  left {left}' if left else ''))
      self._started = True
    evaluation = _shown({name.removeprefix('eval/'): v for name, v in values.items() if name.startswith('eval/')})
    if evaluation:
      self._print(f'held out, step {step}/{self._total}  {evaluation}')

  def close(self) -> None:
    if self._bar is not None:
      self._bar.stop()

  def _print(self, line: str) -> None:
    if self._bar is not None:
      self._bar.console.print(line, highlight=False, soft_wrap=True)
    else:
      print(line, file=self._stream, flush=True)

  def _time_left(self, step: int, values: Values) -> str:
    """From the median time of the last steps, because some steps wait for a compilation or a checkpoint."""
    if 'time/seconds' in values:
      self._seconds.append(values['time/seconds'])
    if len(self._seconds) < 2:
      return ''
    seconds = round(statistics.median(self._seconds) * (self._total - step))
    return f'{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}'


def _shown(values: Values) -> str:
  return '  '.join(f'{label} {form.format(values[name])}' for name, label, form in _SHOWN if name in values)


def _progress_bar(stream: TextIO) -> progress.Progress:
  return progress.Progress(
    progress.BarColumn(bar_width=24),
    progress.MofNCompleteColumn(),
    progress.TextColumn('{task.fields[shown]}'),
    progress.TextColumn('left {task.fields[left]}'),
    console=rich_console.Console(file=stream),
  )
