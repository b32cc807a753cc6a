"""The report of `over_optimisation`: the verdict by the rule fixed beforehand, a table and a figure."""

from collections.abc import Sequence
import pathlib
from typing import Any

import matplotlib
from matplotlib import axes as matplotlib_axes
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import console as rich_console

from experiments.toy import descent, evaluations, tables

LOSSES = {'DPO': 'dpo(beta={beta})', 'IPO': 'ipo(tau={beta})', 'SLiC': 'hinge(beta={beta})'}
BASELINES = {
  'RPO': 'dpo(beta={beta}) + {eta:g} * sft(mean=False)',
  'chi-PO': 'chi_po(beta={beta})',
  'R-DPO': 'r_dpo(beta={beta}, alpha=0.01)',
}
ETA = 0.005  # of RPO; times beta, it is the weight of the log-likelihood
CLIPS = (0.25, 1.0)
CONTROLS = {  # what differs from DPO and IS-DPO
  'rate times mean weight': {'scaled': True},
  'SGD': {'optimizer': 'sgd'},
  'a tenth of the pairs': {'data': 'few'},
  'shifted pairs': {'data': 'shifted'},
  'shifted pairs, behaviour known': {'data': 'known'},
}
COLUMNS = ('contender', 'beta', 'gold at the peak', 'at update', 'gold at the end', 'KL at the end', 'sample share')
COLORS = {0: 'black', 1: 'tab:blue', 2: 'tab:orange'}  # plain, and each clip
LOWEST = -0.6  # of the rewards in the panel of all contenders


def weighted(name: str, clip: float) -> str:
  """The name of an importance-weighted contender; the first clip is the released configuration's."""
  return f'IS-{name}' if clip == CLIPS[0] else f'IS-{name}, clip {clip:g}'


def verdict(curves: Sequence[evaluations.Curve]) -> dict[str, Any]:
  """The findings about DPO and IS-DPO by the rule of the study, as numbers and sentences."""
  low, high = min(curve.beta for curve in curves), max(curve.beta for curve in curves)
  plain, own = (evaluations.find(curves, name, low) for name in ('DPO', weighted('DPO', CLIPS[0])))
  gain = {
    beta: evaluations.find(curves, own.name, beta).final('gold') - evaluations.find(curves, 'DPO', beta).final('gold')
    for beta in (low, high)
  }
  divergence, peak = own.final('kl') - plain.final('kl'), own.peak - plain.peak
  stopped = tables.shown(own.final('gold') - plain.stopped(own.final('kl')), '+')
  shrinks = float(gain[high].mean()) < float(gain[low].mean())

  def fall(curve: evaluations.Curve) -> np.ndarray:
    return curve.peak - curve.final('gold')

  criteria = {  # in the order of the rule
    f'the final gold reward is higher: {tables.shown(gain[low], "+")}': tables.above(gain[low]),
    f'the final KL is smaller: {tables.shown(divergence, "+")} nats': float(divergence.mean()) < 0,
    f'the peak is not lower: {tables.shown(peak, "+")}': not tables.above(-peak),
    f'the gain shrinks at beta {high:g}: {tables.shown(gain[high], "+")}': shrinks,
  }
  held = sum(criteria.values())
  lines = [
    f'IS-DPO compared with DPO at beta {low:g}, paired by seed: the claim is '
    + ('reproduced.' if held == len(criteria) else f'not reproduced: {held} of {len(criteria)} criteria hold.'),
    *(f'{"holds" if holds else "fails"}: {text}' for text, holds in criteria.items()),
    f'From its peak, DPO falls by {tables.shown(fall(plain))}, IS-DPO by {tables.shown(fall(own))}.',
    f'DPO stopped before it exceeds the KL of IS-DPO: IS-DPO minus it is {stopped}.',
  ]
  scaled = evaluations.find(curves, f'DPO, {next(iter(CONTROLS))}', low)
  gained = tables.shown(own.final('gold') - scaled.final('gold'), '+')
  lines.append(f'DPO at the rate times the mean weight: IS-DPO minus it is {gained}.')
  for control in list(CONTROLS)[1:]:
    one, other = (evaluations.find(curves, f'{name}, {control}', low) for name in ('IS-DPO', 'DPO'))
    end, peak = tables.shown(one.final('gold') - other.final('gold'), '+'), tables.shown(one.peak - other.peak, '+')
    lines.append(f'With {control}: IS-DPO minus DPO is {end} at the end, {peak} at the peak.')
  return {'reproduced': held == len(criteria), 'criteria': criteria, 'lines': lines}


def rows(curves: Sequence[evaluations.Curve]) -> list[list[str]]:
  """The rows of the table, with the columns of `COLUMNS`."""
  table = []
  for curve in curves:
    share = curve.measures.get('importance/effective_sample_share')
    table.append(
      [
        curve.name,
        f'{curve.beta:g}',
        tables.shown(curve.peak),
        f'{curve.updates[curve.best].mean():.0f}',
        tables.shown(curve.final('gold')),
        tables.shown(curve.final('kl')),
        '' if share is None else f'{share[-1].mean():.1%}',
      ]
    )
  return table


def write(workdir: pathlib.Path, console: rich_console.Console, curves: Sequence[evaluations.Curve]) -> dict[str, Any]:
  """Prints the table and the verdict, and writes table.md and figure.png. Returns entries for the summary."""
  found, table = verdict(curves), rows(curves)
  seeds = curves[0].measures['gold'].shape[1]
  title = f'Gold reward and KL of the policy’s own samples, nats; means and standard errors over {seeds} seeds'
  tables.show(console, title, COLUMNS, table)
  tables.write(workdir, console, tables.markdown(title, COLUMNS, table), found['lines'])
  draw(workdir / 'figure.png', curves)
  return found | {'curves': [curve.to_json() for curve in curves]}


def draw(path: pathlib.Path, curves: Sequence[evaluations.Curve]) -> None:
  """Plots gold reward against sqrt(KL) for each loss and beta, and the final and the peak reward of all contenders."""
  betas = sorted({curve.beta for curve in curves})
  with matplotlib.rc_context(tables.RC):
    figure = matplotlib_figure.Figure(figsize=(15, 7.5), layout='constrained')
    grid = figure.add_gridspec(len(betas), len(LOSSES) + 1, width_ratios=[1] * len(LOSSES) + [1.1])
    panels = [[figure.add_subplot(grid[i, j]) for j in range(len(LOSSES))] for i in range(len(betas))]
    for beta, row in zip(betas, panels, strict=True):
      for axes, name in zip(row, LOSSES, strict=True):
        for place, label in enumerate([name, *(weighted(name, clip) for clip in CLIPS)]):
          _draw_curve(
            axes,
            evaluations.find(curves, label, beta),
            COLORS[place],
            ('plain', *(f'weighted, clip {c:g}' for c in CLIPS))[place],
          )
        axes.set_title(f'{name}, beta {beta:g}', loc='left')
        axes.set_xlabel('square root of the KL, nats')
      row[0].set_ylabel('gold reward')
    panels[-1][1].legend(loc='lower right')
    everything = [axes for row in panels for axes in row]
    low, high = min(axes.get_ylim()[0] for axes in everything), max(axes.get_ylim()[1] for axes in everything)
    right = max(axes.get_xlim()[1] for axes in everything)
    for axes in everything:
      axes.set_ylim(low, high)
      axes.set_xlim(-0.1, right)
    _draw_ends(figure.add_subplot(grid[:, -1]), curves)
    figure.savefig(path, dpi=130)


def _draw_curve(axes: matplotlib_axes.Axes, curve: evaluations.Curve, color: str, label: str) -> None:
  x, y = np.sqrt(curve.measures['kl'].mean(axis=1)), curve.measures['gold']
  error = y.std(axis=1, ddof=1) / np.sqrt(y.shape[1])
  axes.errorbar(x, y.mean(axis=1), yerr=error, color=color, marker='o', markersize=3, elinewidth=0.7, label=label)
  axes.plot(x[-1], y[-1].mean(), 'o', color=color, markersize=8, markeredgecolor='white')  # the end


def _draw_ends(axes: matplotlib_axes.Axes, curves: Sequence[evaluations.Curve]) -> None:
  for place, curve in enumerate(curves):
    for values, face in ((curve.final('gold'), 'full'), (curve.peak, 'none')):
      mean, error = descent.estimate(values)
      color = COLORS[1] if curve.name.startswith('IS-') else COLORS[0]
      if mean < LOWEST:  # an arrow at the edge, or nothing else could be told apart
        axes.plot(LOWEST, -place, '<', color=color, markersize=5, fillstyle=face)
        continue
      axes.errorbar(mean, -place, xerr=error, color=color, marker='o', markersize=4, fillstyle=face, linewidth=0.8)
  axes.set_xlim(left=LOWEST - 0.05)
  axes.plot([], [], 'o', color='0.4', label='at the end')
  axes.plot([], [], 'o', color='0.4', fillstyle='none', label='at the peak')
  axes.set_yticks(
    [-place for place in range(len(curves))], [f'{curve.name} ({curve.beta:g})' for curve in curves], fontsize=7
  )
  axes.set_xlabel('gold reward')
  axes.set_title('All contenders (beta)', loc='left')
  axes.legend(loc='lower left')
