"""Sends SIGTERM in every phase of a run, once and twice, and checks how the run ends and what it has saved.

  python -m bench.survival.signals --count=220

The signal comes at the start of the phase, or a random time later; the second one 0 to 120 ms after the first. A run
that is told to stop must end with 42, must have saved every step that its metrics list, and must leave no temporary
file. The first run of each kind is then started again, and compared with one that nothing interrupts.
"""

from collections.abc import Callable
import functools
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from alignjax import exit_codes
from alignjax.run import settings
from alignjax.training import metrics
from bench.survival import campaign, forks, worlds

STEPS = 6


class Phase(NamedTuple):
  """A phase of a run, and the call of a function with which it begins."""

  name: str
  owner: str  # 'module:attribute' of a class, or 'module'
  function: str
  count: int  # the phase begins with the n-th call
  span: float  # seconds in which the signal comes
  only: str = ''  # counts only calls of the program of this name

  def tell(self, signals: 'Signals') -> None:
    """Replaces the function: its n-th call sends the signals."""
    calls = []

    def act(*args, **options):
      del options
      if not self.only or args[0]._name == self.only:
        calls.append(None)
        if len(calls) == self.count:
          signals.send()

    forks.before_calls(self.owner, self.function, act)


class Signals(NamedTuple):
  """When SIGTERM is sent, and where the time of the first one is noted."""

  delay: float  # seconds after the phase has begun; 0: at once
  gaps: tuple[float, ...]  # seconds between one signal and the next
  note: pathlib.Path

  def send(self) -> None:
    """Sends the signals to this process."""
    threading.Thread(target=self._send, daemon=True).start()
    if not self.delay:
      while not self.note.exists():
        time.sleep(0.0001)

  def _send(self) -> None:
    time.sleep(self.delay)
    for gap in (0.0, *self.gaps):
      time.sleep(gap)
      if not self.note.exists():
        self.note.write_text(str(time.monotonic()))
      os.kill(os.getpid(), signal.SIGTERM)


PROGRAMS, CHECKPOINTS = 'alignjax.training.programs:Programs', 'alignjax.training.checkpoint:Checkpoints'
IMPORTS = 'imports'
PHASES = [
  Phase(IMPORTS, '', '', 0, 3.0),
  Phase('tokenising', 'alignjax.data.tokens.tokenization:Tokenizer', 'encode_all', 1, 0.03),
  Phase('loading', 'alignjax.models.checkpoint_io', 'load_params', 1, 0.03),
  Phase('doctor', 'alignjax.run.examination', 'examine', 1, 1.0),
  Phase('cache', 'alignjax.data.batches.reference_cache:Writer', 'write', 3, 0.05),
  Phase('compile', PROGRAMS, '_compile', 1, 1.0, 'training step'),
  Phase('step', 'alignjax.training.metrics:JsonlWriter', 'write', 3, 0.05),
  Phase('evaluation', PROGRAMS, '__call__', 3, 0.02, 'evaluation'),
  Phase('save', CHECKPOINTS, 'save', 1, 0.1),
  Phase('last save', CHECKPOINTS, 'close', 1, 0.02),
  Phase('export', 'alignjax.models.checkpoint_io', 'save', 1, 0.02),
]
KINDS = [(phase, times) for phase in PHASES for times in (1, 2)]


class World(NamedTuple):
  """The files of all runs, and a run that nothing interrupts."""

  folder: pathlib.Path
  files: pathlib.Path

  def configure(self, workdir: pathlib.Path, phase: str = '') -> settings.Config:
    """A run that reaches a phase."""
    extra = {'doctor': 'warn'} if phase == 'doctor' else {}
    if phase == 'cache':
      extra['reference_cache'] = str(workdir / 'cache')
    values = {'steps': STEPS, 'save_every': 2, 'eval_every': 3, 'reference_cache': str(self.folder / 'cache')}
    return worlds.configure(self.files, workdir, next(iter(worlds.SCENARIOS)), **values | extra)

  def start(self, workdir: pathlib.Path, phase: str = '', patches: tuple[Callable, ...] = ()) -> forks.Run:
    """Starts, or resumes, a run that reaches a phase."""
    workdir.mkdir(exist_ok=True)
    flags = forks.arguments(self.configure(workdir, phase))
    return forks.start(flags, workdir.with_suffix('.log'), patches)


def handles(pid: int, number: int) -> bool:
  """Whether a process has a handler for a signal."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  mask = next(line.split()[1] for line in status.splitlines() if line.startswith('SigCgt'))
  return bool(int(mask, 16) >> (number - 1) & 1)


def tell_importing(world: World, workdir: pathlib.Path, signals: Signals) -> tuple[int, float]:
  """Starts a program of its own and signals it during its imports; returns the exit code and the seconds."""
  command = [sys.executable, '-m', 'alignjax', 'train', *forks.arguments(world.configure(workdir))]
  with workdir.with_suffix('.log').open('w') as log:
    process = subprocess.Popen(command, cwd=campaign.ROOT, stdout=log, stderr=subprocess.STDOUT)
  while process.poll() is None and not handles(process.pid, signal.SIGTERM):
    time.sleep(0.001)
  time.sleep(signals.delay)
  began = time.monotonic()
  for gap in (0.0, *signals.gaps):
    time.sleep(gap)
    process.send_signal(signal.SIGTERM)
  code = process.wait(forks.LONGEST)
  return code if code >= 0 else 128 - code, time.monotonic() - began


def tell(world: World, phase: Phase, workdir: pathlib.Path, signals: Signals) -> tuple[int | None, float]:
  """Starts a run and signals it in a phase; returns the exit code and the seconds until the end."""
  if phase.name == IMPORTS:
    return tell_importing(world, workdir, signals)
  running = world.start(workdir, phase.name, (functools.partial(phase.tell, signals),))
  code = running.wait()
  return code, time.monotonic() - float(signals.note.read_text()) if signals.note.exists() else -1.0


def attempt(world: World, phase: Phase, times: int, draw: random.Random, resume: bool) -> campaign.Record:
  """Signals a run in a phase and examines what it leaves."""
  workdir = world.folder / f'run{len(os.listdir(world.folder))}'
  delay = draw.choice((0.0, draw.uniform(0, phase.span), draw.uniform(0, phase.span)))
  gaps = (draw.uniform(0, 0.12),) * (times - 1)
  code, seconds = tell(world, phase, workdir, Signals(delay, gaps, workdir.with_suffix('.told')))
  saved = max(worlds.committed(workdir), default=0)
  logged = metrics.read_jsonl(workdir / 'metrics.jsonl') if (workdir / 'metrics.jsonl').exists() else []
  done = max((record['step'] for record in logged), default=0)
  left = [path.name for pattern in ('*.partial', '*tmp*') for path in workdir.rglob(pattern)]
  finished = (workdir / 'model').exists()
  result = {'phase': phase.name, 'times': times, 'code': code, 'seconds': round(seconds, 2), 'left': left}
  result |= {'saved': saved, 'unsaved': max(0, done - saved), 'finished': finished}
  if resume:
    again = world.start(workdir, phase.name).wait()
    difference = worlds.compare(workdir, world.folder / 'whole')
    result['resumed'] = again == 0 and not difference.different and difference.exports
  result['log'] = '' if good(result) else workdir.with_suffix('.log').read_text(errors='replace')[-3000:]
  return result


def good(record: campaign.Record) -> bool:
  """Whether a run has ended as promised. One that the signal reaches after its last line ends with 0."""
  ended = record['code'] == exit_codes.PREEMPTED or (record['code'] == exit_codes.DONE and record['finished'])
  return ended and not record['unsaved'] and not record['left'] and record.get('resumed', True)


def run(results: campaign.Results, count: int, seed: int) -> None:
  """Signals runs until the results hold so many."""
  draw = random.Random(seed)
  with campaign.workspace() as folder:
    forks.prepare(folder)
    world = World(folder, worlds.write_files(folder / 'files'))
    if world.start(folder / 'whole').wait():
      raise RuntimeError((folder / 'whole.log').read_text())
    for number in range(len(results.records), count):
      phase, times = KINDS[number % len(KINDS)]
      results.add(attempt(world, phase, times, draw, resume=number < len(KINDS)))
      results.progress(number + 1, count)


def report(results: campaign.Results) -> int:
  """Prints the table, and returns how many runs did not end as promised."""
  rows = []
  for phase, times in KINDS:
    records = results.of(phase=phase.name, times=times)
    if records:
      seconds = [record['seconds'] for record in records]
      codes = sorted({forks.describe(record['code']) for record in records})
      resumed = [record['resumed'] for record in records if 'resumed' in record]
      rows.append(
        [phase.name, times, len(records), f'{sum(map(good, records))} of {len(records)}', ', '.join(codes)]
        + [f'{statistics.median(seconds):.1f}', f'{max(seconds):.1f}']
        + [', '.join(map(str, sorted({record['saved'] for record in records}))), f'{sum(resumed)} of {len(resumed)}']
      )
  header = ['told during', 'SIGTERMs', 'runs', 'as promised', 'exit codes', 'seconds, median', 'most']
  print(campaign.table([*header, 'saved at step', 'resumed bit for bit'], rows))
  bad = [record for record in results.records if not good(record)]
  for record in bad:
    print({name: value for name, value in record.items() if name != 'log'}, record['log'][-600:], sep='\n')
  return len(bad)


if __name__ == '__main__':
  campaign.main('signals', __doc__, run, report)
