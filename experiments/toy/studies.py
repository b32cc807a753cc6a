"""What the programs of the studies share: their options, their progress, arms that are kept, and the summary."""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import re
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
  """One run of a study. An arm that is done is kept in the folder, and read again when the study is restarted.

  Args:
    workdir: the folder, created if absent.
    setting: the size of the study, a dataclass. Arms of another setting are computed again.
  """

  def __init__(self, workdir: pathlib.Path, setting: Any):
    self.workdir, self.console, self.clock = workdir, rich_console.Console(), costs.Clock()
    self._setting, self._earlier = dataclasses.asdict(setting), 0.0
    workdir.mkdir(parents=True, exist_ok=True)

  def announce(self, text: str) -> None:
    """Prints a line with the seconds since the start."""
    self.console.print(f'{self.clock.seconds()["total"]:5.0f} s  {text}', highlight=False, soft_wrap=True)

  def arm(self, name: str, compute: Callable[[], Any]) -> Any:
    """Computes an arm, or reads it if an earlier run with this setting computed it.

    Args:
      name: the arm, unique within the study.
      compute: returns the findings in JSON types.
    """
    path = self.workdir / 'arms' / f'{re.sub(r"[^a-zA-Z0-9.]+", "_", name).strip("_")}.json'
    setting = json.loads(json.dumps(self._setting))
    kept = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    if (kept.get('arm'), kept.get('setting')) == (name, setting):
      self._earlier += kept['processor_seconds']
      return kept['found']
    start = time.process_time()
    found = compute()
    kept = {'arm': name, 'setting': setting, 'processor_seconds': time.process_time() - start, 'found': found}
    path.parent.mkdir(exist_ok=True)
    files.replace(path, (json.dumps(kept) + '\n').encode())
    return found

  def finish(self, found: dict[str, Any]) -> dict[str, Any]:
    """Writes summary.json with the setting, the findings and the costs, those of kept arms included; returns it."""
    spent = {'seconds': self.clock.seconds(), 'processor_seconds': time.process_time() + self._earlier}
    summary = {'setting': self._setting, **found, 'costs': spent}
    (self.workdir / 'summary.json').write_text(json.dumps(summary, indent=1) + '\n', encoding='utf-8')
    self.announce(f'wrote figure.png, table.md and summary.json to {self.workdir}')
    return summary
