"""The report of `token_risk`: tails at equal KL, the verdict by a rule fixed beforehand, tables, a figure."""

from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple

import matplotlib
from matplotlib import axes as matplotlib_axes
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import console as rich_console

from experiments.toy import descent, language, tables

PLAIN = 'TDPO'
RISKS = {
  'CVaR 0.97': 'ra_dpo, risk=cvar(0.97)',
  'CVaR 0.9': 'ra_dpo, risk=cvar(0.9)',
  'CVaR 0.5': 'ra_dpo, risk=cvar(0.5)',
  'entropic 0.5': 'ra_dpo, risk=entropic(0.5)',
  'entropic 5': 'ra_dpo, risk=entropic(5.0)',
}
NESTED = {
  'nested mean': 'tdpo, off_path=0.9',
  'nested CVaR 0.9': 'ra_dpo, risk=cvar(0.9), off_path=0.9',
  'nested CVaR 0.5': 'ra_dpo, risk=cvar(0.5), off_path=0.9',
  'nested entropic 5': 'ra_dpo, risk=entropic(5.0), off_path=0.9',
}
METHODS = RISKS | NESTED
SIDES = ('held-out', 'own')
TAILS = ('p95', 'max')
COLUMNS = (
  'contender', 'alpha', 'accuracy', 'sequential KL', 'p95', 'max', 'own sequential KL', 'own p95', 'own max', 'gold',
)  # fmt: skip
MATCHED = ('contender', 'matched', 'accuracy', 'p95', 'max', 'own p95', 'own max', 'sequential KL at equal alpha')
COLORS = {
  PLAIN: 'black',
  'CVaR 0.97': 'tab:cyan',
  'CVaR 0.9': 'tab:blue',
  'CVaR 0.5': 'tab:purple',
  'entropic 0.5': 'tab:olive',
  'entropic 5': 'tab:red',
  'nested mean': '0.5',
  'nested CVaR 0.9': 'tab:blue',
  'nested CVaR 0.5': 'tab:purple',
  'nested entropic 5': 'tab:red',
}


class Result(NamedTuple):
  """A contender at one value of alpha."""

  name: str
  alpha: float
  objective: str
  measures: dict[str, np.ndarray]  # [seeds] each

  @classmethod
  def of(cls, name: str, alpha: float, objective: str, measures: Sequence[language.Measures]) -> 'Result':
    """Combines the measurements of all seeds."""
    return cls(name, alpha, objective, {key: np.array([each[key] for each in measures]) for key in measures[0]})


def _own(results: Sequence[Result], name: str) -> list[Result]:
  return [each for each in results if each.name == name]


def at_kl(results: Sequence[Result], side: str, kl: np.ndarray, measure: str) -> np.ndarray:
  """The measure of TDPO where its sequential KL is `kl` [seeds], seed by seed; nan outside the range of its points."""
  x, y = (np.array([each.measures[key] for each in _own(results, PLAIN)]) for key in (f'{side}/sequential', measure))
  found = []
  for seed, value in enumerate(kl):
    order = np.argsort(x[:, seed])
    found.append(np.interp(value, x[order, seed], y[order, seed], left=np.nan, right=np.nan))
  return np.array(found)


def matched(results: Sequence[Result], name: str, side: str) -> list[Result]:
  """The results of a contender whose sequential KL is within the range of TDPO's for every seed."""
  kl = f'{side}/sequential'
  return [each for each in _own(results, name) if np.isfinite(at_kl(results, side, each.measures[kl], kl)).all()]


def difference(results: Sequence[Result], name: str, side: str, measure: str) -> np.ndarray | None:
  """The measure minus that of TDPO at equal sequential KL on a side, mean over matched alpha, [seeds]; None if none."""
  own = matched(results, name, side)
  if not own:
    return None
  plain = [at_kl(results, side, each.measures[f'{side}/sequential'], measure) for each in own]
  return np.mean([each.measures[measure] - other for each, other in zip(own, plain, strict=True)], axis=0)


def at_equal_alpha(results: Sequence[Result], name: str) -> np.ndarray:
  """The sequential KL on held-out responses minus that of TDPO, mean over alpha, [seeds]."""
  kl = 'held-out/sequential'
  plain = {each.alpha: each.measures[kl] for each in _own(results, PLAIN)}
  return np.mean([each.measures[kl] - plain[each.alpha] for each in _own(results, name)], axis=0)


def passes(results: Sequence[Result], name: str, tail: str) -> bool | None:
  """Whether a tail on held-out responses is lower at equal sequential KL and no lower accuracy; None if not matched."""
  lower, accuracy = (difference(results, name, 'held-out', key) for key in (f'held-out/{tail}', 'accuracy'))
  return None if lower is None else tables.above(-lower) and not tables.above(-accuracy)


def verdict(results: Sequence[Result]) -> dict[str, Any]:
  """The findings by the rule of the study, as numbers and sentences; `reproduced` is None if it is undecided."""
  passed = {(name, tail): passes(results, name, tail) for name in RISKS for tail in TAILS}
  higher = [
    f'{name} ({tail})'
    for name, tail in passed
    if (found := difference(results, name, 'held-out', f'held-out/{tail}')) is not None and tables.above(found)
  ]
  stronger = [name for name in RISKS if tables.above(-at_equal_alpha(results, name))]
  held = [f'{name} ({tail})' for (name, tail), holds in passed.items() if holds]
  unmatched = [name for name in RISKS if passed[name, TAILS[0]] is None]
  reproduced = True if held else None if unmatched else False
  outcome = {True: 'reproduced', False: 'not reproduced', None: 'undecided'}[reproduced]
  lines = [
    f'At equal sequential KL, compared with TDPO and paired by seed: the claim is {outcome}.',
    f'{len(held)} of {len(passed)} comparisons of risk measures with TDPO pass: {_listed(held)}.',
    f'The tail is higher than TDPO’s by more than two standard errors in {len(higher)}: {_listed(higher)}.',
    f'The sequential KL is lower at equal alpha by more than two standard errors for: {_listed(stronger)}.',
  ]
  if unmatched:
    lines.append(f'Outside the range of TDPO’s sequential KL at every alpha: {_listed(unmatched)}.')
  reduces = reproduced is False and bool(stronger)
  if reduces:
    lines.append('So the claim reduces to a stronger coefficient: TDPO with a larger alpha does the same.')
  nested = [
    f'{name} ({tail})' for name in NESTED for tail in TAILS if passes(results, name, tail)
  ]  # outside the verdict
  lines.append(f'Of the nested arms, which do not count for the verdict, these pass: {_listed(nested)}.')
  criteria = {f'{name}, {tail}': holds for (name, tail), holds in passed.items()}
  return {'reproduced': reproduced, 'reduces': reduces, 'criteria': criteria, 'lines': lines}


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names) or 'none'


def rows(results: Sequence[Result]) -> list[list[str]]:
  """All points, with the columns of `COLUMNS`."""
  keys = ('accuracy', *(f'{side}/{name}' for side in SIDES for name in ('sequential', *TAILS)), 'gold')
  return [[each.name, f'{each.alpha:g}', *(tables.shown(each.measures[key]) for key in keys)] for each in results]


def matched_rows(results: Sequence[Result]) -> list[list[str]]:
  """The differences to TDPO at equal sequential KL of the same side, with the columns of `MATCHED`."""
  table = []
  for name in METHODS:
    count = f'{len(matched(results, name, "held-out"))} of {len(_own(results, name))}'
    keys = [('held-out', 'accuracy'), *((side, f'{side}/{tail}') for side in SIDES for tail in TAILS)]
    found = [difference(results, name, side, key) for side, key in keys]
    shown = ['' if values is None else tables.shown(values, '+') for values in found]
    table.append([name, count, *shown, tables.shown(at_equal_alpha(results, name), '+')])
  return table


def write(workdir: pathlib.Path, console: rich_console.Console, results: Sequence[Result]) -> dict[str, Any]:
  """Prints the differences and the verdict, and writes both and all points to table.md, and figure.png.

  Returns:
    Entries for the summary.
  """
  found = verdict(results)
  errors = f'means and standard errors over {len(results[0].measures["accuracy"])} seeds'
  matched_table = (f'Minus TDPO at equal sequential KL, nats; {errors}', MATCHED, matched_rows(results))
  title = 'All points: token KL(reference || policy) on held-out responses and own samples, nats'
  lines = [*tables.markdown(*matched_table), *tables.markdown(f'{title}; {errors}', COLUMNS, rows(results))]
  tables.show(console, *matched_table)
  tables.write(workdir, console, lines, found['lines'])
  draw(workdir / 'figure.png', results)
  plain = [each._asdict() | {'measures': {name: v.tolist() for name, v in each.measures.items()}} for each in results]
  return found | {'results': plain}


def draw(path: pathlib.Path, results: Sequence[Result]) -> None:
  """Plots accuracy or gold reward and both tails against the sequential KL, and the differences at equal KL."""
  titles = {
    'accuracy': 'Accuracy of the log-ratio',
    'gold': 'Gold reward',
    'p95': '95th percentile of the token KL, nats',
    'max': 'Largest token KL, nats',
  }
  with matplotlib.rc_context(tables.RC):
    figure = matplotlib_figure.Figure(figsize=(19, 8), layout='constrained')
    panels = figure.subplots(2, 5, width_ratios=(1, 1, 1, 0.8, 0.8))
    for row, side, first in zip(panels, SIDES, ('accuracy', 'gold'), strict=True):
      place = 'held-out responses' if side == SIDES[0] else 'own samples'
      for axes, key in zip(row, (first, *TAILS), strict=False):
        for name in (PLAIN, *METHODS):
          _draw_points(axes, _own(results, name), side, key if key == first else f'{side}/{key}')
        axes.set_title(titles[key], loc='left')
        axes.set_xlabel(f'sequential KL, {place}, nats')
        axes.locator_params(axis='x', nbins=5)
      for axes, tail in zip(row[-2:], TAILS, strict=True):
        _draw_differences(axes, results, side, tail)
        axes.set_title(f'{tail}, {place}', loc='left')
      row[-1].set_yticklabels([])
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=len(COLORS))
    figure.savefig(path, dpi=130)


def _draw_points(axes: matplotlib_axes.Axes, own: Sequence[Result], side: str, key: str) -> None:
  name = own[0].name
  x, y = ([each.measures[k].mean() for each in own] for k in (f'{side}/sequential', key))
  error = [descent.estimate(each.measures[key])[1] for each in own]
  style = {'color': COLORS[name], 'elinewidth': 0.6, 'linewidth': 1.8 if name == PLAIN else 0.8}
  marker = {'marker': 'o', 'markersize': 4, 'fillstyle': 'none' if name in NESTED else 'full'}
  axes.errorbar(x, y, yerr=error, linestyle=':' if name in NESTED else '-', label=name, **style, **marker)


def _draw_differences(axes: matplotlib_axes.Axes, results: Sequence[Result], side: str, tail: str) -> None:
  for place, name in enumerate(METHODS):
    found = difference(results, name, side, f'{side}/{tail}')
    if found is None:
      continue
    mean, error = descent.estimate(found)
    style = {'color': COLORS[name], 'marker': 'o', 'markersize': 5, 'capsize': 2}
    axes.errorbar(mean, -place, xerr=2 * error, fillstyle='none' if name in NESTED else 'full', **style)
  axes.axvline(0.0, color='0.7', linewidth=0.8)
  axes.set_yticks([-place for place in range(len(METHODS))], list(METHODS), fontsize=8)
  axes.locator_params(axis='x', nbins=4)
  axes.set_ylim(0.5 - len(METHODS), 0.5)
  axes.set_xlabel('minus TDPO at equal KL, ± 2 standard errors')
