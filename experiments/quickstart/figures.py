"""figure.png of a quickstart: four panels."""

from collections.abc import Callable, Mapping, Sequence
import pathlib
from typing import Any

import numpy as np

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
SMOOTHED = 8  # steps

Panel = Callable[[Any], None]
"""Draws on matplotlib axes."""


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


def save(path: pathlib.Path, title: str, panels: Sequence[Panel]) -> None:
  """Draws four panels.

  Args:
    path: the PNG file.
    title: the title of the figure.
    panels: the panels, row by row.
  """
  matplotlib, figures = drawing()
  with matplotlib.rc_context(STYLE):
    figure = figures.Figure(figsize=(10, 7), layout='constrained')
    figure.suptitle(title)
    for panel, axes in zip(panels, figure.subplots(2, 2).flat, strict=True):
      panel(axes)
    figure.savefig(path, dpi=120)
  figure.clear()


def tradeoff(points: Sequence[frontier.Point]) -> Panel:
  """Gold reward against the distance from the reference, for each evaluation."""

  def draw(axes: Any) -> None:
    axes.set_title('Gold reward against distance from the reference (number: step)')
    frontier.draw(axes, points)

  return draw


def histogram(before: np.ndarray, after: np.ndarray) -> Panel:
  """Gold rewards of held-out samples of the reference and of the aligned model, [B, N] each."""

  def draw(axes: Any) -> None:
    axes.set_title('Gold reward of held-out samples')
    bins = np.linspace(-1.0, 1.0, 21)
    axes.hist(np.ravel(before), bins, alpha=0.6, color=BEFORE, label=f'before, mean {np.mean(before):.2f}')
    axes.hist(np.ravel(after), bins, alpha=0.6, color=AFTER, label=f'after, mean {np.mean(after):.2f}')
    axes.set_xlabel('VADER compound score')
    axes.set_ylabel('samples')
    axes.legend(loc='upper left')

  return draw


def loss(records: Sequence[Mapping[str, float]]) -> Panel:
  """Loss and reward accuracy by step."""

  def draw(axes: Any) -> None:
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

  return draw


def sides(records: Sequence[Mapping[str, float]]) -> Panel:
  """Implicit rewards of both responses; log-probabilities if the objective defines no reward."""
  name, what = ('reward', 'implicit reward') if 'reward_chosen' in records[0] else ('logp', 'log-probability, nats')

  def draw(axes: Any) -> None:
    axes.set_title(f'Training: {what} of the responses')
    axes.set_xlabel('step')
    axes.set_ylabel(what)
    for side, color in (('chosen', 'tab:green'), ('rejected', 'tab:red')):
      _curve(axes, records, f'{name}_{side}', color, side)
    axes.legend(loc='lower left')

  return draw


def reward_of_rounds(records: Sequence[Mapping[str, float]]) -> Panel:
  """Gold reward of the responses of each round, with a band of one standard error."""

  def draw(axes: Any) -> None:
    axes.set_title('Training: gold reward of each round ± standard error')
    axes.set_xlabel('round')
    axes.set_ylabel('gold reward')
    rounds, mean, error = (_column(records, f'rollout/{name}') for name in ('round', 'reward', 'reward_error'))
    axes.fill_between(rounds, mean - error, mean + error, color=AFTER, alpha=0.2, linewidth=0)
    axes.plot(rounds, mean, color=AFTER, marker='.')

  return draw


def kl_of_rounds(records: Sequence[Mapping[str, float]]) -> Panel:
  """KL from the reference of each round, by the distributions of its tokens and by the tokens drawn."""

  def draw(axes: Any) -> None:
    axes.set_title('Training: KL(policy ‖ reference) of each round')
    axes.set_xlabel('round')
    axes.set_ylabel('nats per response')
    rounds = _column(records, 'rollout/round')
    axes.plot(rounds, _column(records, 'rollout/kl'), color=BEFORE, label='log-ratio of the tokens drawn (k1)')
    axes.plot(rounds, _column(records, 'rollout/kl_exact'), color=AFTER, marker='.', label='KL of each token, summed')
    axes.legend(loc='lower right')

  return draw


def entropy_of_rounds(records: Sequence[Mapping[str, float]]) -> Panel:
  """Entropy per token of each round, and the share of responses that are finished."""

  def draw(axes: Any) -> None:
    axes.set_title('Training: entropy and finished responses of each round')
    axes.set_xlabel('round')
    axes.set_ylabel('entropy, nats per token')
    rounds, entropy, length = (_column(records, f'rollout/{name}') for name in ('round', 'entropy', 'length'))
    lines = axes.plot(rounds, entropy / length, color=AFTER, marker='.', label='entropy')
    right = axes.twinx()
    right.spines['right'].set_visible(True)
    right.grid(False)
    right.set_ylim(0, 1.02)
    right.set_ylabel('share of finished responses')
    lines += right.plot(rounds, _column(records, 'rollout/finished'), color='tab:orange', label='finished')
    axes.legend(handles=lines, loc='upper right')

  return draw


def _column(records: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
  return np.array([record[name] for record in records])


def _curve(axes: Any, records: Sequence[Mapping[str, float]], name: str, color: str, label: str) -> Any:
  """Draws a metric in a pale line and its running mean in a strong one; returns the latter."""
  steps, values = _column(records, 'step'), _column(records, name)
  smooth = [np.mean(values[max(0, i + 1 - SMOOTHED) : i + 1]) for i in range(len(values))]
  axes.plot(steps, values, color=color, alpha=0.25)
  return axes.plot(steps, smooth, color=color, label=f'{label} (mean of {SMOOTHED} steps)')[0]
