"""Writers of metrics: console, JSONL and TensorBoard, from process 0 only.

A record is a step and a flat mapping of names to numbers. Names under `time/` (seconds, tokens per second, memory)
differ from run to run; everything else is identical when a run is repeated or resumed on the same mesh.
"""

import collections
from collections.abc import Mapping
import contextlib
import io
import json
import math
import os
import pathlib
import socket
import statistics
import struct
import sys
import time
from typing import Protocol, TextIO

from absl import logging
import jax
from rich import console as rich_console
from rich import progress
from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

from alignjax import paths
from alignjax.training import disk

TIME_PREFIX = 'time/'
Values = Mapping[str, float | int]

# Metrics on the console: name, label, format.
_SHOWN = (
  ('loss', 'loss', '{:.4f}'),
  ('reward_accuracy', 'accuracy', '{:.3f}'),
  ('reward_margin', 'margin', '{:+.4f}'),
  ('rollout/reward', 'reward', '{:.3f}'),
  ('rollout/kl', 'KL', '{:.3f}'),
  ('gradient_norm', 'grad norm', '{:.3g}'),
  ('time/tokens_per_second', 'tok/s', '{:,.0f}'),
)


class MetricsError(OSError):
  """Metrics that must not be lost cannot be written."""


class Writer(Protocol):
  """Receives every record. Each process calls every writer, in the same order."""

  def write(self, step: int, values: Values) -> None:
    """Writes a record.

    Raises:
      MetricsError: the record is not written. The run saves a checkpoint and stops.
    """

  def close(self) -> None: ...


class JsonlWriter:
  """One JSON object per line, `{"step": 3, "loss": 0.6931471824645996, ...}`, on disk when `write` returns.

  Floats have as many digits as it takes to read back the same bits. JSON has no infinities, so a value that is not
  finite becomes a string that `float` reads: "nan", "inf", "-inf".

  Args:
    file: created, or continued. Damaged lines are moved to a second file, metrics.damaged.jsonl for metrics.jsonl.
    resumed_at: the step of the restored checkpoint. Later records are removed, since their updates run again. None
      starts an empty file.
  """

  def __init__(self, file: str | pathlib.Path, resumed_at: int | None = None):
    self._file = pathlib.Path(file)
    self._stream: io.RawIOBase | None = None
    self._unwritten = b''
    if jax.process_index() != 0:
      return
    self._file.parent.mkdir(parents=True, exist_ok=True)
    kept = [] if resumed_at is None else _lines_up_to(self._file, resumed_at)
    partial = self._file.with_name(self._file.name + '.partial')
    partial.write_bytes(b''.join(kept))
    os.replace(partial, self._file)  # atomic: a crash leaves the old file or the new one
    self._stream = self._file.open('ab', buffering=0)

  def write(self, step: int, values: Values) -> None:
    if self._stream is not None:
      record = {'step': step} | {name: _jsonable(value) for name, value in values.items()}
      self._unwritten += json.dumps(record, allow_nan=False).encode() + b'\n'
      try:
        self._append()
      except OSError as error:
        raise MetricsError(f'{self._file}: cannot be written from step {step} on: {disk.describe(error)}') from error

  def close(self) -> None:
    if self._stream is not None:
      with contextlib.suppress(OSError):  # `write` has reported it
        self._append()
      self._stream.close()

  def _append(self) -> None:
    """Appends everything that is not in the file yet."""
    while self._unwritten:
      written = self._stream.write(self._unwritten)
      self._unwritten = self._unwritten[written:]


def grouped(values: Values) -> dict[str, float | int]:
  """The finite values with a group in front of each name, as dashboards show them: `train/loss`, `eval/loss`.

  The hash of the batch is left out: it is for comparing files.
  """
  return {
    name if '/' in name else f'train/{name}': value
    for name, value in values.items()
    if math.isfinite(value) and name != 'batch_hash'
  }


def read_jsonl(file: str | pathlib.Path) -> list[dict[str, float | int]]:
  """Reads the records of a JsonlWriter. Warns of damaged lines and ignores a last line that a crash cut short."""
  records, damaged = _parse(paths.path(file))
  if damaged:
    logging.warning('%s: %s: not a record', file, _numbers(damaged))
  return [
    {name: float(value) if isinstance(value, str) else value for name, value in record.items()} for _, record in records
  ]


_Record = dict[str, float | int | str]


def _parse(file: pathlib.Path) -> tuple[list[tuple[bytes, _Record]], dict[int, bytes]]:
  """The complete lines of a file: those that are records, and the damaged ones by their number."""
  records, damaged = [], {}
  for number, line in enumerate(file.read_bytes().split(b'\n')[:-1], 1):
    record = _record(line)
    if record is None:
      damaged[number] = line + b'\n'
    else:
      records.append((line + b'\n', record))
  return records, damaged


def _record(line: bytes) -> _Record | None:
  """The record in a line; None if the line is damaged."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
    return None
  if not isinstance(record, dict) or type(record.get('step')) is not int:
    return None
  return record if all(isinstance(v, int | float) or v in ('nan', 'inf', '-inf') for v in record.values()) else None


def _lines_up_to(file: pathlib.Path, step: int) -> list[bytes]:
  """The lines to keep. Damaged lines are moved to a file of their own."""
  if not file.exists():
    return []
  records, damaged = _parse(file)
  if damaged:
    aside = file.with_name(f'{file.stem}.damaged{file.suffix}')
    with aside.open('ab') as stream:
      stream.writelines(damaged.values())
    logging.warning('%s: %s: not a record; moved to %s', file, _numbers(damaged), aside)
  return [line for line, record in records if record['step'] <= step]


def _numbers(lines: Mapping[int, bytes]) -> str:
  """Formats the first line numbers, and the number of remaining ones."""
  shown = ', '.join(map(str, list(lines)[:8]))
  return f'line{"s" if len(lines) > 1 else ""} {shown}' + (f' and {len(lines) - 8} more' if len(lines) > 8 else '')


def _jsonable(value: float | int) -> float | int | str:
  return value if isinstance(value, int) or math.isfinite(value) else str(value)


class TensorBoardWriter:
  """Event files for TensorBoard, written without a thread or a queue, which could block the run.

  If a file cannot be written, the writer warns once and is off from then on.

  Args:
    folder: created if absent.
    resumed_at: the step of the restored checkpoint. TensorBoard hides earlier events of later steps. None hides all.
  """

  def __init__(self, folder: str | pathlib.Path, resumed_at: int | None = None):
    self._folder = pathlib.Path(folder)
    self._stream: io.RawIOBase | None = None
    if jax.process_index() == 0:
      first = 0 if resumed_at is None else resumed_at + 1
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      try:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}'
        self._stream = (self._folder / name).open('ab', buffering=0)
        self._append(event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2'))
        self._append(event_pb2.Event(wall_time=time.time(), step=first, session_log=start))
      except OSError as error:
        self._turn_off(first, error)

  def write(self, step: int, values: Values) -> None:
    if self._stream is not None:
      # TensorBoard draws no NaN, and its library warns of each one.
      scalars = [scalar for name, value in grouped(values).items() for scalar in summary.scalar(name, value).value]
      event = event_pb2.Event(wall_time=time.time(), step=step)
      event.summary.value.extend(scalars)
      try:
        self._append(event)
      except OSError as error:
        self._turn_off(step, error)

  def close(self) -> None:
    if self._stream is not None:
      self._stream.close()

  def _append(self, event: event_pb2.Event) -> None:
    """Appends an event as a TFRecord: length, checksum of the length, bytes, checksum of the bytes."""
    data = event.SerializeToString()
    length = struct.pack('<Q', len(data))
    sums = [struct.pack('<I', record_writer.masked_crc32c(part)) for part in (length, data)]
    left = length + sums[0] + data + sums[1]
    while left:
      left = left[self._stream.write(left) :]

  def _turn_off(self, step: int, error: OSError) -> None:
    if self._stream is not None:
      with contextlib.suppress(OSError):
        self._stream.close()
    self._stream = None
    logging.warning(
      '%s: cannot be written: %s. TensorBoard is off from step %d on; metrics.jsonl is complete',
      self._folder,
      disk.describe(error),
      step,
    )


class ConsoleWriter:
  """A progress bar on a terminal; plain lines elsewhere. If the stream cannot be written, warns once and is silent.

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
    try:
      self._show(step, values)
    except OSError as error:
      self._quiet = True
      logging.warning('standard output cannot be written: %s. Progress is not shown any more', disk.describe(error))

  def _show(self, step: int, values: Values) -> None:
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
      with contextlib.suppress(OSError):
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
