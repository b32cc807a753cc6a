"""The report of `frontier`: rewards at equal KL, the verdict by the rule fixed beforehand, a table and a figure."""

from collections.abc import Sequence
import pathlib
from typing import Any

import matplotlib
from matplotlib import axes as matplotlib_axes
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import console as rich_console

from experiments.toy import descent, evaluations, tables

ON_POLICY = ('RLHF', 'RKL', 'REBEL', 'PD')
OFFLINE = 'DPO'
LIKE = (('PD', 'REBEL'), ('RKL', 'RLHF'))  # pairs of methods, of which the paper prefers the first
KLS = (1.0, 2.0, 4.0)  # nats
WORDS = {True: 'holds', False: 'fails', None: 'undecided'}
COLUMNS = ('contender', 'beta', *(f'gold at KL {kl:g}' for kl in KLS), 'gold at the end', 'proxy', 'KL')
COLORS = {
  'RLHF': 'tab:blue',
  'RKL': 'tab:cyan',
  'REBEL': 'tab:red',
  'PD': 'tab:orange',
  'PMLE + KL': 'tab:purple',
  'DPO': 'black',
  'PMLE': '0.5',
}


def with_gold(name: str) -> str:
  """The name of the control whose reward is the gold reward."""
  return f'{name}, gold as reward'


def chosen(curves: Sequence[evaluations.Curve], name: str, kl: float) -> evaluations.Curve | None:
  """The contender at the weight with the highest gold reward in validation at a KL; None if no weight reaches it."""
  own = [curve for curve in curves if curve.name == name]
  scores = [curve.at_kl(kl, 'validation/gold').mean() for curve in own]  # nan if a seed does not reach the KL
  return None if np.all(np.isnan(scores)) else own[int(np.nanargmax(scores))]


def gain(curves: Sequence[evaluations.Curve], name: str, other: str, kl: float) -> np.ndarray | None:
  """The gold reward of one contender minus that of another at a KL, [seeds]; None if one of them does not reach it."""
  sides = [chosen(curves, each, kl) for each in (name, other)]
  if None in sides:
    return None
  return sides[0].at_kl(kl, 'gold') - sides[1].at_kl(kl, 'gold')


def _gain_shown(values: np.ndarray | None) -> str:
  return 'not reached' if values is None else tables.shown(values, '+')


def verdict(curves: Sequence[evaluations.Curve], agreement: np.ndarray) -> dict[str, Any]:
  """The findings by the rule of the study, as numbers and sentences; `reproduced` is None if it is undecided.

  Args:
    curves: all contenders.
    agreement: the accuracy of the reward models, [seeds].
  """
  criteria = {}
  for name in ON_POLICY:
    for kl in KLS:
      found = gain(curves, name, OFFLINE, kl)
      holds = None if found is None else tables.above(found)
      criteria[f'{name} minus {OFFLINE} at KL {kl:g}: {_gain_shown(found)}'] = holds
  held = list(criteria.values())
  reproduced = False if False in held else None if None in held else True
  outcome = {
    True: 'reproduced.',
    False: f'not reproduced: {held.count(True)} of {len(held)} comparisons hold.',
    None: f'undecided: {held.count(None)} of {len(held)} comparisons are undecided, the others hold.',
  }
  lines = [
    f'On-policy methods compared with {OFFLINE} at equal KL, paired by seed: the claim is {outcome[reproduced]}',
    *(f'{WORDS[holds]}: {text}' for text, holds in criteria.items()),
  ]
  for name, other in LIKE:
    found = ', '.join(f'{_gain_shown(gain(curves, name, other, kl))} at KL {kl:g}' for kl in KLS)
    lines.append(f'{name} minus {other}: {found}.')
  for name in ('PMLE + KL', 'PMLE'):
    found = ', '.join(f'{_gain_shown(gain(curves, name, OFFLINE, kl))} at KL {kl:g}' for kl in KLS)
    lines.append(f'{name} minus {OFFLINE}: {found}.')
  lines += [_equal_rewards(curves), *_controls(curves)]
  lines.append(f'The reward models order {tables.shown(agreement)} of held-out pairs as the gold reward does.')
  return {'reproduced': reproduced, 'criteria': criteria, 'lines': lines}


def _equal_rewards(curves: Sequence[evaluations.Curve]) -> str:
  """RLHF and RKL halfway, REBEL and PD at the end: as many rewards. Weights are chosen in validation there."""
  parts = []
  for name in ON_POLICY:
    own = [curve for curve in curves if curve.name == name]
    place = -1 if name in ('REBEL', 'PD') else int(np.abs(own[0].updates - own[0].updates[-1] / 2).argmin())
    best = max(own, key=lambda curve: curve.measures['validation/gold'][place].mean())
    gold, kl = (tables.shown(best.measures[measure][place]) for measure in ('gold', 'kl'))
    parts.append(f'{name} {gold} (KL {kl}, round {best.updates[place]})')
  return f'Gold reward at equal numbers of rewards: {", ".join(parts)}.'


def _controls(curves: Sequence[evaluations.Curve]) -> list[str]:
  """What the reward model costs: the gold reward as reward minus the reward model, at the end and the same weight."""
  lines = []
  for name in ON_POLICY:
    control = next(curve for curve in curves if curve.name == with_gold(name))
    plain = evaluations.find(curves, name, control.beta)
    gold, kl = (tables.shown(control.final(each) - plain.final(each), '+') for each in ('gold', 'kl'))
    excess = tables.shown(plain.final('proxy') - plain.final('gold'), '+')
    lines.append(
      f'{name} at beta {control.beta:g}: gold as reward minus the reward model is {gold} in gold reward, {kl} in KL at '
      f'the end; there the reward model overrates the responses by {excess}.'
    )
  return lines


def rows(curves: Sequence[evaluations.Curve]) -> list[list[str]]:
  """The rows of the table, with the columns of `COLUMNS`."""
  table = []
  for curve in curves:
    reached = [curve.at_kl(kl, 'gold') for kl in KLS]
    table.append(
      [
        curve.name,
        f'{curve.beta:g}',
        *('' if np.isnan(values).any() else tables.shown(values) for values in reached),
        *(tables.shown(curve.final(measure)) for measure in ('gold', 'proxy', 'kl')),
      ]
    )
  return table


def write(
  workdir: pathlib.Path, console: rich_console.Console, curves: Sequence[evaluations.Curve], agreement: np.ndarray
) -> dict[str, Any]:
  """Prints the table and the verdict, and writes table.md and figure.png. Returns entries for the summary."""
  found, table = verdict(curves, agreement), rows(curves)
  title = f'Gold reward, and proxy and KL at the end; means and standard errors over {len(agreement)} seeds'
  tables.show(console, title, COLUMNS, table)
  tables.write(workdir, console, tables.markdown(title, COLUMNS, table), found['lines'])
  draw(workdir / 'figure.png', curves)
  return found | {'accuracy': agreement.tolist(), 'curves': [curve.to_json() for curve in curves]}


def draw(path: pathlib.Path, curves: Sequence[evaluations.Curve]) -> None:
  """Plots gold reward and proxy against sqrt(KL) for each weight, and the gains over DPO at equal KL."""
  betas = sorted({curve.beta for curve in curves if curve.name == OFFLINE})
  with matplotlib.rc_context(tables.RC):
    figure = matplotlib_figure.Figure(figsize=(4 * len(betas) + 5, 7.5), layout='constrained')
    grid = figure.add_gridspec(2, len(betas) + 1, width_ratios=[1] * len(betas) + [1.1])
    panels = []
    for row, (measure, label) in enumerate((('gold', 'gold reward'), ('proxy', 'reward of the reward model'))):
      for column, beta in enumerate(betas):
        share = panels[0] if panels else None
        axes = figure.add_subplot(grid[row, column], sharex=share, sharey=share)
        panels.append(axes)
        for name, color in COLORS.items():
          _draw_curve(axes, evaluations.find(curves, name, beta), measure, color)
        axes.set_title(f'beta {beta:g}', loc='left')
        axes.set_xlabel('square root of the KL, nats')
      panels[row * len(betas)].set_ylabel(label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(COLORS))
    _draw_gains(figure.add_subplot(grid[0, -1]), curves)
    _draw_control(figure.add_subplot(grid[1, -1], sharex=panels[0], sharey=panels[0]), curves)
    figure.savefig(path, dpi=130)


def _draw_curve(
  axes: matplotlib_axes.Axes, curve: evaluations.Curve, measure: str, color: str, dashes: str = '-'
) -> None:
  x, y = np.sqrt(curve.measures['kl'].mean(axis=1)), curve.measures[measure]
  error = y.std(axis=1, ddof=1) / np.sqrt(y.shape[1])
  style = {'color': color, 'linestyle': dashes, 'marker': 'o', 'markersize': 3, 'elinewidth': 0.7}
  axes.errorbar(x, y.mean(axis=1), yerr=error, label=curve.name, **style)
  axes.plot(x[-1], y[-1].mean(), 'o', color=color, markersize=8, markeredgecolor='white')  # the end


def _draw_gains(axes: matplotlib_axes.Axes, curves: Sequence[evaluations.Curve]) -> None:
  names = [name for name in COLORS if name != OFFLINE]
  for place, name in enumerate(names):
    for shift, kl in enumerate(KLS):
      found = gain(curves, name, OFFLINE, kl)
      if found is None:
        continue
      mean, error = descent.estimate(found)
      style = {'color': COLORS[name], 'marker': 'osD'[shift], 'markersize': 4, 'capsize': 2}
      axes.errorbar(mean, -place - 0.2 * (shift - 1), xerr=2 * error, **style)
  for marker, kl in zip('osD', KLS, strict=True):
    axes.plot([], [], marker, color='0.4', markersize=4, label=f'at KL {kl:g}')
  axes.axvline(0.0, color='0.7', linewidth=0.8)
  axes.set_yticks([-place for place in range(len(names))], names)
  axes.set_xlabel('gold reward minus that of DPO, ± 2 standard errors')
  axes.set_title('At equal KL', loc='left')
  axes.legend(loc='best')


def _draw_control(axes: matplotlib_axes.Axes, curves: Sequence[evaluations.Curve]) -> None:
  for name in ON_POLICY:
    control = next(curve for curve in curves if curve.name == with_gold(name))
    _draw_curve(axes, control, 'gold', COLORS[name], '--')
    axes.set_title(f'Gold as reward, beta {control.beta:g}', loc='left')
  axes.set_xlabel('square root of the KL, nats')
  axes.set_ylabel('gold reward')
