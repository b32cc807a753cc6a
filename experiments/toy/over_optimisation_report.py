"""The report of `over_optimisation`: the verdict by the rule fixed beforehand, a table and a figure."""

from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple

import matplotlib
from matplotlib import axes as matplotlib_axes
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from experiments.toy import descent, language

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
RC = {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 9, 'legend.frameon': False}


def weighted(name: str, clip: float) -> str:
  """The name of an importance-weighted contender; the first clip is the released configuration's."""
  return f'IS-{name}' if clip == CLIPS[0] else f'IS-{name}, clip {clip:g}'


class Outcome(NamedTuple):
  """The measurements of one model of one seed."""

  update: int
  measures: language.Measures


class Curve(NamedTuple):
  """A contender at one beta, for every seed."""

  name: str
  beta: float
  objective: str
  updates: np.ndarray  # [evaluations], the first is 0
  measures: dict[str, np.ndarray]  # [evaluations, seeds] each; nan where there is none

  @classmethod
  def of(cls, name: str, beta: float, objective: str, outcomes: Sequence[Sequence[Outcome]]) -> 'Curve':
    """Combines the outcomes of all seeds."""
    names = dict.fromkeys(key for own in outcomes for outcome in own for key in outcome.measures)
    measures = {
      key: np.array([[outcome.measures.get(key, np.nan) for outcome in own] for own in outcomes]).T for key in names
    }
    return cls(name, beta, objective, np.array([outcome.update for outcome in outcomes[0]]), measures)

  def final(self, measure: str) -> np.ndarray:
    """The measure at the end, [seeds]."""
    return self.measures[measure][-1]

  @property
  def best(self) -> np.ndarray:
    """The evaluation with the highest gold reward in validation, [seeds]."""
    return np.argmax(self.measures['validation/gold'], axis=0)

  @property
  def peak(self) -> np.ndarray:
    """The gold reward there, in testing, [seeds]."""
    return np.take_along_axis(self.measures['gold'], self.best[None], axis=0)[0]

  def stopped(self, kl: np.ndarray) -> np.ndarray:
    """The gold reward at the last evaluation whose KL is at most `kl` [seeds]."""
    within = self.measures['kl'] <= kl
    last = len(within) - 1 - np.argmax(within[::-1], axis=0)  # the first evaluation, of the reference, has a KL of 0
    return np.take_along_axis(self.measures['gold'], last[None], axis=0)[0]


def shown(values: np.ndarray, sign: str = '') -> str:
  """The mean over seeds with its standard error."""
  mean, error = descent.estimate(values)
  return f'{mean:{sign}.3f} ± {error:.3f}'


def _above(values: np.ndarray) -> bool:
  """Whether the mean is above two standard errors."""
  mean, error = descent.estimate(values)
  return mean > 2 * error


def find(curves: Sequence[Curve], name: str, beta: float) -> Curve:
  """The curve of a contender."""
  return next(curve for curve in curves if (curve.name, curve.beta) == (name, beta))


def verdict(curves: Sequence[Curve]) -> dict[str, Any]:
  """The findings about DPO and IS-DPO by the rule of the study, as numbers and sentences."""
  low, high = min(curve.beta for curve in curves), max(curve.beta for curve in curves)
  plain, own = (find(curves, name, low) for name in ('DPO', weighted('DPO', CLIPS[0])))
  gain = {
    beta: find(curves, own.name, beta).final('gold') - find(curves, 'DPO', beta).final('gold') for beta in (low, high)
  }
  divergence, peak = own.final('kl') - plain.final('kl'), own.peak - plain.peak
  stopped = plain.stopped(own.final('kl'))

  def fall(curve: Curve) -> np.ndarray:
    return curve.peak - curve.final('gold')

  criteria = {  # in the order of the rule
    f'the final gold reward is higher: {shown(gain[low], "+")}': _above(gain[low]),
    f'the final KL is smaller: {shown(divergence, "+")} nats': float(divergence.mean()) < 0,
    f'the peak is not lower: {shown(peak, "+")}': not _above(-peak),
    f'the gain shrinks at beta {high:g}: {shown(gain[high], "+")}': float(gain[high].mean()) < float(gain[low].mean()),
  }
  held = sum(criteria.values())
  lines = [
    f'IS-DPO compared with DPO at beta {low:g}, paired by seed: the claim is '
    + ('reproduced.' if held == len(criteria) else f'not reproduced: {held} of {len(criteria)} criteria hold.'),
    *(f'{"holds" if holds else "fails"}: {text}' for text, holds in criteria.items()),
    f'From its peak, DPO falls by {shown(fall(plain))}, IS-DPO by {shown(fall(own))}.',
    f'DPO stopped before it exceeds the KL of IS-DPO: IS-DPO minus it is {shown(own.final("gold") - stopped, "+")}.',
  ]
  scaled = find(curves, f'DPO, {next(iter(CONTROLS))}', low)
  lines.append(
    f'DPO at the rate times the mean weight: IS-DPO minus it is {shown(own.final("gold") - scaled.final("gold"), "+")}.'
  )
  for control in list(CONTROLS)[1:]:
    one, other = (find(curves, f'{name}, {control}', low) for name in ('IS-DPO', 'DPO'))
    end, peak = shown(one.final('gold') - other.final('gold'), '+'), shown(one.peak - other.peak, '+')
    lines.append(f'With {control}: IS-DPO minus DPO is {end} at the end, {peak} at the peak.')
  return {'reproduced': held == len(criteria), 'criteria': criteria, 'lines': lines}


def rows(curves: Sequence[Curve]) -> list[list[str]]:
  """The rows of the table, with the columns of `COLUMNS`."""
  table = []
  for curve in curves:
    share = curve.measures.get('importance/effective_sample_share')
    table.append(
      [
        curve.name,
        f'{curve.beta:g}',
        shown(curve.peak),
        f'{curve.updates[curve.best].mean():.0f}',
        shown(curve.final('gold')),
        shown(curve.final('kl')),
        '' if share is None else f'{share[-1].mean():.1%}',
      ]
    )
  return table


def write(workdir: pathlib.Path, console: rich_console.Console, curves: Sequence[Curve]) -> dict[str, Any]:
  """Prints the table and the verdict, and writes table.md and figure.png. Returns entries for the summary."""
  found, table = verdict(curves), rows(curves)
  seeds = curves[0].measures['gold'].shape[1]
  title = f'Gold reward and KL of the policy’s own samples, nats; means and standard errors over {seeds} seeds'
  grid = rich_table.Table(title=title, box=box.SIMPLE, title_justify='left')
  for column in COLUMNS:
    grid.add_column(column, justify='left' if column == COLUMNS[0] else 'right')
  for row in table:
    grid.add_row(*row)
  console.print(grid)
  for line in found['lines']:
    console.print(line, highlight=False, soft_wrap=True)
  lines = [f'# {title}', '', *('| ' + ' | '.join(row) + ' |' for row in (COLUMNS, ['---'] * len(COLUMNS), *table))]
  notes = [f'- {line}' for line in found['lines']]
  (workdir / 'table.md').write_text('\n'.join([*lines, '', *notes, '']), encoding='utf-8')
  draw(workdir / 'figure.png', curves)
  return found | {'curves': [_to_json(curve) for curve in curves]}


def _to_json(curve: Curve) -> dict[str, Any]:
  values = {
    name: [[None if np.isnan(x) else x for x in row] for row in v.tolist()] for name, v in curve.measures.items()
  }
  return curve._asdict() | {'updates': curve.updates.tolist(), 'measures': values}


def draw(path: pathlib.Path, curves: Sequence[Curve]) -> None:
  """Plots gold reward against sqrt(KL) for each loss and beta, and the final and the peak reward of all contenders."""
  betas = sorted({curve.beta for curve in curves})
  with matplotlib.rc_context(RC):
    figure = matplotlib_figure.Figure(figsize=(15, 7.5), layout='constrained')
    grid = figure.add_gridspec(len(betas), len(LOSSES) + 1, width_ratios=[1] * len(LOSSES) + [1.1])
    panels = [[figure.add_subplot(grid[i, j]) for j in range(len(LOSSES))] for i in range(len(betas))]
    for beta, row in zip(betas, panels, strict=True):
      for axes, name in zip(row, LOSSES, strict=True):
        for place, label in enumerate([name, *(weighted(name, clip) for clip in CLIPS)]):
          _draw_curve(
            axes, find(curves, label, beta), COLORS[place], ('plain', *(f'weighted, clip {c:g}' for c in CLIPS))[place]
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


def _draw_curve(axes: matplotlib_axes.Axes, curve: Curve, color: str, label: str) -> None:
  x, y = np.sqrt(curve.measures['kl'].mean(axis=1)), curve.measures['gold']
  error = y.std(axis=1, ddof=1) / np.sqrt(y.shape[1])
  axes.errorbar(x, y.mean(axis=1), yerr=error, color=color, marker='o', markersize=3, elinewidth=0.7, label=label)
  axes.plot(x[-1], y[-1].mean(), 'o', color=color, markersize=8, markeredgecolor='white')  # the end


def _draw_ends(axes: matplotlib_axes.Axes, curves: Sequence[Curve]) -> None:
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
