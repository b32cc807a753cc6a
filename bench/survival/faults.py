"""Injects faults into runs of one and of two processes: the exit codes, what is left, and whether the run goes on.

  python -m bench.survival.faults --count=28

In two processes only process 1 has the fault. Afterwards the command is given again without it: the run must end with
0, and be the same, bit for bit, as one without a fault.
"""

from collections.abc import Mapping
import dataclasses
import errno
import importlib
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from alignjax import exit_codes
from alignjax.run import settings
from bench.survival import campaign, forks, worlds
from tests import runs

STEPS = 8
WATCH = settings.WatchConfig(step=10, compile=120, save=15, evaluation=15, export=60)  # seconds; machines may be busy


class Act(NamedTuple):
  """What happens at the n-th call of a function of the library."""

  owner: str  # 'module:attribute' of a class, or 'module'
  function: str
  count: int
  error: Exception | None = None  # raised from that call on; None: the call never returns

  def __call__(self) -> None:
    """Replaces the function."""
    calls = []

    def act(*args, **options):
      del args, options
      calls.append(None)
      if len(calls) >= self.count:
        if self.error is not None:
          raise self.error
        time.sleep(10 * forks.LONGEST)

    forks.before_calls(self.owner, self.function, act)


def spoil() -> None:
  """Makes the labels of every batch from the fifth one on NaN."""
  source = importlib.import_module('alignjax.training.source').GrainSource
  original, calls = source.next, []

  def spoiled(batches, state):
    batch = original(batches, state)
    calls.append(None)
    if len(calls) < 5:
      return batch
    data = dataclasses.replace(batch.data, label=np.full_like(batch.data.label, np.nan))
    return batch._replace(data=data)

  source.next = spoiled


class Fault(NamedTuple):
  """A fault, and how the process that has it must end."""

  name: str
  code: int
  text: str  # part of what it prints
  patch: forks.Patch | None = None
  settings: Mapping[str, Any] = {}  # changed settings; FILES is replaced by the data folder
  saved: int = 0  # the newest checkpoint that must be left
  processes: tuple[int, ...] = (1, 2)
  same: bool = True  # whether the run ends like one without the fault


FILES = 'FILES'
EIO, ENOSPC, ETIMEDOUT = (
  OSError(code, f'injected {errno.errorcode[code]}') for code in (errno.EIO, errno.ENOSPC, errno.ETIMEDOUT)
)
TENSORSTORE = ValueError('RESOURCE_EXHAUSTED: injected: Error writing "state/params" [tensorstore]')
BARRIER = jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: injected: Barrier timed out')
READ, LOAD = ('alignjax.data.reading.sources', 'read_examples'), ('alignjax.models.checkpoint_io', 'load_params')
MANAGER, NEXT = 'orbax.checkpoint:CheckpointManager', ('alignjax.training.source:GrainSource', 'next')
EVALUATE, SAVE = ('alignjax.training.loop:_Run', 'evaluate'), (MANAGER, 'save')
EXPORT = ('alignjax.models.checkpoint_io', 'save')
CRASHED, REFUSED, HUNG = exit_codes.CRASHED, exit_codes.REFUSED, 'no progress for'

FAULTS = [
  Fault('EIO while reading data', CRASHED, 'injected EIO', Act(*READ, 1, EIO)),
  Fault('ETIMEDOUT while loading weights', CRASHED, 'injected ETIMEDOUT', Act(*LOAD, 1, ETIMEDOUT)),
  Fault('a malformed row', REFUSED, 'bad.jsonl:2', settings={'data': (f'{FILES}/bad.jsonl',)}),
  Fault('ENOSPC in the second save', CRASHED, 'the disk is full', Act(*SAVE, 2, ENOSPC), saved=2),
  Fault('ETIMEDOUT in the second save', CRASHED, 'injected ETIMEDOUT', Act(*SAVE, 2, ETIMEDOUT), saved=2),
  Fault('an error of TensorStore in the second save', CRASHED, 'injected', Act(*SAVE, 2, TENSORSTORE), saved=2),
  Fault('a barrier that times out in the second save', CRASHED, 'injected', Act(*SAVE, 2, BARRIER), saved=2),
  Fault('labels that are NaN from step 5 on', exit_codes.NOT_FINITE, 'loss is nan', spoil, saved=4, same=False),
  Fault('ENOSPC in the export', exit_codes.NOT_EXPORTED, 'the disk is full', Act(*EXPORT, 1, ENOSPC), saved=STEPS),
  Fault('another seed', REFUSED, 'config.seed: 0 on process 0, 1 on process 1', settings={'seed': 1}, processes=(2,)),
  Fault('other data', REFUSED, 'data_fingerprint', settings={'data': (f'{FILES}/other.jsonl',)}, processes=(2,)),
  Fault('another model', REFUSED, 'model_fingerprint', settings={'model': f'{FILES}/base'}, processes=(2,)),
  Fault('another objective', REFUSED, 'config.objective', settings={'objective': 'ipo()'}, processes=(2,)),
  Fault('another work directory', REFUSED, 'workdir id', settings={'workdir': f'{FILES}/local'}, processes=(2,)),
  Fault('a loader that hangs at step 7', CRASHED, HUNG, Act(*NEXT, 7), saved=6),
  Fault('a second save that hangs', CRASHED, HUNG, Act(*SAVE, 2), saved=2),
  Fault('a second evaluation that hangs', CRASHED, HUNG, Act(*EVALUATE, 2), saved=2),
]
CASES = [(fault, processes) for processes in (1, 2) for fault in FAULTS if processes in fault.processes]


class World(NamedTuple):
  """The files of all runs."""

  folder: pathlib.Path
  files: pathlib.Path

  def start(self, workdir: pathlib.Path, processes: int, fault: Fault | None = None) -> list[forks.Run]:
    """Starts, or resumes, a run; the last process has the fault."""
    workdir.mkdir(exist_ok=True)
    port, running = forks.free_port(), []
    for process in range(processes):
      faulty = fault is not None and process == processes - 1
      changed = json.loads(json.dumps(dict(fault.settings)).replace(FILES, str(self.files))) if faulty else {}
      changed = {name: tuple(value) if isinstance(value, list) else value for name, value in changed.items()}
      values = {'steps': STEPS, 'save_every': 2, 'eval_every': 3, 'watch': WATCH, 'nonfinite_limit': 2} | changed
      folder = pathlib.Path(values.pop('workdir', workdir))
      config = worlds.configure(self.files, folder, next(iter(worlds.SCENARIOS)), **values)
      flags = forks.arguments(config) + (forks.connected(process, port) if processes > 1 else [])
      patches = [fault.patch] if faulty and fault.patch else []
      running.append(forks.start(flags, workdir.with_suffix(f'.log{process}'), patches))
    return running


def suffer(world: World, fault: Fault, processes: int, workdir: pathlib.Path) -> campaign.Record:
  """Runs with a fault, and then without it."""
  began = time.monotonic()
  running = world.start(workdir, processes, fault)
  codes = [run.wait() for run in running]
  seconds = time.monotonic() - began
  outputs = [run.output() for run in running]
  saved = max(worlds.committed(workdir), default=0)
  left = [path.name for path in workdir.rglob('*.partial')]
  again = [run.wait() for run in world.start(workdir, processes)]
  difference = worlds.compare(workdir, world.folder / f'whole{processes}')
  same = not difference.different and difference.exports
  as_promised = (
    codes[-1] == fault.code
    and all(code in (fault.code, CRASHED) for code in codes)
    and fault.text in outputs[-1]
    and saved >= fault.saved
    and not left
    and not any(again)
    and (same or not fault.same)
  )
  result = {'fault': fault.name, 'processes': processes, 'codes': codes, 'seconds': round(seconds, 1), 'saved': saved}
  result |= {'left': left, 'again': again, 'same': same, 'as_promised': as_promised}
  return result | {'log': '' if as_promised else '\n---\n'.join(output[-1500:] for output in outputs)}


def run(results: campaign.Results, count: int, seed: int) -> None:
  """Injects the faults one after another, and again from the first one on, until the results hold so many."""
  del seed
  with campaign.workspace() as folder:
    forks.prepare(folder)
    files = worlds.write_files(folder / 'files')
    runs.write_pairs(files / 'other.jsonl', 61, seed=5)
    rows = (files / 'train.jsonl').read_text(encoding='utf-8').splitlines()
    rows[1] = rows[1].replace('"chosen": "', '"chosen": 3, "x": "')
    (files / 'bad.jsonl').write_text('\n'.join(rows))
    world = World(folder, files)
    for processes in (1, 2):
      whole = world.start(folder / f'whole{processes}', processes)
      if any(run.wait() for run in whole):
        raise RuntimeError(whole[0].output())
    while (number := len(results.records)) < count:
      fault, processes = min(CASES, key=lambda case: len(results.of(fault=case[0].name, processes=case[1])))
      results.add(suffer(world, fault, processes, folder / f'run{number}'))
      results.progress(number + 1, count)


def report(results: campaign.Results) -> int:
  """Prints the table, and returns how many runs did not end as promised."""
  rows = []
  for record in sorted(results.records, key=lambda record: record['processes']):
    codes, again = (', '.join(map(forks.describe, record[name])) for name in ('codes', 'again'))
    left = f'checkpoint {record["saved"]}' if record['saved'] else 'nothing'
    verdict = 'yes' if record['as_promised'] else 'NO'
    same = 'yes' if record['same'] else 'no'
    rows.append([record['fault'], record['processes'], codes, record['seconds'], left, again, same, verdict])
  header = ['fault', 'processes', 'exit codes', 'seconds', 'left', 'again, without it', 'same bits', 'as promised']
  print(campaign.table(header, rows))
  bad = [record for record in results.records if not record['as_promised']]
  for record in bad:
    print(f'\n{record["fault"]}, {record["processes"]} processes:\n{record["log"]}')
  return len(bad)


if __name__ == '__main__':
  campaign.main('faults', __doc__, run, report)
