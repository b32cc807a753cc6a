"""What the programs of the studies share: their options, their progress, arms that are kept, and the summary."""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import threading
import time
from typing import Any

from rich import console as rich_console

from alignjax import files, paths
from alignjax.run import costs, fields


@dataclasses.dataclass(frozen=True)
class Options:
  """Study."""

  workdir: str = fields.field('runs/toy', 'Folder for figure.png, table.md and summary.json.', path=paths.DISK)
  seeds: int = fields.field(3, 'Number of seeds.', at_least=2)
  quick: bool = fields.field(False, 'Use tiny sizes, only to check that the study runs.')


def options(name: str) -> type[Options]:
  """The options of a study; its default folder is runs/toy/ and its name."""
  text = Options.__dataclass_fields__['workdir'].metadata['text']
  workdir = fields.field(f'runs/toy/{name}', text, path=paths.DISK)
  return dataclasses.make_dataclass(
    'Options', [('workdir', str, workdir)], bases=(Options,), namespace={'__doc__': Options.__doc__}, frozen=True
  )


def sized[S](chosen: Options, full: S, tiny: S) -> S:
  """The setting that the options choose."""
  return dataclasses.replace(tiny if chosen.quick else full, seeds=chosen.seeds)


class Session:
  """One run of a study. Arms that are done are kept in arms.json, from which a restarted study reads them.

  Args:
    workdir: the folder, created if absent.
    setting: the size of the study, a dataclass. Arms of another setting are not read.
  """

  def __init__(self, workdir: pathlib.Path, setting: Any):
    self.workdir, self.console, self.clock = workdir, rich_console.Console(), costs.Clock()
    self._setting = json.loads(json.dumps(dataclasses.asdict(setting)))
    self._file, self._lock = workdir / 'arms.json', threading.Lock()
    kept = json.loads(self._file.read_text(encoding='utf-8')) if self._file.is_file() else {}
    same = kept.get('setting') == self._setting
    self._arms, self._earlier = (kept['arms'], kept['processor_seconds']) if same else ({}, 0.0)
    workdir.mkdir(parents=True, exist_ok=True)

  @property
  def _processor_seconds(self) -> float:
    """The processor time of this study, including the runs that computed the kept arms."""
    return self._earlier + time.process_time()

  def announce(self, text: str) -> None:
    """Prints a line with the seconds since the start."""
    self.console.print(f'{self.clock.seconds()["total"]:5.0f} s  {text}', highlight=False, soft_wrap=True)

  def arm(self, name: str, compute: Callable[[], Any]) -> Any:
    """Computes an arm, or returns what an earlier run with this setting found. Threads may compute arms at once.

    Args:
      name: the arm, unique within the study.
      compute: returns the findings in JSON types.
    """
    if name not in self._arms:
      found = compute()
      with self._lock:
        self._arms[name] = found
        kept = {'setting': self._setting, 'processor_seconds': self._processor_seconds, 'arms': self._arms}
        files.replace(self._file, (json.dumps(kept) + '\n').encode())
    return self._arms[name]

  def finish(self, found: dict[str, Any]) -> dict[str, Any]:
    """Writes summary.json with the setting, the findings and the costs, and returns its content."""
    spent = {'seconds': self.clock.seconds(), 'processor_seconds': self._processor_seconds}
    summary = {'setting': self._setting, **found, 'costs': spent}
    (self.workdir / 'summary.json').write_text(json.dumps(summary, indent=1) + '\n', encoding='utf-8')
    self.announce(f'wrote figure.png, table.md and summary.json to {self.workdir}')
    return summary
