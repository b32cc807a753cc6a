"""Compares runs: the settings in which they differ, their metrics, and their curves.

  alignjax compare runs/dpo runs/simpo
  alignjax compare runs/dpo runs/simpo --out=runs/compare --metrics=eval/loss,train/reward_accuracy

Values of eval/... are those of the last evaluation, other values are means over the last tenth of the updates. Losses
of different objectives have different units, so compare accuracies, rewards and KL instead. Runs may be unfinished.

Exit codes: 0 done, 1 an error in flags or folders.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from alignjax import files, paths
from alignjax.commands import data_lengths, program
from alignjax.run import fields, history

PANELS = 6  # largest number of panels unless --metrics chooses them


@dataclasses.dataclass(frozen=True)
class Settings:
  """Comparison."""

  runs: tuple[str, ...] = fields.field(
    (), 'Work directories of the runs, also given without --runs.', required=True, path=paths.RUN, positional=True
  )
  metrics: tuple[str, ...] = fields.field(
    (), 'Metrics to draw, such as eval/loss; empty: up to six that most runs have.'
  )
  out: str = fields.field('', 'Folder for compare.md, compare.json and compare.png; empty: print.', path=paths.WRITTEN)

  def __post_init__(self):
    fields.check(self)


def run(settings: Settings) -> None:
  """Reads the records of runs, and prints or writes the comparison.

  Raises:
    ValueError: a folder is not a run, no metric of that name exists, or matplotlib is needed and not installed.
  """
  if settings.out:
    data_lengths.require_matplotlib()
  runs = [history.read(folder) for folder in settings.runs]
  names = sorted({name for each in runs for name in each.curves})
  if unknown := [name for name in settings.metrics if name not in names]:
    raise ValueError(f'--metrics: no run has {unknown[0]}; they have {", ".join(names)}')
  text = markdown(runs, names)
  if not settings.out:
    print(text, end='')
    return
  folder = pathlib.Path(settings.out)
  folder.mkdir(parents=True, exist_ok=True)
  files.replace(folder / 'compare.md', text.encode())
  files.replace(folder / 'compare.json', (json.dumps(_summary(runs, names), indent=2) + '\n').encode())
  draw(folder / 'compare.png', runs, settings.metrics or history.chosen(runs, PANELS))
  print(text)
  print(f'wrote {folder}/compare.md, compare.json and compare.png')


def markdown(runs: Sequence[history.Run], names: Iterable[str]) -> str:
  """The tables of settings and of metrics."""
  head = ['', *(each.name for each in runs)]
  settings = [[name, *map(_shown, values)] for name, values in history.differences(runs).items()]
  values = [['updates', *(str(each.steps) for each in runs)]]
  values += [[name, *(_number(each.last(name)) for each in runs)] for name in names]
  different = table(head, settings) if settings else 'none'
  return '\n\n'.join(['## Settings that differ', different, '## Metrics', table(head, values)]) + '\n'


def _summary(runs: Sequence[history.Run], names: Sequence[str]) -> dict[str, Any]:
  def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

  return {
    'settings': {
      name: dict(zip((each.name for each in runs), values, strict=True))
      for name, values in history.differences(runs).items()
    },
    'metrics': {each.name: {name: finite(each.last(name)) for name in names} for each in runs},
    'updates': {each.name: each.steps for each in runs},
  }


def draw(path: pathlib.Path, runs: Sequence[history.Run], names: Sequence[str]) -> None:
  """Draws one panel for each metric, with a curve for each run: thin as recorded, thick as a moving average."""
  matplotlib, figure = data_lengths.require_matplotlib()
  with matplotlib.rc_context(data_lengths.STYLE):
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    picture = figure.Figure(figsize=(4.2 * columns, 2.8 * rows + 0.4), layout='constrained')
    axes = picture.subplots(rows, columns, squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
      panel.set_title(name)
      panel.set_xlabel('updates')
      for i, each in enumerate(runs):
        if name in each.curves:
          curve = each.curves[name]
          smooth = history.smoothed(curve.values)
          if len(smooth) < len(curve.values) or not np.array_equal(smooth, curve.values):
            panel.plot(curve.steps, curve.values, color=f'C{i}', linewidth=0.5, alpha=0.3)
          panel.plot(curve.steps, smooth, color=f'C{i}', linewidth=1.5, label=each.name)
    for panel in axes.flat[len(names) :]:
      panel.set_visible(False)
    lines = {line.get_label(): line for panel in axes.flat for line in panel.get_legend_handles_labels()[0]}
    picture.legend(handles=list(lines.values()), loc='outside upper left', ncols=min(4, len(runs)), frameon=False)
    picture.savefig(path, dpi=120)
  picture.clear()


def _shown(value: Any) -> str:
  if value is None:
    return 'not recorded'
  return ', '.join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float) -> str:
  return f'{value:.5g}' if math.isfinite(value) else '-'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') or ' ' for cell in line) + ' |' for line in lines)


PROGRAM = program.Program('compare', __doc__, Settings, run)
