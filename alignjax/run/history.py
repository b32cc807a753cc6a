"""What a run has recorded: its configuration and its metrics, for comparing runs."""

from collections.abc import Iterable, Mapping, Sequence
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from alignjax import paths
from alignjax.run import fields
from alignjax.training import metrics

SHARE = 0.1  # of the steps, the last ones, over which training metrics are averaged
# The metrics that are shown first, if runs have them.
FIRST = (
  'eval/reward_accuracy',
  'train/reward_accuracy',
  'train/rollout/reward',
  'rollout/reward',
  'rollout/kl',
  'eval/loss',
  'train/loss',
  'eval/reward_margin',
  'train/gradient_norm',
  'train/length',
)


class Curve(NamedTuple):
  """A metric over the updates of a run."""

  steps: np.ndarray  # [n] int64
  values: np.ndarray  # [n] float64


class Run(NamedTuple):
  """The record of a run."""

  name: str
  config: Mapping[str, Any]  # flat, nested names joined with dots
  curves: Mapping[str, Curve]  # by the names of dashboards, such as train/loss and eval/loss

  @property
  def steps(self) -> int:
    """The last update of the record; 0 if there is none."""
    return max((int(curve.steps[-1]) for curve in self.curves.values()), default=0)

  def last(self, name: str) -> float:
    """The last value of a metric; for training metrics, the mean over the last tenth of the updates. NaN if absent."""
    if name not in self.curves:
      return float('nan')
    values = self.curves[name].values
    if name.startswith('eval/'):
      return float(values[-1])
    return float(np.mean(values[-max(1, round(len(values) * SHARE)) :]))


def read(folder: str | os.PathLike[str]) -> Run:
  """Reads the record of a run from its work directory. The run may still be going on.

  Raises:
    ValueError: the folder is not the work directory of a run, or nothing is recorded yet.
  """
  name, folder = os.fspath(folder).rstrip('/') or '/', paths.path(folder)
  try:
    config = json.loads((folder / 'config.json').read_bytes())
    records = metrics.read_jsonl(folder / 'metrics.jsonl')
  except FileNotFoundError as error:
    raise ValueError(
      f'{folder}: has no {pathlib.Path(error.filename).name}, so it is not the work directory of a run'
    ) from error
  except json.JSONDecodeError as error:
    raise ValueError(f'{folder / "config.json"}: is not JSON: {error}') from error
  found = curves(records)
  if not found:
    raise ValueError(f'{folder}: nothing is recorded in metrics.jsonl yet')
  return Run(name, fields.flat_dict(config), found)


def curves(records: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
  """The finite values of each metric in the records of a run, by the names of dashboards."""
  found: dict[str, list[tuple[int, float]]] = {}
  for record in records:
    for key, value in metrics.grouped({key: each for key, each in record.items() if key != 'step'}).items():
      found.setdefault(key, []).append((record['step'], value))
  return {
    name: Curve(np.array([step for step, _ in points]), np.array([value for _, value in points], np.float64))
    for name, points in sorted(found.items())
  }


def chosen(runs: Sequence[Run], most: int) -> list[str]:
  """Up to `most` metrics that most runs have, the most telling first."""
  counts: dict[str, int] = {}
  for each in runs:
    for name, curve in each.curves.items():
      if not name.startswith('time/') and name != 'train/learning_rate' and len(curve.steps) > 1:
        counts[name] = counts.get(name, 0) + 1
  rank = {name: i for i, name in enumerate(FIRST)}
  return sorted(counts, key=lambda name: (name not in rank, -counts[name], rank.get(name, 0), name))[:most]


def smoothed(values: np.ndarray) -> np.ndarray:
  """The mean over a window of a fiftieth of the curve around each point."""
  reach = len(values) // 100
  total = np.concatenate([[0.0], np.cumsum(values)])
  places = np.arange(len(values))
  low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
  return values if reach == 0 else (total[high] - total[low]) / (high - low)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
  """The mean, and its standard error; NaN for the error of a single value."""
  error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
  return float(np.mean(values)), float(error)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
  """The settings in which runs differ: the value of each run, None if its version of alignjax did not have it."""
  names = dict.fromkeys(name for run in runs for name in run.config if name != 'workdir')
  found = {name: [run.config.get(name) for run in runs] for name in names}
  return {name: values for name, values in found.items() if any(value != values[0] for value in values)}
