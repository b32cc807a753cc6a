"""Runs that campaigns break, and how to compare a broken one with a whole one."""

from collections.abc import Callable
import hashlib
import pathlib
from typing import NamedTuple

from alignjax.run import settings
from alignjax.training import metrics
from tests import assets, runs

# What a run trains, by name: settings, given the folder of the files and the work directory.
_Overrides = Callable[[pathlib.Path, pathlib.Path], dict[str, object]]
SCENARIOS: dict[str, _Overrides] = {
  'plain, with evaluation': lambda files, workdir: {'eval_every': 8},
  'LoRA': lambda files, workdir: {'adapter': 'lora(rank=4, alpha=8)'},
  'cached reference': lambda files, workdir: {'reference_cache': str(workdir / 'cache')},
  'online_dare(every=3)': lambda files, workdir: {
    'optimizer': 'chain(adamw(5e-4), online_dare(reserve=0.5, alpha=0.01, every=3))',
    'base_model': str(files / 'base'),
  },
  "alpha_dpo(normaliser='ema')": lambda files, workdir: {'objective': "alpha_dpo(normaliser='ema')"},
}


def write_files(folder: pathlib.Path) -> pathlib.Path:
  """Writes model/, base/, train.jsonl and eval.jsonl into a new folder, and returns it."""
  folder.mkdir()
  runs.write_folder(folder)
  return assets.write_tiny_model(folder / 'base', seed=1, layers=1).parent


def configure(files: pathlib.Path, workdir: pathlib.Path, scenario: str, **overrides: object) -> settings.Config:
  """The configuration of a run of a scenario, which saves after every step."""
  values = {'eval_every': 0, 'eval_data': ()} if scenario != next(iter(SCENARIOS)) else {}
  return runs.make_config(
    files, workdir, **{'save_every': 1, 'keep': 3} | values | SCENARIOS[scenario](files, workdir) | overrides
  )


def committed(workdir: pathlib.Path) -> list[int]:
  """The steps with a committed checkpoint, the newest last."""
  return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('[0-9]*') if path.name.isdigit())


def unfinished(workdir: pathlib.Path) -> set[tuple[str, int]]:
  """Name and inode of each checkpoint that is being written."""
  found = set()
  for path in (workdir / 'checkpoints').glob('*-tmp*'):
    try:
      found.add((path.name, path.stat().st_ino))
    except FileNotFoundError:
      continue  # committed in between
  return found


class Difference(NamedTuple):
  """How two runs compare."""

  values: int  # metrics compared
  different: int
  exports: bool  # whether all exported files are equal, byte for byte


def compare(workdir: pathlib.Path, whole: pathlib.Path) -> Difference:
  """Compares the metrics of two runs, except times, and everything that they export."""
  found, expected = (_metrics(path) for path in (workdir, whole))
  different = sum(found.get(key) != expected.get(key) for key in found | expected)
  return Difference(len(expected), different, _exports(workdir) == _exports(whole))


def _metrics(workdir: pathlib.Path) -> dict[tuple[int, str], set[str]]:
  """All digits of each metric of each step. An evaluation that is made up for is a record of its own."""
  found: dict[tuple[int, str], set[str]] = {}
  for record in metrics.read_jsonl(workdir / 'metrics.jsonl'):
    for name, value in record.items():
      if not name.startswith(metrics.TIME_PREFIX):
        found.setdefault((record['step'], name), set()).add(repr(value))
  return found


def _exports(workdir: pathlib.Path) -> dict[str, str]:
  files = [path for name in ('model', 'model_average', 'adapter') for path in (workdir / name).rglob('*')]
  return {
    str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()
  }
