"""Reads the work directory of a run. Missing and damaged files become notes, not errors."""

from collections.abc import Iterator, Mapping, Sequence
import datetime
import json
import math
import pathlib
import re
from typing import Any

from alignjax import files
from alignjax.doctor import findings
from alignjax.report import facts, sample_files
from alignjax.run import about, fields, history, settings
from alignjax.training import metrics, step_folders

CONFIG, METRICS = 'config.json', 'metrics.jsonl'
WRITTEN = {  # what a run writes, by name
  'model': 'the aligned model in Hugging Face format',
  'model_average': 'the moving average of the weights, in Hugging Face format',
  'adapter': 'the LoRA adapter in PEFT format',
  'checkpoints': 'checkpoints to resume from',
  'rollouts': 'the responses of all rounds, with their rewards',
  'metrics.jsonl': 'all metrics of all updates',
  'metrics.damaged.jsonl': 'damaged lines that were found in metrics.jsonl',
  'config.json': 'the settings; `alignjax train --config=` reads them',
  'about.json': 'versions, devices and the findings of the doctor',
  'tensorboard': 'the metrics for TensorBoard',
  'tokens': 'the tokenised data',
}


def is_run(folder: pathlib.Path) -> bool:
  return (folder / CONFIG).is_file() or (folder / METRICS).is_file()


def read(folder: pathlib.Path, label: str, notes: list[str]) -> facts.Run:
  """Reads a run, which may be unfinished.

  Args:
    folder: its work directory.
    label: its name in the report.
    notes: gets a line for everything that is missing.
  """
  config = fields.flat_dict(content(folder / CONFIG, notes))
  records = _records(folder, notes)
  curves = history.curves(records)
  known = read_about(folder, notes)
  run = facts.Run(
    folder=str(folder),
    label=label,
    record=history.Run(label, config, curves),
    about=known,
    command=about.command('train', settings.Config, config) if config else '',
    steps=max((record['step'] for record in records), default=0),
    planned=_whole(config.get('steps')) or known.steps,  # a resumed run may do more than it planned
    skipped=_skipped(records),
    last=_modified(folder / METRICS) if records else '',
    rollouts=sample_files.of_rollouts(folder / 'rollouts', label),
    drawn=sample_files.drawn(folder),
    artefacts=tuple(artefacts(folder)),
  )
  notes += _state(run)
  return run


def _state(run: facts.Run) -> Iterator[str]:
  if run.steps and run.planned > run.steps:
    yield f'{run.folder}: has done {run.steps} of {run.planned} updates; the last record was written at {run.last}.'
  if run.skipped:
    shown = ', '.join(map(str, run.skipped[:8])) + (' and more' if len(run.skipped) > 8 else '')
    yield f'{run.folder}: batches skipped because their loss or gradient was not finite: {len(run.skipped)} ({shown}).'


def _records(folder: pathlib.Path, notes: list[str]) -> list[dict[str, float | int]]:
  try:
    records = metrics.read_jsonl(folder / METRICS)
  except OSError:
    records = []
  if not records:
    notes.append(f'{folder}: {METRICS} has no records: the run has just begun, or it ended before its first update.')
  return records


def _skipped(records: Sequence[Mapping[str, float]]) -> tuple[int, ...]:
  """The updates at which the count of skipped batches rises, or the loss is not finite."""
  found, before = [], 0.0
  for record in records:
    count = record.get('skipped', before)
    if count > before or not math.isfinite(record.get('loss', 0.0)):
      found.append(int(record['step']))
    before = count
  return tuple(dict.fromkeys(found))


def content(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
  """The object in a JSON file; empty, with a note, if there is none."""
  try:
    found = files.read_json(path)
  except ValueError as error:
    notes.append(f'{error}.')
    return {}
  if not isinstance(found, dict):
    notes.append(f'{path}: is not a JSON object.')
    return {}
  return found


def read_about(folder: pathlib.Path, notes: list[str]) -> facts.About:
  """Reads about.json."""
  if not (folder / about.FILE).is_file():
    notes.append(f'{folder}: has no {about.FILE}, so versions and devices are unknown.')
    return facts.About()
  found = content(folder / about.FILE, notes)
  doctor, versions = found.get('doctor'), found.get('versions')
  return facts.About(
    command=str(found.get('command', '')),
    devices=str(found.get('devices', '')),
    versions={str(name): str(value) for name, value in versions.items()} if isinstance(versions, dict) else {},
    summary=_summary(str(found.get('summary', ''))),
    doctor=tuple(_findings(doctor)) if isinstance(doctor, list) else None,
    steps=_whole(found.get('steps')),
  )


def _findings(entries: Sequence[Any]) -> list[findings.Finding]:
  found = [
    findings.Finding(*(str(entry.get(name, '')) for name in findings.Finding._fields))
    for entry in entries
    if isinstance(entry, dict) and entry.get('severity') in findings.SEVERITIES
  ]
  return findings.worst_first(found)


def _summary(text: str) -> tuple[tuple[str, str], ...]:
  """The lines of `record.summary`, with the label in front of each; a continued line joins the one before it."""
  found: list[tuple[str, str]] = []
  for line in text.splitlines():
    label, _, value = line.partition(' ')
    if label:
      found.append((label, value.strip()))
    elif found:
      found[-1] = (found[-1][0], f'{found[-1][1]}; {value.strip()}')
  return tuple(found)


def _whole(value: Any) -> int:
  return value if type(value) is int and value > 0 else 0


def _modified(path: pathlib.Path) -> str:
  time = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
  return f'{time:%Y-%m-%d %H:%M} UTC'


def artefacts(folder: pathlib.Path) -> Iterator[facts.Artefact]:
  """What a run has written, in the order of `WRITTEN`."""
  for name, text in WRITTEN.items():
    path = folder / name
    if path.is_file():
      yield facts.Artefact(name, text, path.stat().st_size)
    elif path.is_dir():
      size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
      if name == 'checkpoints':
        text += f': updates {", ".join(map(str, step_folders.steps(path))) or "none yet"}'
      if name == 'rollouts':
        text += f': {sum(bool(re.fullmatch(r"round_[0-9]+.npz", file.name)) for file in path.iterdir())} rounds'
      yield facts.Artefact(f'{name}/', text, size)


def shown(value: Any) -> str:
  """A setting as text."""
  if isinstance(value, str):
    return value
  if isinstance(value, list) and all(isinstance(each, str) for each in value):
    return ', '.join(value)
  return json.dumps(value)
