"""Reads folders of runs, evaluations, comparisons and sweeps as the facts of a report."""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Any

from alignjax import paths
from alignjax.evaluation import evaluator
from alignjax.report import evaluation_folders, facts, naming, run_folders
from alignjax.run import grids, sweeping

COMPARISON = 'compare.json'


def read(folders: Sequence[str]) -> facts.Report:
  """Reads all folders, and the evaluations in or beside the runs that measure them.

  Raises:
    ValueError: a folder does not exist, is given twice, or is none of what a report shows.
  """
  notes: list[str] = []
  given = [pathlib.Path(paths.path(folder)) for folder in folders]
  for folder in given:
    _check(folder)
  if len({folder.resolve() for folder in given}) < len(given):
    raise ValueError(f'{", ".join(folders)}: a folder is given twice')
  sweeps = [folder for folder in given if _is_sweep(folder)]
  compared = [folder for folder in given if (folder / COMPARISON).is_file()]
  evaluated = [folder for folder in given if evaluation_folders.is_evaluation(folder)]
  runs = [folder for folder in given if folder not in sweeps and run_folders.is_run(folder)]
  comparisons = []
  for folder in compared:
    found = _compared(folder, notes)
    there = [pathlib.Path(name) for name in found.names if run_folders.is_run(pathlib.Path(name))]
    runs += [each for each in there if each.resolve() not in {run.resolve() for run in runs}]
    if gone := [name for name in found.names if pathlib.Path(name) not in there]:
      notes.append(f'{folder}: compares {", ".join(gone)}, not found from here, so their curves are missing.')
      comparisons.append(found)
  members = {folder: dict(_members(folder)) for folder in sweeps}
  within = [path for found in members.values() for path in found.values()]
  evaluated += _evaluations([*runs, *within], {folder.resolve() for folder in evaluated})
  labels = naming.short([str(folder) for folder in runs])
  return facts.Report(
    title=', '.join(folder.resolve().name for folder in given),
    runs=tuple(run_folders.read(folder, label, notes) for folder, label in zip(runs, labels, strict=True)),
    evaluations=tuple(evaluation_folders.read(folder, notes) for folder in evaluated),
    sweeps=tuple(_sweep(folder, members[folder], notes) for folder in sweeps),
    comparisons=tuple(comparisons),
    notes=tuple(dict.fromkeys(notes)),
  )


def _check(folder: pathlib.Path) -> None:
  if not folder.is_dir():
    raise ValueError(f'{folder}: there is no such folder')
  if _is_sweep(folder) or (folder / COMPARISON).is_file() or evaluation_folders.is_evaluation(folder):
    return
  if run_folders.is_run(folder):
    return
  inside = sorted(str(path) for path in folder.iterdir() if path.is_dir() and run_folders.is_run(path))
  hint = f'. It holds runs: give {",".join(inside[:8])}' if inside else ''
  raise ValueError(
    f'{folder}: is not the folder of a run, an evaluation, a comparison or a sweep: it has no {run_folders.CONFIG}, '
    f'{run_folders.METRICS}, {evaluation_folders.RESULT}, {COMPARISON} or {sweeping.RECORD}{hint}'
  )


def _is_sweep(folder: pathlib.Path) -> bool:
  return (folder / sweeping.RECORD).is_file()


def _evaluations(runs: Sequence[pathlib.Path], known: set[pathlib.Path]) -> list[pathlib.Path]:
  """The finished evaluations in the folders of runs, and those beside them that measure one of the runs."""
  found = []
  for run in runs:
    places = [*run.iterdir(), *run.resolve().parent.iterdir()]
    for path in sorted(places):
      inside = path.parent == run
      if path.resolve() in known or not path.is_dir() or not (path / evaluation_folders.RESULT).is_file():
        continue
      if inside or evaluation_folders.concerns(path, run):
        known.add(path.resolve())
        found.append(path if inside else run.parent / path.name)
  return found


def _members(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
  """The folders of the runs of a sweep by name."""
  for path in sorted(folder.iterdir()):
    if path.is_dir() and '=' in path.name and run_folders.is_run(path):
      yield path.name, path


def _sweep(folder: pathlib.Path, members: dict[str, pathlib.Path], notes: list[str]) -> facts.Sweep:
  ended = run_folders.content(folder / sweeping.RECORD, notes)
  failed = {
    name: str(entry.get('code', 'unknown'))
    for name, entry in ended.items()
    if isinstance(entry, dict) and entry.get('code') != 0
  }
  names = [name for name in ended if name in members] + [name for name in members if name not in ended]
  if running := [name for name in members if name not in ended]:
    notes.append(f'{folder}: {", ".join(running)} have not ended. The same command continues the sweep.')
  groups: dict[str, list[facts.Run]] = {}
  about = run_folders.read_about(folder, notes)
  for name in names:
    groups.setdefault(group_of(name), []).append(run_folders.read(members[name], name, notes))
  return facts.Sweep(
    folder=str(folder),
    about=about,
    groups={group: tuple(found) for group, found in groups.items()},
    failures=tuple(facts.Failure(name, code, _reason(folder, name)) for name, code in failed.items()),
  )


def group_of(name: str) -> str:
  """The name of a run without its seed."""
  parts = [part for part in grids.split(name, ',') if part.partition('=')[0] != grids.SEED]
  return ','.join(parts) or 'all'


def _reason(folder: pathlib.Path, name: str) -> str:
  return sweeping.reason(folder, name) if sweeping.log(folder, name).is_file() else 'its log is missing'


def _compared(folder: pathlib.Path, notes: list[str]) -> facts.Comparison:
  found = run_folders.content(folder / COMPARISON, notes)
  parts = [found.get(name) for name in ('updates', 'settings', 'metrics')]
  whole = all(isinstance(part, dict) for part in parts)
  if not whole or not all(isinstance(values, dict) for part in parts[1:] for values in part.values()):
    notes.append(f'{folder / COMPARISON}: is damaged. `alignjax compare` writes it again.')
    return facts.Comparison(str(folder), (), (), ())
  updates, settings, metrics = parts
  names = tuple(updates)
  measured = dict.fromkeys(name for values in metrics.values() for name in values)
  return facts.Comparison(
    folder=str(folder),
    names=names,
    settings=tuple(
      (name, *(run_folders.shown(values.get(each)) for each in names)) for name, values in settings.items()
    ),
    metrics=tuple((name, *(_value(metrics.get(each, {}).get(name)) for each in names)) for name in measured),
  )


def _value(value: Any) -> str:
  return naming.estimate(evaluator.Estimate(value, float('nan'))) if isinstance(value, int | float) else '–'
