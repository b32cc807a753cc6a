"""The results of the quickstart: a table on the terminal, summary.json, figure.png and samples.md."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from alignjax.evaluation import frontier
from experiments.quickstart import responses

STYLE = {
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.alpha': 0.25,
  'axes.titlesize': 11,
  'font.size': 9,
  'legend.frameon': False,
}
BEFORE, AFTER = 'tab:gray', 'tab:blue'
SMOOTHED = 8  # steps


def print_summary(console: rich_console.Console, summary: Mapping[str, Any]) -> None:
  """Prints the results, which are reproducible, and the costs, which are not."""
  results = summary['results']
  table = rich_table.Table(title=f'{summary["objective"]}, on held-out prompts', box=box.SIMPLE, title_justify='left')
  table.add_column('')
  table.add_column('before', justify='right')
  table.add_column('after', justify='right')
  before, after, gain = (_estimate(results[name]) for name in ('gold_reward_before', 'gold_reward_after', 'gain'))
  table.add_row('gold reward', before, after)
  table.add_row('gain, paired by prompt', '', gain)
  table.add_row('gain in standard errors', '', f'{results["gain_in_standard_errors"]:.1f}')
  table.add_row('win rate against the reference', '', _estimate(results['win_rate']))
  table.add_row('KL to the reference, nats', '', _estimate(results['kl']))
  if results['reward_accuracy'] is not None:  # some objectives define no reward
    table.add_row('reward accuracy, held-out pairs', '', f'{results["reward_accuracy"]:.3f}')
  table.add_row('response tokens', *(f'{results[f"response_tokens_{when}"]:.1f}' for when in ('before', 'after')))
  console.print(table)
  costs = summary['costs']
  stages = ', '.join(f'{stage} {seconds:.0f}' for stage, seconds in costs['seconds'].items() if stage != 'total')
  total, memory = costs['seconds']['total'], costs['peak_memory_gib']
  console.print(f'{total:.0f} s ({stages}), peak memory {memory:.1f} GiB', highlight=False, soft_wrap=True)


def _estimate(entry: Mapping[str, float]) -> str:
  return f'{entry["mean"]:.3f} ± {entry["error"]:.3f}'


def write_summary(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
  """Writes the summary as JSON. Numbers that are not finite, such as the error over a single prompt, become null."""
  path.write_text(json.dumps(_finite(summary), indent=2, allow_nan=False) + '\n', encoding='utf-8')


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(entry) for entry in value]
  return value if not isinstance(value, float) or np.isfinite(value) else None


def write_samples(path: pathlib.Path, title: str, before: responses.Drawn, after: responses.Drawn) -> None:
  """Writes a Markdown table of the first response to each prompt, before and after, with its gold reward."""
  lines = [
    f'# {title}',
    '',
    'Greedy answers to held-out prompts, cut off at the length limit, with their gold reward.',
    '',
  ]
  lines += ['| prompt | before | after |', '| --- | --- | --- |']
  for row, prompt in enumerate(before.prompts):
    cells = [prompt, *(f'{side.texts[row][0]} **({side.rewards[row, 0]:+.2f})**' for side in (before, after))]
    lines.append('| ' + ' | '.join(' '.join(cell.replace('|', '\\|').split()) for cell in cells) + ' |')
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def drawing() -> tuple[Any, Any]:
  """The modules matplotlib and matplotlib.figure.

  Raises:
    ValueError: matplotlib is not installed.
  """
  try:
    import matplotlib
    from matplotlib import figure
  except ImportError as error:
    raise ValueError("the figure needs matplotlib: pip install 'alignjax[demo]'") from error
  return matplotlib, figure


def draw_figure(
  path: pathlib.Path,
  title: str,
  records: Sequence[Mapping[str, float]],
  points: Sequence[frontier.Point],
  before: np.ndarray,
  after: np.ndarray,
) -> None:
  """Draws the four panels of the run.

  Args:
    path: the PNG file.
    title: the title of the figure.
    records: the metrics in order of their steps.
    points: the evaluations during training.
    before: gold rewards of the reference's held-out samples, [B, N].
    after: gold rewards of the aligned model's held-out samples, [B, N].
  """
  matplotlib, figures = drawing()
  with matplotlib.rc_context(STYLE):
    figure = figures.Figure(figsize=(10, 7), layout='constrained')
    figure.suptitle(title)
    (loss, sides), (tradeoff, histogram) = figure.subplots(2, 2)
    steps = [record for record in records if 'loss' in record]  # the others hold only evaluations
    _draw_loss(loss, steps)
    _draw_sides(sides, steps)
    tradeoff.set_title('Gold reward against distance from the reference (number: step)')
    frontier.draw(tradeoff, points)
    _draw_histogram(histogram, before, after)
    figure.savefig(path, dpi=120)
  figure.clear()


def _draw_loss(axes: Any, records: Sequence[Mapping[str, float]]) -> None:
  axes.set_title('Training: loss and reward accuracy')
  axes.set_xlabel('step')
  axes.set_ylabel('loss')
  lines = [_curve(axes, records, 'loss', AFTER, 'loss')]
  if 'reward_accuracy' in records[0]:
    right = axes.twinx()
    right.spines['right'].set_visible(True)
    right.grid(False)
    right.set_ylim(0, 1.02)
    right.set_ylabel('reward accuracy')
    lines.append(_curve(right, records, 'reward_accuracy', 'tab:orange', 'reward accuracy'))
  axes.legend(handles=lines, loc='lower left')


def _draw_sides(axes: Any, records: Sequence[Mapping[str, float]]) -> None:
  """Implicit rewards of both responses; log-probabilities if the objective defines no reward."""
  name, what = ('reward', 'implicit reward') if 'reward_chosen' in records[0] else ('logp', 'log-probability, nats')
  axes.set_title(f'Training: {what} of the responses')
  axes.set_xlabel('step')
  axes.set_ylabel(what)
  for side, color in (('chosen', 'tab:green'), ('rejected', 'tab:red')):
    _curve(axes, records, f'{name}_{side}', color, side)
  axes.legend(loc='lower left')


def _curve(axes: Any, records: Sequence[Mapping[str, float]], name: str, color: str, label: str) -> Any:
  """Draws a metric in a pale line and its running mean in a strong one; returns the latter."""
  steps, values = ([record[key] for record in records] for key in ('step', name))
  smooth = [np.mean(values[max(0, i + 1 - SMOOTHED) : i + 1]) for i in range(len(values))]
  axes.plot(steps, values, color=color, alpha=0.25)
  return axes.plot(steps, smooth, color=color, label=f'{label} (mean of {SMOOTHED} steps)')[0]


def _draw_histogram(axes: Any, before: np.ndarray, after: np.ndarray) -> None:
  axes.set_title('Gold reward of held-out samples')
  bins = np.linspace(-1.0, 1.0, 21)
  axes.hist(np.ravel(before), bins, alpha=0.6, color=BEFORE, label=f'before, mean {np.mean(before):.2f}')
  axes.hist(np.ravel(after), bins, alpha=0.6, color=AFTER, label=f'after, mean {np.mean(after):.2f}')
  axes.set_xlabel('VADER compound score')
  axes.set_ylabel('samples')
  axes.legend(loc='upper left')
