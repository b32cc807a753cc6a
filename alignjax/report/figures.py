"""The figures of a report: which curves share a panel, and the summaries of evaluations and sweeps."""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import math
from typing import NamedTuple

import markupsafe
import numpy as np

from alignjax.evaluation import evaluator, frontier
from alignjax.report import facts, naming, svg
from alignjax.run import history

MOST_PANELS = 6  # of the metrics of a sweep
MOST_MARKS = 50  # of the skipped batches of a run
MOST_LABELS = 8  # at the ends of lines; of more runs, only the legend has the names
LONGEST = 13  # characters of a name that is written at the end of a line; longer names get a number
WIDE = (470, 290)


class Line(NamedTuple):
  """A metric in a panel."""

  metric: str
  label: str
  color: int = 0  # in a panel of one run
  dash: int = 0


class Panel(NamedTuple):
  """Metrics that share a panel."""

  title: str
  unit: str
  lines: Sequence[Line]
  log: bool = False


class Style(NamedTuple):
  """How the lines of a run look among others."""

  color: int
  dash: int
  label: str  # at the end of its lines


class Figure(NamedTuple):
  """A picture with its caption."""

  title: str
  svg: markupsafe.Markup


def _both(title: str, unit: str, name: str) -> Panel:
  return Panel(title, unit, (Line(f'train/{name}', 'training'), Line(f'eval/{name}', 'held out', dash=1)))


def _responses(title: str, unit: str, name: str) -> Panel:
  """The preferred and the dispreferred responses in one panel, for one run."""
  sides = (('chosen', 'preferred', 0), ('rejected', 'dispreferred', 1))
  lines = [Line(f'train/{name}_{side}', label, color) for side, label, color in sides]
  return Panel(title, unit, (*lines, *(Line(f'eval/{name}_{side}', '', color, 1) for side, _, color in sides)))


_FIRST = (
  _both('Loss', '', 'loss'),
  _both('Reward accuracy', 'share of pairs', 'reward_accuracy'),
  _both('Reward margin', '', 'reward_margin'),
)
_OF_ONE = (
  _responses('Log-probability of the responses', 'nats', 'logp'),
  _responses('Implicit reward of the responses', '', 'reward'),
)
_OF_SEVERAL = (
  _both('Log-probability of the preferred response', 'nats', 'logp_chosen'),
  _both('Log-probability of the dispreferred response', 'nats', 'logp_rejected'),
)
_LAST = (
  _both('Log-probability of the response', 'nats', 'logp'),
  _both('KL from the reference', 'nats', 'kl'),
  _both('Forward KL', 'nats', 'forward_kl'),
  _both('Reverse KL', 'nats', 'reverse_kl'),
  Panel('Gradient norm', '', (Line('train/gradient_norm', ''),), log=True),
  Panel('Learning rate', '', (Line('train/learning_rate', ''),)),
)
_ROLLOUTS = (
  Panel('Reward', 'mean ± standard error', (Line('rollout/reward', ''),)),
  Panel('KL from the reference', 'nats per response', (Line('rollout/kl_exact', ''),)),
  Panel('Length', 'tokens', (Line('rollout/length', ''),)),
  Panel('Finished responses', 'share', (Line('rollout/finished', ''),)),
  Panel('Entropy', 'nats per response', (Line('rollout/entropy', ''),)),
)
_UNSEEN = {'train/prompts', 'train/tokens', 'train/skipped', 'rollout/round', 'rollout/reward_error'}


def styles(groups: Sequence[tuple[str, Sequence[facts.Run]]]) -> dict[str, Style]:
  """The style of each run, by its folder. Runs of one group, which differ in their seeds, share one.

  Args:
    groups: names with runs.
  """
  found = {}
  for i, (name, members) in enumerate(groups):
    label = name if len(name) <= LONGEST else str(i + 1)
    for k, run in enumerate(members):
      found[run.folder] = Style(i, i // svg.COLORS, '' if k or not 1 < len(groups) <= MOST_LABELS else label)
  return found


def training(runs: Sequence[facts.Run], styles: Mapping[str, Style]) -> list[Figure]:
  """The panels of training and of held-out data."""
  panels = (*_FIRST, *(_OF_ONE if len(runs) == 1 else _OF_SEVERAL), *_LAST)
  return list(_figures(runs, styles, panels, 'updates', 'curve'))


def others(runs: Sequence[facts.Run], styles: Mapping[str, Style]) -> list[Figure]:
  """The panels of all remaining metrics."""
  shown = {line.metric for panel in (*_FIRST, *_OF_ONE, *_OF_SEVERAL, *_LAST, *_ROLLOUTS) for line in panel.lines}
  if len(runs) > 1:
    shown -= {line.metric for panel in _OF_ONE[1:] for line in panel.lines}
  names = dict.fromkeys(name for run in runs for name in run.curves if name not in shown | _UNSEEN)
  names = [name for name in names if not name.startswith('time/')]
  pairs = dict.fromkeys(name.partition('/')[2] for name in names if name.startswith(('train/', 'eval/')))
  panels = [_both(name, '', name) for name in pairs]
  panels += [Panel(name, '', (Line(name, ''),)) for name in names if not name.startswith(('train/', 'eval/'))]
  return list(_figures(runs, styles, panels, 'updates', 'other'))


def rollouts(runs: Sequence[facts.Run], styles: Mapping[str, Style]) -> list[Figure]:
  """The panels of on-policy runs over their rounds."""
  drawing = [run for run in runs if 'rollout/round' in run.curves]
  return [*_figures(drawing, styles, _ROLLOUTS, 'rounds', 'round'), *_shares(drawing)]


def _figures(
  runs: Sequence[facts.Run], styles: Mapping[str, Style], panels: Sequence[Panel], x: str, name: str
) -> Iterator[Figure]:
  for number, panel in enumerate(panels):
    series = [each for run in runs for each in _series(run, panel, styles[run.folder], len(runs) > 1)]
    if series:
      values = np.concatenate([each.y if each.raw is None else each.raw for each in series])
      of_training = x == 'updates' and any(line.metric.startswith('train/') for line in panel.lines)
      marks = _marks(runs, styles) if of_training else ()
      chart = svg.Chart(
        panel.title, x, panel.unit, series, marks, log=panel.log and 0 < 30 * values.min() < values.max()
      )
      yield Figure(panel.title, svg.draw(chart, f'{name}-{number}'))


def _marks(runs: Sequence[facts.Run], styles: Mapping[str, Style]) -> list[svg.Mark]:
  return [
    svg.Mark(step, f'{run.label}: the batch of update {step} was skipped', styles[run.folder].color)
    for run in runs
    for step in run.skipped[:MOST_MARKS]
  ]


def _series(run: facts.Run, panel: Panel, style: Style, several: bool) -> Iterator[svg.Series]:
  """The lines of one run in a panel. Among several runs the colour means the run, alone it means the metric."""
  there = [line for line in panel.lines if line.metric in run.curves]
  for line in there:
    curve, raw, error = run.curves[line.metric], None, None
    x, y = curve.steps, curve.values
    if line.metric.startswith('train/') and (smooth := _smoothed(y, panel.log)) is not y:
      raw, y = y, smooth
    if panel in _ROLLOUTS:
      x = _at(run.curves['rollout/round'], curve.steps)
      if f'{line.metric}_error' in run.curves:
        error = _at(run.curves[f'{line.metric}_error'], curve.steps)
    label = line.label if len(there) > 1 else ''
    if several:
      label = style.label if line is there[0] else ''
    yield svg.Series(
      x,
      y,
      label,
      style.color if several else line.color,
      line.dash + (style.dash if several else 0),
      raw,
      error,
      markers=line.metric.startswith('eval/') and len(x) <= 40,
    )


def _smoothed(values: np.ndarray, log: bool) -> np.ndarray:
  """Moving averages; of a metric with rare large values, of its logarithm."""
  smooth = history.smoothed(values)
  return np.exp(history.smoothed(np.log(values))) if log and smooth is not values and np.all(values > 0) else smooth


def _at(curve: history.Curve, steps: np.ndarray) -> np.ndarray:
  """The values of a curve at steps; NaN where it has none."""
  values = dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
  return np.array([values.get(step, math.nan) for step in steps.tolist()])


def _shares(runs: Sequence[facts.Run]) -> Iterator[Figure]:
  """One bar for each run: the mean share of the time of a round that each stage takes."""
  rows = []
  for run in runs:
    stages = {
      name.removeprefix('time/share_'): float(curve.values.mean())
      for name, curve in run.curves.items()
      if name.startswith('time/share_')
    }
    if stages:
      rows.append((run.label, stages))
  if rows:
    yield Figure('Share of the time of a round', _bars('Share of the time of a round', rows))


def _bars(title: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> markupsafe.Markup:
  width, row = 420, 84
  parts, captions = [], []
  for i, (name, stages) in enumerate(rows):
    left, top = 4.0, 10 + i * row
    parts.append(svg.text(4, top + 10, name if len(rows) > 1 else '', 'start', 'of-axis'))
    keys = []
    for k, (stage, share) in enumerate(sorted(stages.items(), key=lambda item: -item[1])):
      size = max(share, 0.0) * (width - 8)
      caption = f'{stage} {share:.0%}'
      parts.append(
        markupsafe.Markup(
          '<rect class="bar c{}" x="{:.1f}" y="{}" width="{:.1f}" height="18"><title>{}</title></rect>'
        ).format(k % svg.COLORS, left, top + 16, max(size - 1, 0), caption)
      )
      left += size
      keys.append((k, caption))
    for place, (k, caption) in enumerate(keys):
      x, y = 4 + place % 4 * 104, top + 50 + place // 4 * 16
      parts.append(
        markupsafe.Markup('<rect class="bar c{}" x="{}" y="{}" width="9" height="9"/>').format(k % svg.COLORS, x, y - 9)
      )
      parts.append(svg.text(x + 13, y, caption, 'start', 'label'))
    captions.append(f'{name}: {", ".join(caption for _, caption in keys)}')
  return svg.picture('stages', title, '; '.join(captions), (width, 10 + row * len(rows)), parts)


def reward_against_kl(evaluation: facts.Evaluation, number: int) -> Figure | None:
  """The reward against the square root of the KL, with standard errors: a line for the checkpoints of each run."""
  series = []
  there = [each for each in evaluation.models if 'kl' in each.values and 'reward' in each.values]
  groups = itertools.groupby(sorted(there, key=lambda each: (each.group, each.step)), lambda each: each.group)
  for color, (group, members) in enumerate(groups):
    models = list(members)
    middle, low, high = np.array([frontier.distance(each.values['kl']) for each in models]).T
    label = models[-1].label if models[-1].run == '' else naming.short([group])[0]
    series.append(_frontier(label, color, models, (middle, low, high)))
  if evaluation.best_of_n:
    _, kl, rewards = zip(*evaluation.best_of_n, strict=True)
    series.append(
      svg.Series(
        np.sqrt(kl),
        np.array([each.mean for each in rewards]),
        'best of n',
        len(series),
        2,
        markers=True,
        notes=tuple(f'n = {n}' for n, _, _ in evaluation.best_of_n),
      )
    )
  if not series:
    return None
  title = 'Reward against the distance from the reference'
  chart = svg.Chart(title, '√KL(model ‖ reference), √nats', 'mean reward ± standard error', series, size=WIDE)
  return Figure(title, svg.draw(chart, f'frontier-{number}'))


def _frontier(
  label: str, color: int, models: Sequence[facts.Model], distance: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> svg.Series:
  middle, low, high = distance
  rewards: list[evaluator.Estimate] = [each.values['reward'] for each in models]
  return svg.Series(
    middle,
    np.array([each.mean for each in rewards]),
    label,
    color,
    error=np.array([each.error for each in rewards]),
    spread=np.array([low, high]),
    markers=True,
    notes=tuple(str(each.step) for each in models) if len(models) > 1 else (),
  )


def dots(sweep: facts.Sweep, number: int) -> list[Figure]:
  """One panel for each metric of a sweep: all runs, and the mean of each setting with its standard error."""
  found = []
  for i, metric in enumerate(history.chosen([run.record for run in sweep.runs], MOST_PANELS)):
    groups = {
      name: values
      for name, members in sweep.groups.items()
      if (values := [run.record.last(metric) for run in members if metric in run.curves])
    }
    found.append(Figure(metric, _dots(f'sweep-{number}-{i}', metric, groups)))
  return found


def _dots(name: str, metric: str, groups: Mapping[str, Sequence[float]]) -> markupsafe.Markup:
  every = [value for values in groups.values() for value in values]
  estimates = {group: history.over_seeds(values) for group, values in groups.items()}
  ends = [mean + sign * np.nan_to_num(error) for mean, error in estimates.values() for sign in (-1, 1)]
  row, width = 34, 420
  box = (10.0, 6.0, width - 14.0, 6.0 + row * len(groups))
  axes = svg.horizontal([*every, *ends], box)
  parts = list(svg.vertical_grid(axes))
  for i, (group, values) in enumerate(groups.items()):
    mean, error = estimates[group]
    y = box[1] + row * i + 24
    caption = f'{group}: {naming.estimate(evaluator.Estimate(mean, error))}'
    parts.append(svg.text(box[0], y - 11, group, 'start', 'label'))
    parts.append(markupsafe.Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(box[0], box[2], y, y))
    parts += [
      markupsafe.Markup('<circle class="seed" cx="{:.1f}" cy="{}" r="2.2"/>').format(axes.x(value), y)
      for value in values
    ]
    if math.isfinite(error):
      parts.append(
        markupsafe.Markup('<path class="whisker c{}" d="M{:.1f} {}H{:.1f}"/>').format(
          i % svg.COLORS, axes.x(mean - error), y, axes.x(mean + error)
        )
      )
    parts.append(
      markupsafe.Markup('<circle class="point c{}" cx="{:.1f}" cy="{}" r="3.6"><title>{}</title></circle>').format(
        i % svg.COLORS, axes.x(mean), y, caption
      )
    )
  captions = '; '.join(f'{group}: {naming.estimate(evaluator.Estimate(*each))}' for group, each in estimates.items())
  return svg.picture(name, metric, captions, (width, int(box[3]) + 24), parts)
