"""What the quickstart shows: a table on the terminal, summary.json, figure.png and samples.md."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import matplotlib
from matplotlib import figure as matplotlib_figure
import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from alignjax.evaluation import frontier

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


def print_summary(console: rich_console.Console, summary: Mapping[str, Any]) -> None:
  """Prints the results, which two runs share, and then what they cost, which varies."""
  results = summary['results']
  title = f'{summary["objective"]} on held-out prompts'
  table = rich_table.Table(title=title, box=box.SIMPLE_HEAVY, title_justify='left')
  table.add_column('')
  table.add_column('before', justify='right')
  table.add_column('after', justify='right')
  before, after, gain = (_estimate(results[name]) for name in ('gold_reward_before', 'gold_reward_after', 'gain'))
  table.add_row('gold reward (VADER)', before, after)
  table.add_row('gain, paired by prompt', '', f'{gain}  ({results["gain_in_standard_errors"]:.1f} standard errors)')
  table.add_row('win rate against the reference', '0.500', _estimate(results['win_rate']))
  table.add_row('KL to the reference, nats a response', '0', _estimate(results['kl']))
  table.add_row('reward accuracy on held-out pairs', '', f'{results["reward_accuracy"]:.3f}')
  table.add_row('response tokens', f'{results["length_before"]:.1f}', f'{results["length_after"]:.1f}')
  console.print(table)
  costs = summary['costs']
  stages = ', '.join(f'{stage} {seconds:.0f}' for stage, seconds in costs['seconds'].items() if stage != 'total')
  total, memory = costs['seconds']['total'], costs['peak_memory_gib']
  console.print(f'{total:.0f} s ({stages}), peak memory {memory:.1f} GiB', highlight=False)


def _estimate(entry: Mapping[str, float]) -> str:
  return f'{entry["mean"]:.3f} ± {entry["error"]:.3f}'


def write_summary(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
  """Writes the summary as JSON; what it cannot hold, such as the infinite error of a single prompt, becomes null."""
  path.write_text(json.dumps(_finite(summary), indent=2, allow_nan=False) + '\n', encoding='utf-8')


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(entry) for entry in value]
  return value if not isinstance(value, float) or np.isfinite(value) else None


def write_samples(
  path: pathlib.Path,
  title: str,
  prompts: Sequence[str],
  before: Sequence[tuple[str, float]],
  after: Sequence[tuple[str, float]],
) -> None:
  """Writes a Markdown table with one (response, gold reward) before and one after for each prompt."""
  lines = [f'# {title}', '', '| prompt | before | after |', '| --- | --- | --- |']
  for prompt, *sides in zip(prompts, before, after, strict=True):
    cells = [prompt, *(f'{response} **({reward:+.2f})**' for response, reward in sides)]
    lines.append('| ' + ' | '.join(' '.join(cell.replace('|', '\\|').split()) for cell in cells) + ' |')
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def draw_figure(
  path: pathlib.Path,
  title: str,
  curves: Sequence[Mapping[str, float]],
  points: Sequence[frontier.Point],
  before: np.ndarray,
  after: np.ndarray,
) -> None:
  """Draws the four panels of the run.

  Args:
    path: of the PNG.
    title: of the whole figure.
    curves: metrics of each training step, in order.
    points: evaluated checkpoints.
    before: gold rewards of all held-out samples of the reference.
    after: the same of the aligned model.
  """
  with matplotlib.rc_context(STYLE):
    figure = matplotlib_figure.Figure(figsize=(10, 7), layout='constrained')
    figure.suptitle(title)
    (loss, log_probs), (tradeoff, histogram) = figure.subplots(2, 2)
    _draw_loss(loss, curves)
    _draw_log_probs(log_probs, curves)
    tradeoff.set_title('Gold reward against distance from the reference (number: step)')
    frontier.draw(tradeoff, points)
    _draw_histogram(histogram, before, after)
    figure.savefig(path, dpi=120)
  figure.clear()


def _draw_loss(axes: Any, curves: Sequence[Mapping[str, float]]) -> None:
  steps = [row['step'] for row in curves]
  axes.set_title('Training: loss and reward accuracy')
  (loss,) = axes.plot(steps, [row['loss'] for row in curves], color=AFTER, label='loss')
  axes.set_xlabel('step')
  axes.set_ylabel('loss')
  right = axes.twinx()
  right.spines['right'].set_visible(True)
  right.grid(False)
  (accuracy,) = right.plot(steps, [row['accuracy'] for row in curves], color='tab:orange', label='reward accuracy')
  right.set_ylim(0, 1.02)
  right.set_ylabel('reward accuracy')
  axes.legend(handles=[loss, accuracy], loc='lower left')


def _draw_log_probs(axes: Any, curves: Sequence[Mapping[str, float]]) -> None:
  steps = [row['step'] for row in curves]
  axes.set_title('Training: log-probability of the responses')
  axes.plot(steps, [row['logp_chosen'] for row in curves], color='tab:green', label='chosen')
  axes.plot(steps, [row['logp_rejected'] for row in curves], color='tab:red', label='rejected')
  axes.set_xlabel('step')
  axes.set_ylabel('nats a response')
  axes.legend(loc='lower left')


def _draw_histogram(axes: Any, before: np.ndarray, after: np.ndarray) -> None:
  axes.set_title('Gold reward of held-out samples')
  bins = np.linspace(-1.0, 1.0, 21)
  axes.hist(np.ravel(before), bins, alpha=0.6, color=BEFORE, label=f'before, mean {np.mean(before):.2f}')
  axes.hist(np.ravel(after), bins, alpha=0.6, color=AFTER, label=f'after, mean {np.mean(after):.2f}')
  axes.set_xlabel('VADER compound score')
  axes.set_ylabel('samples')
  axes.legend(loc='upper left')
