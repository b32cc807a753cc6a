"""The report of `nested_risk`: a table at equal KL, the points, and the figure."""

from collections.abc import Mapping, Sequence
import csv
import pathlib
from typing import NamedTuple

import matplotlib
from matplotlib import axes as matplotlib_axes
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from experiments.toy import nested_risk_checks as checks

STYLES = {  # color and line style
  checks.MEAN: ('black', '-'),
  checks.STEPS: ('tab:brown', '--'),
  checks.ENTROPIC: ('tab:green', '-'),
  checks.STATIC: ('tab:red', '-'),
  checks.OUTSIDE: ('tab:cyan', '--'),
  checks.INSIDE: ('tab:blue', '-'),
}
RC = {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 9, 'legend.frameon': False}
MEASURES = {'reward': 'expected reward', 'cvar': 'CVaR of the reward', 'nested': 'nested CVaR', 'bad': 'bad branch, %'}
LEAST = 1e-8  # smaller probabilities are interpolated as this
SHORT = 1e-5  # reward; smaller shortfalls are drawn as this


class Results(NamedTuple):
  """What there is to report. Arrays have the axes [penalties, worlds, seeds]."""

  study: checks.Study
  points: Mapping[str, Mapping[str, np.ndarray]]  # measures by method
  before: Mapping[str, np.ndarray]  # measures of the reference, [1, worlds, seeds]
  shortfalls: Mapping[str, np.ndarray]
  example: checks.Example


def at_kl(points: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], name: str, kl: np.ndarray) -> np.ndarray:
  """A measure of one method at each KL, [worlds, seeds, kls], interpolated along each sweep from the reference on.

  Probabilities are interpolated in the logarithm. Beyond the largest KL of a sweep the result is nan.
  """
  lines, values = (np.concatenate([before[key], points[key]]) for key in ('kl', name))
  values = np.log(np.maximum(values, LEAST)) if name == 'bad' else values
  found = np.empty((*lines.shape[1:], len(kl)))
  for index in np.ndindex(*lines.shape[1:]):
    line, value = lines[:, *index], values[:, *index]
    order = np.argsort(line, kind='stable')
    found[index] = np.interp(kl, line[order], value[order], right=np.nan)
  return np.exp(found) if name == 'bad' else found


def rows(results: Results, kl: float) -> list[list[str]]:
  """The rows of the table: mean and standard deviation over worlds and seeds."""
  table = [[checks.REFERENCE, *(_text(name, results.before[name]) for name in MEASURES)]]
  for method, points in results.points.items():
    cells = [_text(name, at_kl(points, results.before, name, np.array([kl]))) for name in MEASURES]
    table.append([method, *cells])
  return table


def _text(name: str, values: np.ndarray) -> str:
  if name == 'bad':
    return f'{100 * values.mean():.4f} ± {100 * values.std():.4f}'
  return f'{values.mean():.2f} ± {values.std():.2f}'


def write(
  workdir: pathlib.Path, console: rich_console.Console, results: Results, found: Sequence[checks.Check], kl: float
) -> list[list[str]]:
  """Prints the table and the predictions, and writes table.md, points.csv and figure.png.

  Args:
    workdir: the folder to write to.
    console: the console to print to.
    results: the results.
    found: the predictions, checked.
    kl: the KL in nats at which the table compares the methods.

  Returns:
    The rows of the table.
  """
  _, worlds, seeds = next(iter(results.before.values())).shape
  title = f'At KL(pi || pi_ref) = {kl:g} nats: mean ± standard deviation, {worlds} worlds x {seeds} seeds'
  columns, table = ['method', *MEASURES.values()], rows(results, kl)
  shown = rich_table.Table(title=title, box=box.SIMPLE, title_justify='left')
  for name in columns:
    shown.add_column(name, justify='left' if name == 'method' else 'right', no_wrap=name == 'method')
  for row in table:
    shown.add_row(*row)
  console.print(shown)
  for check in found:
    found_lines = check.found.replace('\n', '\n    ')
    text = f'{"holds" if check.holds else "DOES NOT HOLD"}: {check.prediction}\n  {found_lines}'
    console.print(text, highlight=False, soft_wrap=True, markup=False)

  lines = [f'# {title}', '', *('| ' + ' | '.join(row) + ' |' for row in (columns, ['---'] * len(columns), *table))]
  lines += ['', '# Predictions', '']
  for check in found:
    lines += [f'- {"Holds" if check.holds else "Does not hold"}: {check.prediction}.', '', '  ```']
    lines += [*(f'  {line}' for line in check.found.splitlines()), '  ```']
  (workdir / 'table.md').write_text('\n'.join([*lines, '']), encoding='utf-8')
  _write_points(workdir / 'points.csv', results)
  draw(results).savefig(workdir / 'figure.png', dpi=130)
  return table


def _write_points(path: pathlib.Path, results: Results) -> None:
  measures = list(results.before)
  with path.open('w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['method', 'penalty', 'world', 'seed', *measures])
    for method, points in {checks.REFERENCE: results.before, **results.points}.items():
      for k, w, n in np.ndindex(*points['kl'].shape):
        penalty = '' if method == checks.REFERENCE else results.study.penalties[k]
        writer.writerow([method, penalty, w, n, *(f'{points[name][k, w, n]:.7g}' for name in measures)])


def draw(results: Results) -> matplotlib_figure.Figure:
  """Draws the measures against the KL, the shortfall of training, and the revised plan."""
  kl = np.linspace(0.0, 3.0, 61)
  titles = {
    'reward': ('Expected reward', 'expected reward'),
    'cvar': (f'Static risk: mean of the worst {100 * results.study.level:g} % of responses', 'CVaR of the reward'),
    'nested': (f'Nested risk: level {results.study.nested_level:.2f} per token', 'nested CVaR of the reward'),
    'bad': ('Probability of the bad branch', 'probability'),
  }
  with matplotlib.rc_context(RC):
    figure = matplotlib_figure.Figure(figsize=(15, 8.6), layout='constrained')
    panels = figure.subplots(2, 3).ravel()
    for axes, (name, (title, label)) in zip(panels[:4], titles.items(), strict=True):
      for method, points in results.points.items():
        color, line = STYLES[method]
        curve = at_kl(points, results.before, name, kl)
        mean = np.exp(np.log(curve).mean(axis=(0, 1))) if name == 'bad' else curve.mean(axis=(0, 1))
        axes.plot(kl, mean, line, color=color, linewidth=1.8, label=method)
      axes.set_xlabel('KL(policy || reference) of a response, nats')
      axes.set_ylabel(label)
      axes.set_title(title, loc='left')
      axes.grid(alpha=0.25)
    panels[3].set_yscale('log')
    panels[3].set_ylim(10 * LEAST, 0.1)
    panels[0].legend()
    _draw_shortfalls(panels[4], results)
    _draw_example(panels[5], results.example)
  return figure


def _draw_shortfalls(axes: matplotlib_axes.Axes, results: Results) -> None:
  penalties = np.array(results.study.penalties)
  shown = penalties > 0
  for name, values in results.shortfalls.items():
    method = name.removesuffix(checks.AT_ONCE)
    mean = np.maximum(values[shown].mean(axis=(1, 2)), SHORT)
    axes.plot(penalties[shown], mean, 'o-' if name == method else 'x:', color=STYLES[method][0], label=name)
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlabel('beta, reward per nat')
  axes.set_ylabel('shortfall from the best value, reward')
  axes.set_title('Without easing, gradient ascent stalls at small beta', loc='left')
  axes.set_ylim(0.5 * SHORT, 100)  # room for the legend
  axes.grid(alpha=0.25)
  axes.legend(ncols=2)


def _draw_example(axes: matplotlib_axes.Axes, example: checks.Example) -> None:
  colors = ('0.75', STYLES[checks.STATIC][0], 'tab:orange', STYLES[checks.INSIDE][0])
  tokens, width = np.arange(len(example.rewards)), 0.8 / len(example.choices)
  for place, (color, (name, probs)) in enumerate(zip(colors, example.choices.items(), strict=True)):
    axes.bar(tokens + (place - 1.5) * width, probs, width=width, color=color, label=name)
  axes.set_xticks(tokens, [f'{token}\n(reward {reward:.2f})' for token, reward in enumerate(example.rewards)])
  axes.set_xlabel('next token (expected reward after it, under the reference)')
  axes.set_ylabel('probability')
  axes.set_ylim(0, 1.5)  # room for the legend
  axes.set_yticks(np.linspace(0, 1, 6))
  axes.set_title(f'Static plans are revised: after tokens {example.prefix}, beta = {example.beta:g}', loc='left')
  axes.legend(loc='upper center', ncols=1)
