"""The report of `comparison`: gold reward at equal KL, a table and a figure."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np
from rich import console as rich_console

from alignjax.evaluation import evaluator, frontier
from experiments.quickstart import figures
from experiments.toy import evaluations, tables

BASE = 'DPO'  # the method that others are compared with
COLUMNS = ('method', 'gold reward', 'win rate', 'KL, nats', 'tokens', f'gold minus {BASE} at equal KL', 'minutes')
MEASURES = {'reward': 'gold', 'kl': 'kl', 'win_rate': 'win_rate', 'tokens': 'tokens'}  # by their names in evaluations
COLORS = ('black', 'tab:blue', 'tab:orange', 'tab:green', '0.6', 'tab:red', 'tab:pink', 'tab:purple')


def read(folder: pathlib.Path) -> Mapping[str, Any]:
  """The results in the folder of an evaluation."""
  return json.loads((folder / 'evaluation.json').read_text(encoding='utf-8'))


def curve(name: str, objective: str, seeds: Sequence[tuple[Mapping[str, Any], str]]) -> evaluations.Curve:
  """The curve of a method: the reference, then the checkpoints of its runs.

  Args:
    name: the method.
    objective: its expression.
    seeds: one pair per seed: the evaluation's results, and the folder of the run that it measured.
  """
  return evaluations.Curve.of(name, 0.0, objective, [_outcomes(found, run) for found, run in seeds])


def _outcomes(found: Mapping[str, Any], run: str) -> list[evaluations.Outcome]:
  prefix = f'{run}/checkpoints/'
  steps = sorted(int(name.removeprefix(prefix)) for name in found['models'] if name.startswith(prefix))
  reference = _measures(found['models'][found['reference']]) | {'kl': 0.0, 'win_rate': 0.5}
  return [
    evaluations.Outcome(0, reference),
    *(evaluations.Outcome(step, _measures(found['models'][f'{prefix}{step}'])) for step in steps),
  ]


def _measures(summary: Mapping[str, Any]) -> dict[str, float]:
  values = {own: summary[name] for name, own in MEASURES.items() if name in summary}
  return {name: value['mean'] if isinstance(value, Mapping) else value for name, value in values.items()}


def minutes(run: pathlib.Path) -> float:
  """How long the updates of a run took, without its start."""
  lines = (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
  return sum(json.loads(line).get('time/seconds', 0.0) for line in lines) / 60


def gain(own: evaluations.Curve, base: evaluations.Curve) -> tuple[float, np.ndarray]:
  """The largest KL in nats that all runs of both methods reach, and the differences in gold reward there, [seeds]."""
  kl = float(min(each.measures['kl'].max(axis=0).min() for each in (own, base)))
  return kl, own.at_kl(kl, 'gold') - base.at_kl(kl, 'gold')


def _base(curves: Sequence[evaluations.Curve]) -> evaluations.Curve:
  return next(own for own in curves if own.name == BASE)


def findings(curves: Sequence[evaluations.Curve]) -> list[str]:
  """The sentences that the comparison supports."""
  base = _base(curves)
  others = [own for own in curves if own is not base]
  better, worse, like, early = [], [], [], []
  for own in others:
    kl, values = gain(own, base)
    if kl < base.measures['kl'][1].min():
      early.append(own.name)
    (better if tables.above(values) else worse if tables.above(-values) else like).append(own.name)
  lines = [
    f'{text} {BASE} at equal KL, by more than two standard errors of the difference: {", ".join(names) or "none"}.'
    for text, names in (('Above', better), ('Below', worse))
  ]
  seeds = len(base.final('gold'))
  return [
    *lines,
    f'Within two standard errors of {BASE}: {", ".join(like) or "none"}.',
    f'Read before the first checkpoint of {BASE}, on a straight line from the reference that runs below a curve which '
    f'bends downwards, so that {BASE} looks worse there: {", ".join(early) or "none"}.',
    f'{len(others)} comparisons, {seeds} seeds and one setting of each method do not rank the methods.',
  ]


def _row(own: evaluations.Curve, base: evaluations.Curve, spent: Sequence[float]) -> list[str]:
  final = [tables.shown(own.final(name)) for name in ('gold', 'win_rate', 'kl')]
  if own is base:
    compared = ''
  else:
    kl, values = gain(own, base)
    compared = f'{tables.shown(values, "+")} (KL {kl:.2f})'
  return [own.name, *final, f'{own.final("tokens").mean():.1f}', compared, f'{np.mean(spent):.1f}']


def write(
  workdir: pathlib.Path,
  console: rich_console.Console,
  curves: Sequence[evaluations.Curve],
  spent: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
  """Prints the table and the findings, writes table.md and figure.png, and returns what summary.json holds.

  Args:
    workdir: the folder.
    console: where to print.
    curves: all methods.
    spent: minutes of the runs of each method.
  """
  base, lines = _base(curves), findings(curves)
  start = tables.shown(base.measures['gold'][0])
  title = f'The end of training, on held-out prompts; the reference’s gold reward is {start}'
  rows = [_row(own, base, spent[own.name]) for own in curves]
  tables.show(console, title, COLUMNS, rows)
  tables.write(workdir, console, tables.markdown(title, COLUMNS, rows), lines)
  draw(workdir / 'figure.png', curves)
  return {'curves': [own.to_json() for own in curves], 'minutes': dict(spent), 'findings': lines}


def draw(path: pathlib.Path, curves: Sequence[evaluations.Curve]) -> None:
  """Draws the gold reward against the square root of the KL: means over seeds with standard errors."""
  matplotlib, figure = figures.drawing()
  with matplotlib.rc_context(figures.STYLE):
    picture = figure.Figure(figsize=(8, 5), layout='constrained')
    axes = picture.subplots()
    for own, color in zip(curves, COLORS, strict=False):
      axes.set_prop_cycle(color=[color])
      frontier.draw(axes, [_point(own, i) for i in range(len(own.updates))], own.name)
    axes.set_ylabel('gold reward')
    axes.set_title('SmolLM2-135M on held-out prompts: means over seeds, one standard error')
    axes.legend(loc='lower right')
    picture.savefig(path, dpi=120)
  picture.clear()


def _point(own: evaluations.Curve, place: int) -> frontier.Point:
  def over_seeds(values: np.ndarray) -> evaluator.Estimate:
    return evaluator.Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))

  reward, kl = (over_seeds(own.measures[name][place]) for name in ('gold', 'kl'))
  return frontier.Point(int(own.updates[place]), reward, kl)
