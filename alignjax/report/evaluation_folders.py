"""Reads the folder of an evaluation. What is missing becomes a note."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from alignjax.evaluation import evaluator
from alignjax.report import facts, naming, run_folders, sample_files
from alignjax.run import evaluating

RESULT = 'evaluation.json'


def is_evaluation(folder: pathlib.Path) -> bool:
  return (folder / RESULT).is_file() or (folder / 'parts').is_dir()


def read(folder: pathlib.Path, notes: list[str]) -> facts.Evaluation:
  """Reads an evaluation.

  Args:
    folder: what was given to `alignjax evaluate --out`.
    notes: gets a line for everything that is missing.
  """
  if not (folder / RESULT).is_file():
    count = sum(path.suffix == '.json' for path in (folder / 'parts').iterdir())
    notes.append(
      f'{folder}: has no {RESULT}, so the evaluation is unfinished; measured parts: {count}. The same command '
      'continues it.'
    )
    return facts.Evaluation(str(folder))
  found = run_folders.content(folder / RESULT, notes)
  known = run_folders.read_about(folder, notes)
  models, reference = _models(found), str(found.get('reference', ''))
  if not models and found:
    notes.append(f'{folder / RESULT}: holds no models.')
  shown = sample_files.of_evaluation(folder / 'samples.jsonl', _last_of_runs(models))
  if shown is None:
    notes.append(f'{folder}: has no samples.jsonl, so no samples are shown.')
  return facts.Evaluation(
    folder=str(folder),
    about=known,
    prompts=_whole(found.get('prompts')),
    samples=_whole(found.get('samples')),
    reference=reference,
    models=models,
    best_of_n=tuple(_best(found.get('best_of_n'))),
    laws=tuple(_laws(found.get('over_optimisation'))),
    shown=shown,
  )


def concerns(folder: pathlib.Path, run: pathlib.Path) -> bool:
  """Whether an evaluation measures a model of a run: one of its names leads into the folder of the run."""
  if not (folder / RESULT).is_file():
    return False
  names = [pathlib.PurePath(each.name) for each in _models(run_folders.content(folder / RESULT, []))]
  inside = run.resolve()
  return any(inside in pathlib.Path(name).resolve().parents or run.name in name.parts[:-1] for name in names)


def _models(found: Mapping[str, Any]) -> tuple[facts.Model, ...]:
  models = found.get('models')
  if not isinstance(models, dict):
    return ()
  reference = found.get('reference')
  names = sorted(models, key=lambda name: name != reference)
  return tuple(_model(name, label, models[name]) for name, label in zip(names, naming.short(names), strict=True))


def _model(name: str, label: str, values: Any) -> facts.Model:
  path = pathlib.PurePath(name)
  checkpoint = path.parent.name == evaluating.CHECKPOINTS and path.name.isdecimal()
  run, step = (str(path.parent.parent), int(path.name)) if checkpoint else ('', 0)
  read = {key: _estimate(value) for key, value in values.items()} if isinstance(values, dict) else {}
  return facts.Model(name, label, run, step, {key: value for key, value in read.items() if value is not None})


def _last_of_runs(models: tuple[facts.Model, ...]) -> dict[str, str]:
  """The labels of the models whose samples are shown, by name: of the checkpoints of a run, the last one."""
  last = {each.group: each for each in sorted(models, key=lambda each: each.step)}
  return {each.name: each.label for each in models if last[each.group] is each}


def _estimate(value: Any) -> evaluator.Estimate | None:
  mean, error = (value.get('mean'), value.get('error')) if isinstance(value, dict) else (value, None)
  if not isinstance(mean, int | float):
    return None
  return evaluator.Estimate(float(mean), float(error) if isinstance(error, int | float) else math.nan)


def _best(entries: Any) -> list[tuple[int, float, evaluator.Estimate]]:
  found = []
  for entry in filter(_is_object, entries if isinstance(entries, list) else ()):
    reward, kl = _estimate(entry.get('reward')), _estimate(entry.get('kl'))
    if reward is not None and kl is not None:
      found.append((_whole(entry.get('n')), kl.mean, reward))
  return found


def _laws(runs: Any) -> list[tuple[str, ...]]:
  found = []
  for run, fits in runs.items() if isinstance(runs, dict) else ():
    for fit in filter(_is_object, fits if isinstance(fits, list) else ()):
      numbers = [_estimate(fit.get(name)) for name in ('a', 'b', 'rms')]
      found.append((run, str(fit.get('of')), str(fit.get('law')), *map(naming.estimate, numbers)))
  return found


def _is_object(value: Any) -> bool:
  return isinstance(value, dict)


def _whole(value: Any) -> int:
  return value if type(value) is int else 0
