"""What the campaigns share: results that survive a stop, a table, and the flags --count, --seed and --results.

A campaign does the same experiment many times and appends one JSON object per experiment to a file under runs/survival.
Started again, it goes on after the experiments in that file, so delete the file to start over. It prints its progress
to standard error and its table to standard output, and exits with 1 if anything was lost.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'runs' / 'survival'
Record = dict[str, Any]


class Results:
  """The records of a campaign, in a file with one JSON object per line."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    self.records: list[Record] = [json.loads(line) for line in lines]
    self._began, self._before = time.monotonic(), len(self.records)
    self._commit = commit()

  def add(self, record: Mapping[str, Any]) -> None:
    """Appends a record, with the time and the commit of the code."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    self.records.append({**record, 'time': now, 'commit': self._commit})
    with self._path.open('a', encoding='utf-8') as stream:
      stream.write(json.dumps(self.records[-1]) + '\n')

  def of(self, **values: Any) -> list[Record]:
    """The records that have these values."""
    return [record for record in self.records if all(record.get(name) == value for name, value in values.items())]

  def progress(self, done: int, count: int) -> None:
    """Prints how far the campaign is."""
    minutes = (time.monotonic() - self._began) / 60
    print(f'{self._path.stem}: {done} of {count}, {minutes:.1f} min', file=sys.stderr, flush=True)

  def source(self) -> str:
    """When, and with which commits, the records were made."""
    days = sorted({record['time'][:10] for record in self.records})
    commits = dict.fromkeys(record['commit'] for record in self.records)
    return f'{" to ".join(dict.fromkeys((days[0], days[-1])))}, commit {", ".join(commits)}' if days else 'no records'


def commit() -> str:
  """The commit of the code, with + if files differ from it."""
  command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty=+', '--exclude=*']
  return subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'unknown'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """A Markdown table."""
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


@contextlib.contextmanager
def workspace() -> Iterator[pathlib.Path]:
  """A temporary folder that only this user can read. A fork does not remove it when it exits."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix='alignjax_survival_'))
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def main(name: str, text: str, run: Callable[[Results, int, int], None], report: Callable[[Results], int]) -> None:
  """Runs a campaign as a program.

  Args:
    name: the name of the results file.
    text: the text of --help.
    run: does experiments until the results hold `count`; called with the results, the count and the seed.
    report: prints the table, and returns how much was lost.
  """
  parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=10, help='Number of experiments, including earlier ones.')
  parser.add_argument('--seed', type=int, default=0, help='Seed of everything that is random.')
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS / f'{name}.jsonl', help='File of the results.')
  given = parser.parse_args()
  results = Results(given.results)
  run(results, given.count, given.seed + len(results.records))  # a campaign that goes on draws other numbers
  lost = report(results)
  print(f'\n{results.source()}. Lost: {lost}')
  sys.exit(1 if lost else 0)
