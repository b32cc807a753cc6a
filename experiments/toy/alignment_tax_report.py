"""The report of `alignment_tax`: selection by a fixed rule, a comparison, a table and a figure."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

import matplotlib
from matplotlib import axes as matplotlib_axes
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from experiments.toy import alignment_tax_world as world
from experiments.toy import descent

LOSSES = {'skill_loss': 'skill loss', 'base_loss': 'base loss'}
PLAIN, SHIFTED = 'Adam', 'Adam + tau'
ONLINE = ('OnTIES', 'OnDARE')
OFFLINE = ('linear', 'TIES', 'DARE')
COLUMNS = (
  'contender',
  'reward',
  'skill loss',
  'exact match',
  'base loss',
  *(f'{name} - Adam' for name in LOSSES.values()),
  'setting',
)
STYLES = {  # color, marker and line style; offline merging is dashed
  'Adam': ('black', 'o', '-'),
  'KL penalty': ('tab:brown', 's', '-'),
  'EMA': ('tab:olive', '^', '-'),
  'ChildTuning': ('tab:purple', 'v', '-'),
  'linear': ('tab:cyan', 'P', '--'),
  'TIES': ('tab:green', 'X', '--'),
  'DARE': ('tab:blue', 'D', '--'),
  SHIFTED: ('tab:pink', 'h', '-'),
  'OnTIES': ('tab:orange', '<', '-'),
  'OnDARE': ('tab:red', '>', '-'),
}
RC = {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 9, 'legend.frameon': False}


class Outcome(NamedTuple):
  """The measurements of one model of one seed."""

  contender: str
  setting: str
  strength: float  # number of updates, or the weight of the aligned model in a merge
  measures: world.Measures


class Point(NamedTuple):
  """The measurements of the same model for every seed. Points that differ only in strength form a curve."""

  contender: str
  setting: str
  strength: float
  measures: Mapping[str, np.ndarray]  # [seeds]

  def mean(self, name: str) -> float:
    return float(self.measures[name].mean())


class Comparison(NamedTuple):
  """A contender at its chosen setting, and compared with plain Adam at the target reward."""

  point: Point
  reached: bool  # whether the point reaches the target
  excess: Mapping[str, np.ndarray]  # [seeds]: loss minus plain Adam's, by loss; nan if the target is not reached


def across_seeds(outcomes: Sequence[Sequence[Outcome]]) -> list[Point]:
  """Combines the outcomes of all seeds into points. All seeds must list their outcomes in the same order."""
  points = []
  for same in zip(*outcomes, strict=True):
    if len({outcome[:3] for outcome in same}) > 1:
      raise ValueError(f'outcomes of the seeds are not in the same order: {[outcome[:3] for outcome in same]}')
    measures = {name: np.array([outcome.measures[name] for outcome in same]) for name in same[0].measures}
    points.append(Point(*same[0][:3], measures))
  return points


def choose(points: Sequence[Point], contender: str, target: float) -> tuple[Point, bool]:
  """The selection rule: the point with the lowest validation skill loss among those that reach the target.

  Returns:
    The point and True. If no point reaches the target validation reward, the point with the highest validation reward
    and False.
  """
  own = [point for point in points if point.contender == contender]
  enough = [point for point in own if point.mean('validation/reward') >= target]
  if enough:
    return min(enough, key=lambda point: point.mean('validation/skill_loss')), True
  return max(own, key=lambda point: point.mean('validation/reward')), False


def curve(points: Sequence[Point], of: Point) -> list[Point]:
  """The curve that contains a point, sorted by strength."""
  return sorted((point for point in points if point[:2] == of[:2]), key=lambda point: point.strength)


def compare(points: Sequence[Point], before: Point, target: float) -> dict[str, Comparison]:
  """The chosen point of every contender, and its losses minus those of plain Adam at the same reward, by seed.

  Each contender is represented by the curve that reaches the target with the lowest validation skill loss. Its losses
  at the target reward are interpolated between evaluations. Plain Adam is treated like every other contender.

  Args:
    points: the points of all contenders.
    before: the fine-tuned model, where the curves of training and linear merging start.
    target: the mean validation reward to compare at, see `choose`.
  """
  present = {point.contender for point in points}
  names = [name for name in STYLES if name in present]
  at_target = {name: _at_target(points, before, name, target) for name in names}
  comparisons = {}
  for name in names:
    excess = {loss: at_target[name][loss] - at_target[PLAIN][loss] for loss in LOSSES}
    comparisons[name] = Comparison(*choose(points, name, target), excess)
  return comparisons


def _at_target(points: Sequence[Point], before: Point, contender: str, target: float) -> dict[str, np.ndarray]:
  """The losses, [seeds] by name, of a contender's best curve at the target reward; nan if no curve reaches it."""
  start = [] if contender in ('TIES', 'DARE') else [before]  # at weight 0, these two sparsify the fine-tuned model
  own = {point[:2]: [*start, *curve(points, point)] for point in points if point.contender == contender}
  lines = [line for line in own.values() if max(each.mean('validation/reward') for each in line) >= target]
  if not lines:
    return {loss: np.full(len(before.measures['reward']), np.nan) for loss in LOSSES}
  best = min(lines, key=lambda line: _loss_at(line, target, 'skill_loss', 'validation/').mean())
  return {loss: _loss_at(best, target, loss) for loss in LOSSES}


def _loss_at(line: Sequence[Point], target: float, loss: str, prefix: str = '') -> np.ndarray:
  """The loss [seeds] where a curve first reaches the target, extrapolated linearly beyond a seed's last evaluation."""
  of_seeds = zip(
    *(np.stack([each.measures[prefix + name] for each in line]).T for name in ('reward', loss)), strict=True
  )
  found = []
  for rewards, losses in of_seeds:
    end = next((place for place, reward in enumerate(rewards) if reward >= target and place > 0), len(rewards) - 1)
    rise = rewards[end] - rewards[end - 1]
    share = (target - rewards[end - 1]) / rise if rise > 0 else 1.0
    found.append(losses[end - 1] + share * (losses[end] - losses[end - 1]))
  return np.array(found)


def conclusion(comparisons: Mapping[str, Comparison]) -> str:
  """The findings: one sentence per online merging optimizer and one for the best contender."""
  sentences = []
  for contender in (*ONLINE, SHIFTED):
    if np.isnan(comparisons[contender].excess['skill_loss']).any():
      sentences.append(f'{contender} or plain Adam did not reach the target reward, so they cannot be compared.')
      continue
    found = ' and '.join(
      f'its {name} is {_difference(comparisons[contender].excess[loss])}' for loss, name in LOSSES.items()
    )
    sentences.append(f'{contender} compared with plain Adam at the target reward: {found}.')
  others = {name: one.excess['skill_loss'] for name, one in comparisons.items() if name != PLAIN}
  others = {name: excess for name, excess in others.items() if not np.isnan(excess).any()}
  if others:
    best = min(others, key=lambda name: others[name].mean())
    sentences.append(f'{best} has the lowest skill loss compared with plain Adam, {_difference(others[best])}.')
  return ' '.join(sentences)


def _difference(excess: np.ndarray) -> str:
  mean, error = descent.estimate(excess)
  ratio = abs(mean) / error if error > 0 else np.nan
  verdict = 'within two standard errors of no difference' if not ratio > 2 else f'{ratio:.1f} standard errors'
  return f'{"higher" if mean > 0 else "lower"} by {abs(mean):.3f} ± {error:.3f} nats per byte ({verdict})'


def rows(comparisons: Mapping[str, Comparison], stages: Sequence[Point]) -> list[list[str]]:
  """The rows of the table, with the columns of `COLUMNS`."""

  def cells(point: Point) -> list[str]:
    return [_text(point.measures[name]) for name in ('reward', 'skill_loss', 'exact_match', 'base_loss')]

  table = [[stage.contender, *cells(stage), '', '', ''] for stage in stages]
  for contender, (point, reached, excess) in comparisons.items():
    compared = contender != PLAIN and not np.isnan(excess['skill_loss']).any()
    differences = [_text(excess[loss], '+') if compared else '' for loss in LOSSES]
    at = f'weight {point.strength}' if contender in OFFLINE else f'{point.strength} updates'
    setting = f'{point.setting}, {at}' + ('' if reached else ' (below the target reward)')
    table.append([contender, *cells(point), *differences, setting])
  return table


def _text(values: np.ndarray, sign: str = '') -> str:
  mean, error = descent.estimate(values)
  return f'{mean:{sign}.3f} ± {error:.3f}'


def write(
  workdir: pathlib.Path, console: rich_console.Console, points: Sequence[Point], stages: Sequence[Point], rise: float
) -> dict[str, Any]:
  """Selects and compares settings, prints the table, and writes table.md and figure.png.

  Args:
    workdir: the folder to write to.
    console: the console to print the table to, in two parts because it is wide.
    points: the points of all contenders.
    stages: the base and the fine-tuned model.
    rise: the increase of the mean validation reward over the fine-tuned model at which settings are chosen.

  Returns:
    Entries for the summary.
  """
  _, before = stages
  target = before.mean('validation/reward') + rise
  comparisons = compare(points, before, target)
  seeds = len(before.measures['reward'])
  title = f'Settings chosen for a validation reward of at least {target:.3f}; compared with Adam there; {seeds} seeds'
  table, found = rows(comparisons, stages), conclusion(comparisons)
  for part in ((0, 1, 2, 3, 4), (0, 5, 6, 7)):
    shown = rich_table.Table(title=title, box=box.SIMPLE, title_justify='left')
    for index in part:
      shown.add_column(COLUMNS[index], justify='left' if index in (0, 7) else 'right')
    for row in table:
      shown.add_row(*(row[index] for index in part))
    console.print(shown)
  console.print(found, highlight=False)
  lines = [f'# {title}', '', *('| ' + ' | '.join(row) + ' |' for row in (COLUMNS, ['---'] * len(COLUMNS), *table))]
  (workdir / 'table.md').write_text('\n'.join([*lines, '', found, '']), encoding='utf-8')
  draw(workdir / 'figure.png', points, before, comparisons, target)
  return {
    'target': target,
    'conclusion': found,
    'stages': to_json(stages),
    'chosen': to_json([comparison.point for comparison in comparisons.values()]),
    'points': to_json(points),
  }


def to_json(points: Sequence[Point]) -> list[dict[str, Any]]:
  """Converts points, with the measures of every seed, to JSON values."""
  return [
    point._asdict() | {'measures': {name: values.tolist() for name, values in point.measures.items()}}
    for point in points
  ]


def draw(
  path: pathlib.Path, points: Sequence[Point], before: Point, comparisons: Mapping[str, Comparison], target: float
) -> None:
  """Plots reward against tax for each loss, and the losses relative to plain Adam.

  Args:
    path: path of the PNG file.
    points: the points of all contenders.
    before: the fine-tuned model, which defines tax 0.
    comparisons: the comparisons of all contenders.
    target: the reward at which settings were chosen.
  """
  with matplotlib.rc_context(RC):
    figure = matplotlib_figure.Figure(figsize=(15, 5.2), layout='constrained')
    *planes, differences = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
    for axes, (loss, name) in zip(planes, LOSSES.items(), strict=True):
      _draw_plane(axes, points, before, comparisons, loss)
      axes.axhline(target, color='0.7', linewidth=0.8, linestyle=':')
      axes.set_xlabel(f'tax: {name} above that of the fine-tuned model, nats per byte')
      axes.set_ylabel('gold reward: share of vowels')
      axes.set_title(f'Reward against tax on the {name.removesuffix(" loss")}', loc='left')
    planes[0].legend(loc='lower right')
    _draw_differences(differences, comparisons)
    figure.savefig(path, dpi=130)


def _draw_plane(
  axes: matplotlib_axes.Axes,
  points: Sequence[Point],
  before: Point,
  comparisons: Mapping[str, Comparison],
  loss: str,
) -> None:
  highest = {'tax': 0.0, 'reward': 0.0}
  for contender, (chosen, _, _) in comparisons.items():
    color, marker, line = STYLES[contender]
    own = [point for point in points if point.contender == contender]
    start = [] if contender in OFFLINE else [before]  # merges do not include weight 0
    along = [*start, *curve(points, chosen)]
    axes.plot(
      [point.mean(loss) - before.mean(loss) for point in own],
      [point.mean('reward') for point in own],
      marker, color=color, markersize=3, alpha=0.25, linewidth=0,
    )  # fmt: skip
    x, x_error = np.array([descent.estimate(point.measures[loss] - before.measures[loss]) for point in along]).T
    y, y_error = np.array([descent.estimate(point.measures['reward']) for point in along]).T
    axes.errorbar(
      x, y, xerr=x_error, yerr=y_error, color=color, linestyle=line, linewidth=2 if contender == PLAIN else 1,
      elinewidth=0.7, marker=marker, markersize=4, label=contender,
    )  # fmt: skip
    place = [point[:3] for point in along].index(chosen[:3])
    axes.plot(x[place], y[place], marker, color=color, markersize=10, markeredgecolor='white')
    highest = {'tax': max(highest['tax'], x[place]), 'reward': max(highest['reward'], y[place])}
  low, high = before.mean('reward'), highest['reward']
  axes.set_xlim(-0.05 * highest['tax'], 1.5 * highest['tax'])
  axes.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))


def _draw_differences(axes: matplotlib_axes.Axes, comparisons: Mapping[str, Comparison]) -> None:
  names = [name for name in comparisons if name != PLAIN]
  for offset, (loss, label), face in zip((0.13, -0.13), LOSSES.items(), ('full', 'none'), strict=True):
    for place, name in enumerate(names):
      color, marker, _ = STYLES[name]
      mean, error = descent.estimate(comparisons[name].excess[loss])
      axes.errorbar(mean, -place + offset, xerr=error, color=color, marker=marker, fillstyle=face, capsize=2)
    axes.plot([], [], 'o', color='0.4', fillstyle=face, label=label)
  axes.axvline(0.0, color=STYLES[PLAIN][0], linewidth=0.8)
  axes.set_yticks([-place for place in range(len(names))], names)
  axes.set_xlabel('loss minus that of plain Adam, nats per byte')
  axes.set_title('Minus plain Adam at the dotted reward', loc='left')
  axes.legend()
