"""Kills training runs, in a save and elsewhere, resumes them, and compares them with runs that nothing interrupts.

  python -m bench.survival.kills --count=250

A fifth of the kills are of one of two processes: the other one must end by itself, and then both start again. Of the
others, 7 of 10 come 0 to 30 ms after a temporary checkpoint appears, and the rest at any time from the first line on.
"""

import os
import pathlib
import random
import re
import signal
import time
from typing import NamedTuple

from bench.survival import campaign, forks, worlds

STEPS = 32
TWO = 'two processes'
_SHARE_OF_TWO = 5
MOST = 12  # kills of one run; the results are written when it is finished
_RESUMED, _CORRUPT = re.compile(r'resuming from step (\d+)'), 'CORRUPT CHECKPOINT'


class Place(NamedTuple):
  """A run of a scenario that is killed again and again until it is finished."""

  scenario: str
  files: pathlib.Path
  folder: pathlib.Path
  processes: int

  @property
  def workdir(self) -> pathlib.Path:
    return self.folder / 'run'

  def start(self) -> list[forks.Run]:
    """Starts, or resumes, the run."""
    scenario = next(iter(worlds.SCENARIOS)) if self.scenario == TWO else self.scenario
    flags = forks.arguments(worlds.configure(self.files, self.workdir, scenario, steps=STEPS))
    port = forks.free_port() if self.processes > 1 else 0
    return [
      forks.start([*flags, *(forks.connected(process, port) if port else [])], self.folder / f'log{process}')
      for process in range(self.processes)
    ]


class Kill(NamedTuple):
  """What a killed run leaves."""

  in_a_save: bool
  newest: int  # the last committed checkpoint; 0: none
  seconds: float  # until the other process ended
  codes: list[str]  # of the other process


def wait_for_save(workdir: pathlib.Path, before: set[tuple[str, int]], run: forks.Run, number: int) -> None:
  """Waits until a run begins its n-th save, or ends."""
  seen = set(before)

  def begun() -> bool:
    seen.update(worlds.unfinished(workdir))
    return len(seen) >= len(before) + number

  forks.wait_until(begun, run)


def strike(place: Place, draw: random.Random) -> Kill | None:
  """Starts a run and kills one of its processes; None if it finishes before."""
  before = worlds.unfinished(place.workdir)
  running = place.start()
  victim = draw.choice(running)
  if draw.random() < 0.7:
    wait_for_save(place.workdir, before, victim, draw.choice((1, 1, 2, 3)))
    time.sleep(draw.uniform(0, 0.03))
  else:
    time.sleep(draw.uniform(0, 4.0 if place.processes == 1 else 12.0))
  victim.send(signal.SIGKILL)
  began = time.monotonic()
  codes = [run.wait(120) for run in running if run is not victim]
  seconds = time.monotonic() - began if codes else 0.0
  if victim.wait() != 128 + signal.SIGKILL:
    return None
  newest = max(worlds.committed(place.workdir), default=0)
  return Kill(bool(worlds.unfinished(place.workdir)), newest, seconds, [forks.describe(code) for code in codes])


class Lost(NamedTuple):
  """What a restart has lost."""

  commits: int
  fallbacks: int


def examine(place: Place, newest: int) -> Lost:
  """Reads in the log of process 0 whether a restart went on from the newest checkpoint.

  A process that is killed before it resumes prints nothing, and the next one is examined in its place.
  """
  log = place.folder / 'log0'  # absent if the process was killed before its first line
  output = log.read_text(encoding='utf-8', errors='replace') if log.exists() else ''
  resumed = [int(step) for step in _RESUMED.findall(output)]
  still_there = max(worlds.committed(place.workdir), default=0)
  least = min([*resumed, still_there])
  return Lost(max(0, newest - least), output.count(_CORRUPT))


def suffer(place: Place, draw: random.Random, most: int, whole: pathlib.Path) -> campaign.Record:
  """Kills a run until it is finished, at most so many times, and compares it with a whole one."""
  kills, lost, newest = [], Lost(0, 0), 0
  while len(kills) < most:
    kill = strike(place, draw)
    found = examine(place, newest)
    lost = Lost(lost.commits + found.commits, lost.fallbacks + found.fallbacks)
    if kill is None:
      break
    kills.append(kill)
    newest = kill.newest
  codes = [run.wait() for run in place.start()]
  found = examine(place, newest)
  if any(codes):
    raise RuntimeError(f'{place.folder}: exit codes {codes}:\n{(place.folder / "log0").read_text()}')
  difference = worlds.compare(place.workdir, whole)
  return {
    'scenario': place.scenario,
    'kills': len(kills),
    'in_a_save': sum(kill.in_a_save for kill in kills),
    'commits_lost': lost.commits + found.commits,
    'fallbacks': lost.fallbacks + found.fallbacks,
    'compared': difference.values,
    'different': difference.different,
    'equal_exports': difference.exports,
    'longest_wait': round(max((kill.seconds for kill in kills), default=0.0), 1),
    'hung': sum(code == 'hung' for kill in kills for code in kill.codes),
    'codes': sorted({code for kill in kills for code in kill.codes}),
  }


def count_of(scenario: str, count: int) -> int:
  """How many of the kills a scenario gets."""
  if scenario == TWO:
    return count // _SHARE_OF_TWO
  names = list(worlds.SCENARIOS)
  alone, place = count - count // _SHARE_OF_TWO, names.index(scenario)
  return alone * (place + 1) // len(names) - alone * place // len(names)


def run(results: campaign.Results, count: int, seed: int) -> None:
  """Kills until the results hold so many kills."""
  draw = random.Random(seed)
  with campaign.workspace() as folder:
    forks.prepare(folder)
    files = worlds.write_files(folder / 'files')
    for scenario in (*worlds.SCENARIOS, TWO):
      processes = 2 if scenario == TWO else 1
      whole = None
      while (rest := count_of(scenario, count) - sum(record['kills'] for record in results.of(scenario=scenario))) > 0:
        if whole is None:
          whole = Place(scenario, files, folder / f'whole{len(os.listdir(folder))}', processes)
          whole.folder.mkdir()
          if any(run.wait() for run in whole.start()):
            raise RuntimeError(f'{scenario}: the run that nothing interrupts fails:\n{whole.folder / "log0"}')
        place = Place(scenario, files, folder / f'killed{len(os.listdir(folder))}', processes)
        place.folder.mkdir()
        results.add(suffer(place, draw, min(rest, MOST), whole.workdir))
        results.progress(sum(record['kills'] for record in results.records), count)


def report(results: campaign.Results) -> int:
  """Prints the table, and returns how much was lost."""
  rows, lost = [], 0
  for scenario in (*worlds.SCENARIOS, TWO, 'all'):
    records = results.records if scenario == 'all' else results.of(scenario=scenario)
    names = ('kills', 'in_a_save', 'commits_lost', 'fallbacks', 'compared', 'different', 'hung')
    total = {name: sum(record[name] for record in records) for name in names}
    equal = sum(record['equal_exports'] for record in records)
    waits = f'{max((record["longest_wait"] for record in records), default=0.0)} s' if scenario == TWO else ''
    codes = ', '.join(sorted({code for record in records for code in record['codes']})) if scenario == TWO else ''
    rows.append([scenario, *total.values(), f'{equal} of {len(records)}', waits, codes])
    lost = total['commits_lost'] + total['fallbacks'] + total['different'] + total['hung'] + len(records) - equal
  header = ['run', 'kills', 'of them in a save', 'commits lost', 'fallbacks', 'metrics compared', 'different']
  header += ['other process hung', 'final models byte-equal', 'other process ended after', 'with']
  print(campaign.table(header, rows))
  return lost


if __name__ == '__main__':
  campaign.main('kills', __doc__, run, report)
