"""The report of `adaptive_margin`: the choice of settings and the verdict by fixed rules, a table and a figure."""

from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple

import matplotlib
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import console as rich_console

from experiments.toy import descent, language, tables

ARMS = ('labels as they are', 'a fifth of the labels flipped')
CONTENDERS = ('DPO', 'SimPO', 'alpha-DPO', 'shuffled z', 'moving average')
COLUMNS = ('contender', 'gold', 'minus SimPO', 'KL', 'tokens', 'flipped if z < 0', 'setting')
COLORS = dict(zip(CONTENDERS, ('0.5', 'black', 'tab:blue', 'tab:orange', 'tab:green'), strict=True))


class Result(NamedTuple):
  """A contender at one setting in one arm."""

  contender: str
  setting: str
  arm: str
  measures: dict[str, np.ndarray]  # [seeds] each

  @classmethod
  def of(cls, contender: str, setting: str, arm: str, measures: Sequence[language.Measures]) -> 'Result':
    """Combines the measurements of all seeds."""
    return cls(contender, setting, arm, {name: np.array([each[name] for each in measures]) for name in measures[0]})


def choose(results: Sequence[Result], contender: str, arm: str) -> Result:
  """The setting with the highest mean gold reward in validation."""
  own = [each for each in results if (each.contender, each.arm) == (contender, arm)]
  return max(own, key=lambda each: each.measures['validation/gold'].mean())


def verdict(results: Sequence[Result], share: float) -> dict[str, Any]:
  """The findings by the rule of the study, as numbers and sentences.

  Args:
    results: all results.
    share: the share of flipped labels.
  """
  gains = {}
  for arm in ARMS:
    plain = choose(results, 'SimPO', arm).measures['gold']
    gains[arm] = {name: choose(results, name, arm).measures['gold'] - plain for name in CONTENDERS}
  mean, error = descent.estimate(gains[ARMS[1]]['alpha-DPO'])
  reproduced = mean > 2 * error
  lines = [f'The claim is {"" if reproduced else "not "}reproduced.']
  for arm, gain in gains.items():
    lines.append(
      f'With {arm}, minus SimPO: '
      + ', '.join(f'{name} {tables.shown(gain[name], "+")}' for name in CONTENDERS if name != 'SimPO')
      + '.'
    )
  lagging = choose(results, 'alpha-DPO', ARMS[1]).measures['lagging']
  lines.append(f'Of the pairs with z < 0, {tables.shown(lagging)} have a flipped label; of all pairs, {share:g}.')
  return {'reproduced': reproduced, 'lines': lines}


def rows(results: Sequence[Result], arm: str) -> list[list[str]]:
  """The rows of the table of an arm, with the columns of `COLUMNS`."""
  table, plain = [], choose(results, 'SimPO', arm).measures['gold']
  for name in CONTENDERS:
    setting, measures = choose(results, name, arm)[1::2]
    gain = '' if name == 'SimPO' else tables.shown(measures['gold'] - plain, '+')
    found = [tables.shown(measures[key]) for key in ('kl', 'length', 'lagging')]
    table.append([name, tables.shown(measures['gold']), gain, *found, setting])
  return table


def write(
  workdir: pathlib.Path, console: rich_console.Console, results: Sequence[Result], share: float
) -> dict[str, Any]:
  """Prints the tables and the verdict, and writes table.md and figure.png. Returns entries for the summary."""
  found, lines = verdict(results, share), []
  seeds = len(results[0].measures['gold'])
  for arm in ARMS:
    title = f'{arm.capitalize()}: chosen settings, means and standard errors over {seeds} seeds'
    table = rows(results, arm)
    tables.show(console, title, COLUMNS[:-1], [row[:-1] for row in table])
    for name, *_, setting in table:
      console.print(f'{name}: {setting}', highlight=False, soft_wrap=True)
    lines += tables.markdown(title, COLUMNS, table)
  tables.write(workdir, console, lines, found['lines'])
  draw(workdir / 'figure.png', results)
  plain = [each._asdict() | {'measures': {name: v.tolist() for name, v in each.measures.items()}} for each in results]
  return found | {'results': plain}


def draw(path: pathlib.Path, results: Sequence[Result]) -> None:
  """Plots gold reward against KL for every setting, the chosen ones larger, and their gains over SimPO."""
  with matplotlib.rc_context(tables.RC):
    figure = matplotlib_figure.Figure(figsize=(12, 7), layout='constrained')
    panels = figure.subplots(2, 2, width_ratios=(1.5, 1))
    for (plane, gains), arm in zip(panels, ARMS, strict=True):
      plain = choose(results, 'SimPO', arm).measures['gold']
      for place, name in enumerate(CONTENDERS):
        own = [each.measures for each in results if (each.contender, each.arm) == (name, arm)]
        best = choose(results, name, arm).measures
        x, y = ([each[key].mean() for each in own] for key in ('kl', 'gold'))
        plane.plot(np.sqrt(x), y, 'o', color=COLORS[name], markersize=3, alpha=0.6)
        error = descent.estimate(best['gold'])[1]
        plane.errorbar(
          np.sqrt(best['kl'].mean()), best['gold'].mean(), yerr=error, color=COLORS[name], marker='o', markersize=8,
          linewidth=1, markeredgecolor='white', label=name,
        )  # fmt: skip
        mean, error = descent.estimate(best['gold'] - plain)
        gains.errorbar(mean, -place, xerr=error, color=COLORS[name], marker='o', capsize=2)
      plane.set_title(arm.capitalize(), loc='left')
      plane.set_xlabel('square root of the KL, nats')
      plane.set_ylabel('gold reward')
      gains.axvline(0.0, color='0.7', linewidth=0.8)
      gains.set_yticks([-place for place in range(len(CONTENDERS))], CONTENDERS)
      gains.set_xlabel('gold reward minus that of SimPO')
      gains.set_title('Chosen settings', loc='left')
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=len(CONTENDERS))
    figure.savefig(path, dpi=130)
