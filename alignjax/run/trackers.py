"""Trackers draw the metrics of runs in a browser: Weights & Biases and trackio, each behind an extra of its own."""

from collections.abc import Mapping, Sequence
import importlib
import importlib.util
import json
import pathlib
from typing import Any, NamedTuple
import uuid

from absl import logging
import jax

from alignjax import files
from alignjax.training import metrics

NAMES = ('trackio', 'wandb')
ID_FILE = 'trackers.json'  # in the work directory: the id under which trackers know the run


class Run(NamedTuple):
  """What trackers show of a run."""

  project: str
  name: str
  config: Mapping[str, Any]  # in JSON types


def check(names: Sequence[str]) -> None:
  """Raises ValueError if a name is unknown, given twice, or its package is not installed."""
  for name in names:
    if name not in NAMES:
      raise ValueError(f'config.trackers: {name!r} is unknown; choose from {", ".join(NAMES)}')
    if list(names).count(name) > 1:
      raise ValueError(f'config.trackers: {name!r} is given twice')
    if importlib.util.find_spec(name) is None:
      raise ValueError(f"config.trackers: the package {name} is not installed: pip install 'alignjax[{name}]'")


def writers(names: Sequence[str], run: Run, workdir: pathlib.Path, resumed_at: int | None) -> list['TrackerWriter']:
  """The writers of a run, on process 0; none on other processes.

  Args:
    names: the trackers.
    run: what they show.
    workdir: holds the id of the run; `resumed_at` None starts a new one.
    resumed_at: the step of the restored checkpoint.
  """
  if not names or jax.process_index() != 0:
    return []
  file = workdir / ID_FILE
  if resumed_at is None or not file.exists():
    files.replace(file, json.dumps({'id': uuid.uuid4().hex[:16]}).encode())
  run_id = json.loads(file.read_bytes())['id']
  return [TrackerWriter(name, run, run_id) for name in names]


class TrackerWriter:
  """Sends every record to a tracker. If the tracker fails, warns once and is off from then on.

  The steps after a checkpoint run again when a run is resumed, so they may be sent twice, with equal values.

  Args:
    name: the tracker, one of `NAMES`.
    run: what it shows.
    run_id: equal for all starts of a run, so that a resumed run continues its curves.
  """

  def __init__(self, name: str, run: Run, run_id: str):
    self._name, self._run = name, None
    try:
      module = importlib.import_module(name)
      if name == 'wandb':
        settings = module.Settings(init_timeout=30)
        self._run = module.init(
          project=run.project, name=run.name, config=dict(run.config), id=run_id, resume='allow', settings=settings
        )
        self._run.define_metric('*', step_metric='step')  # W&B's own step may not go back, as after a resume
      else:
        named = f'{run.name}-{run_id[:4]}'  # trackio finds a run by its name
        self._run = module.init(project=run.project, name=named, config=dict(run.config), resume='allow', embed=False)
    except Exception as error:  # each tracker has its own; none may stop the training
      self._turn_off(0, error)

  def write(self, step: int, values: metrics.Values) -> None:
    if self._run is None:
      return
    try:
      if self._name == 'wandb':
        self._run.log(metrics.grouped(values) | {'step': step})
      else:
        self._run.log(metrics.grouped(values), step=step)
    except Exception as error:
      self._turn_off(step, error)

  def close(self) -> None:
    if self._run is not None:
      try:
        self._run.finish()
      except Exception as error:
        self._turn_off(-1, error)

  def _turn_off(self, step: int, error: Exception) -> None:
    self._run = None
    when = 'at the end of the run' if step < 0 else f'from step {step} on'
    logging.warning(
      '%s cannot be reached: %s: %s. It is off %s; metrics.jsonl is complete',
      self._name,
      type(error).__name__,
      ' '.join(str(error).split()),
      when,
    )
