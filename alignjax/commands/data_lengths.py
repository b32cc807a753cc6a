"""Shows the lengths of prompts and responses as a table, as a histogram on the terminal, and as a plot."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from alignjax.commands import data_tokens
from alignjax.data.tokens import dataset

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BAR = 24  # characters of the longest bar
BINS = 60  # largest number of bins in the plot
SHOWN = 0.99  # quantile of the lengths where the axis of the plot ends; longer ones are in the last bin
DIFFERENCE = 'chosen - rejected'
COLORS = {'prompt': '#5b6770', 'chosen': '#2f7d4f', 'rejected': '#b5443c', 'response': '#3c6ea5'}
BARS = {'edgecolor': 'white', 'linewidth': 0.4}
STYLE = {
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.titlelocation': 'left',
  'axes.titlesize': 11,
  'font.size': 9,
  'grid.alpha': 0.25,
}


def lengths(tokenized: dataset.TokenDataset) -> dict[str, np.ndarray]:
  """Lengths of prompts and of each response in tokens, by name: [n] int64."""
  return {
    'prompt': tokenized.prompt_length,
    **dict(zip(data_tokens.names(tokenized.responses), tokenized.response_length.T, strict=True)),
  }


def table(found: Mapping[str, np.ndarray]) -> list[str]:
  """Formats quantiles and means as lines. For pairs, also how often each side is the longer one."""
  rows = dict(found)
  if 'chosen' in found:
    rows[DIFFERENCE] = found['chosen'] - found['rejected']
  heads = ['min', *(f'{q:.0%}' for q in QUANTILES[1:-1]), 'max', 'mean']
  lines = [f'{"tokens":18}' + ''.join(f'{head:>8}' for head in heads)]
  for name, values in rows.items():
    quantiles = _quantiles(values, *QUANTILES)
    lines.append(f'{name:18}' + ''.join(f'{value:8,}' for value in quantiles) + f'{values.mean():8,.1f}')
  if DIFFERENCE in rows:
    longer, shorter = np.mean(rows[DIFFERENCE] > 0), np.mean(rows[DIFFERENCE] < 0)
    lines.append(f'chosen is longer in {longer:.1%} of the pairs, shorter in {shorter:.1%}')
  return lines


def _quantiles(values: np.ndarray, *parts: float) -> np.ndarray:
  """The quantiles of integer values, which are integers themselves."""
  return np.quantile(values, parts, method='inverted_cdf')


def histogram(found: Mapping[str, np.ndarray]) -> list[str]:
  """Formats a histogram, with one column per name. Each row spans twice as many tokens as the row above."""
  lowest, highest = (int(f(np.concatenate(list(found.values())))).bit_length() - 1 for f in (np.min, np.max))
  counts = {
    name: [np.count_nonzero((values >= 2**i) & (values < 2 ** (i + 1))) for i in range(lowest, highest + 1)]
    for name, values in found.items()
  }
  most = max(map(max, counts.values()))
  width = BAR + 1 + len(str(most)) + 2
  lines = [f'{"tokens":>13}  ' + ''.join(f'{name:{width}}' for name in counts)]
  for row, i in enumerate(range(lowest, highest + 1)):
    cells = (f'{"#" * -(-BAR * column[row] // most)} {column[row]}'.strip() for column in counts.values())
    lines.append(f'{f"{2**i:,} - {2 ** (i + 1) - 1:,}":>13}  ' + ''.join(f'{cell:{width}}' for cell in cells))
  return [line.rstrip() for line in lines]


def require_matplotlib() -> tuple[Any, Any]:
  """The modules matplotlib and matplotlib.figure.

  Raises:
    ValueError: matplotlib is not installed.
  """
  try:
    import matplotlib
    from matplotlib import figure
  except ImportError:
    raise ValueError(
      "--out draws with matplotlib, which is not installed: pip install 'alignjax[demo]', or leave out --out"
    ) from None
  return matplotlib, figure


def draw(path: pathlib.Path, title: str, found: Mapping[str, np.ndarray], max_prompt: int) -> None:
  """Draws histograms of the lengths as a PNG. For pairs, also a histogram of the length difference.

  Args:
    path: the PNG to write.
    title: the title of the plot.
    found: the result of `lengths`.
    max_prompt: limit of prompts in tokens.

  Raises:
    ValueError: matplotlib is not installed.
  """
  matplotlib, figure = require_matplotlib()
  responses = {name: values for name, values in found.items() if name != 'prompt'}
  if responses and 'chosen' not in found:
    responses = {'response': np.concatenate(list(responses.values()))}
  with matplotlib.rc_context(STYLE):
    picture = figure.Figure(figsize=(10, 6.5 if len(responses) == 2 else 3.6), layout='constrained')
    picture.suptitle(title, x=0.01, ha='left', fontsize=10)
    axes = picture.subplots(len(responses) or 1, 2 if responses else 1, squeeze=False)
    _draw_lengths(axes[0, 0], 'prompt', found['prompt'], found['prompt'].max())
    if np.any(cut := found['prompt'] >= max_prompt):
      axes[0, 0].axvline(max_prompt, color='black', linewidth=1, linestyle=':')
      _note(axes[0, 0], max_prompt, f'limit, {np.mean(cut):.1%} of the prompts', ha='right')
    if len(responses) == 2:
      _draw_difference(axes[0, 1], found['chosen'] - found['rejected'])
      axes[1, 1].sharex(axes[1, 0])
      axes[1, 1].sharey(axes[1, 0])
    longest = max((_quantiles(values, SHOWN)[0] for values in responses.values()), default=0)
    for panel, (name, values) in zip(axes.flat[axes.size - len(responses) :], responses.items(), strict=True):
      _draw_lengths(panel, name, values, longest)
    picture.savefig(path, dpi=120)
  picture.clear()


def _draw_lengths(axes: Any, name: str, values: np.ndarray, longest: int) -> None:
  middle, most = _quantiles(values, 0.5, 0.95)
  axes.set_title(f'{name}: median {middle:,}, 95% have at most {most:,}')
  width = _width(longest)
  axes.hist(np.minimum(values, longest), np.arange(0.5, longest + width, width), color=COLORS[name], **BARS)
  axes.axvline(middle, color='black', linewidth=1)
  _note(axes, middle, 'median')
  axes.set_xlim(left=0)
  _label(axes, values.max() > longest)
  axes.set_ylabel('examples' if name != 'response' else 'responses')


def _draw_difference(axes: Any, values: np.ndarray) -> None:
  longer, shorter = np.mean(values > 0), np.mean(values < 0)
  axes.set_title(f'{DIFFERENCE}: mean {values.mean():+.1f}')
  (widest,) = _quantiles(np.abs(values), SHOWN)
  shown = np.clip(values, -widest, widest)
  width = _width(2 * widest + 1)
  bins = widest // width + 1  # bins on each side of the one around 0
  sides = [shown[values < 0], shown[values == 0], shown[values > 0]]
  colors = [COLORS[name] for name in ('rejected', 'prompt', 'chosen')]
  axes.hist(sides, (np.arange(-bins, bins + 2) - 0.5) * width, color=colors, stacked=True, **BARS)
  axes.axvline(0, color='black', linewidth=1)
  for x, ha, text in (
    (0.98, 'right', f'chosen longer\n{longer:.1%}'),
    (0.02, 'left', f'chosen shorter\n{shorter:.1%}'),
  ):
    axes.text(x, 0.95, text, transform=axes.transAxes, ha=ha, va='top')
  _label(axes, np.abs(values).max() > widest)
  axes.set_ylabel('pairs')


def _width(span: int) -> int:
  """Tokens per bin: odd, so that 0 can be the middle of a bin and edges are between lengths."""
  return -(-int(span) // BINS) | 1


def _label(axes: Any, clipped: bool) -> None:
  axes.set_xlabel('tokens' + (' (the outermost bars include everything beyond)' if clipped else ''))


def _note(axes: Any, x: float, text: str, ha: str = 'left') -> None:
  offset = (3, -3) if ha == 'left' else (-3, -3)
  axes.annotate(
    text, (x, 1), offset, ha=ha, va='top', xycoords=axes.get_xaxis_transform(), textcoords='offset points', fontsize=8
  )
