"""Runs the points of a sweep as processes, some at a time, and remembers which are done."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

from alignjax import files
from alignjax.run import grids

RECORD = 'sweep.json'  # in the folder of the sweep: the arguments and the exit code of each point that has ended
POLL = 0.2  # seconds

Announce = Callable[[str], None]


def command(point: grids.Point, folder: pathlib.Path) -> list[str]:
  """The arguments of `alignjax` that train a point: 'train', ..."""
  return ['train', *point.arguments, f'--workdir={folder / point.name}']


class Record:
  """The points that have ended, on disk."""

  def __init__(self, folder: pathlib.Path):
    self.path = folder / RECORD
    try:
      self.ended = json.loads(self.path.read_bytes()) if self.path.exists() else {}
    except json.JSONDecodeError as error:
      raise ValueError(
        f'{self.path}: is not JSON ({error}): delete it, and finished runs report that they are'
      ) from None

  def done(self, point: grids.Point) -> bool:
    """Whether this point has finished, with the same arguments."""
    return self.ended.get(point.name) == {'arguments': point.arguments, 'code': 0}

  def add(self, point: grids.Point, code: int) -> None:
    self.ended[point.name] = {'arguments': point.arguments, 'code': code}
    files.replace(self.path, (json.dumps(self.ended, indent=2) + '\n').encode())


def run(points: Sequence[grids.Point], folder: pathlib.Path, jobs: int, announce: Announce) -> dict[str, int]:
  """Trains all points that are not done; the others go on if one fails.

  If this process is stopped, the runs are asked to save, and the same sweep continues them.

  Args:
    points: the runs.
    folder: the folder of the sweep; the output of a run goes to `<name>.log` beside its work directory.
    jobs: how many run at a time.
    announce: called with a line for each run that starts or ends.

  Returns:
    The exit codes of the points that failed, by name.
  """
  record = Record(folder)
  waiting = [point for point in points if not record.done(point)]
  if skipped := len(points) - len(waiting):
    announce(f'{skipped} of {len(points)} runs are finished already')
  running: dict[subprocess.Popen, grids.Point] = {}
  with _stopped(running):
    while waiting or running:
      while waiting and len(running) < jobs:
        point = waiting.pop(0)
        announce(f'start {point.name}')
        running[_start(point, folder)] = point
      for process in [each for each in running if each.poll() is not None]:
        point = running.pop(process)
        record.add(point, process.returncode)
        left = f'{len(waiting) + len(running)} left'
        if process.returncode:
          announce(f'failed {point.name}, exit code {process.returncode}: {reason(folder, point.name)} ({left})')
        else:
          announce(f'done {point.name} ({left})')
      time.sleep(POLL if running else 0)
  return {point.name: record.ended[point.name]['code'] for point in points if record.ended[point.name]['code']}


def _start(point: grids.Point, folder: pathlib.Path) -> subprocess.Popen:
  with log(folder, point.name).open('ab') as stream:
    environment = os.environ | {'PYTHONUNBUFFERED': '1'}
    argv = [sys.executable, '-m', 'alignjax', *command(point, folder)]
    # A session of its own: Ctrl-C at the terminal reaches this process alone, which passes it on once.
    return subprocess.Popen(
      argv, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    )


@contextlib.contextmanager
def _stopped(running: dict[subprocess.Popen, grids.Point]) -> Iterator[None]:
  """Asks the runs that are left to save and end, if the block is left by an exception."""
  try:
    yield
  except BaseException:
    for process in running:
      process.terminate()
    for process in running:
      process.wait()
    raise


def log(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file with the output of a run."""
  return folder / f'{name}.log'


def reason(folder: pathlib.Path, name: str) -> str:
  """The last error that a run has printed, or its last line."""
  return last_error(log(folder, name))


def last_error(path: pathlib.Path) -> str:
  """The last error in the output of a command, or its last line."""
  lines = path.read_text(errors='replace').splitlines()
  errors = [line for line in lines if line.startswith('error: ')]
  return (errors or [line for line in lines if line.strip()] or [''])[-1]
