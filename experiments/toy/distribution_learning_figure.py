"""The figure of `distribution_learning`: the distribution learnt in one context, and the speed of learning."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib import axes as matplotlib_axes
from matplotlib import figure as matplotlib_figure
from matplotlib import ticker
import numpy as np

STYLE = {
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlesize': 11,
  'axes.titlelocation': 'left',
  'font.size': 9,
  'legend.frameon': False,
}
COLOR = {'PMLE': 'tab:blue', 'PD': 'tab:cyan', 'RKL': 'tab:green', 'DPO': 'tab:red', 'RLHF': 'tab:orange'}
LABEL = {
  'PMLE': 'pmle',
  'PD': 'preference_distillation (equals pmle here)',
  'RKL': 'reverse_kl, best beta',
  'DPO': 'dpo, beta = gamma',
  'RLHF': 'rlhf, best beta',
}
MARKER = {'PMLE': 'o', 'PD': 'x', 'RKL': 's', 'DPO': '^', 'RLHF': 'D'}


def draw(
  context: Mapping[str, np.ndarray], sizes: Sequence[int], errors: Mapping[str, np.ndarray], plateau: float
) -> matplotlib_figure.Figure:
  """Draws both panels.

  Args:
    context: probabilities of the actions in one context, by name: 'pi*', 'reference', 'pmle' and 'dpo'.
    sizes: numbers of labelled pairs.
    errors: forward KL to pi* for each size, in nats, by method.
    plateau: the error that dpo converges to, in nats.
  """
  with matplotlib.rc_context(STYLE):
    figure = matplotlib_figure.Figure(figsize=(11, 4.4), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _draw_context(left, context)
    _draw_errors(right, sizes, errors, plateau)
  return figure


def _draw_context(axes: matplotlib_axes.Axes, context: Mapping[str, np.ndarray]) -> None:
  actions = np.arange(len(context['pi*']))
  axes.bar(actions, context['pi*'], width=0.75, color='0.85', label='target pi*')
  axes.plot(actions, context['pmle'], 'o', color=COLOR['PMLE'], label='pmle')
  axes.plot(actions, context['dpo'], '^', color=COLOR['DPO'], label='dpo')
  axes.plot(actions, context['reference'], '_', color='0.4', markersize=14, label='reference')
  lowest, highest = min(x.min() for x in context.values()), max(x.max() for x in context.values())
  axes.set_ylim(0.9 * lowest, highest + 0.3 * (highest - 0.9 * lowest))  # room for the legend
  axes.set_xticks(actions)
  axes.set_xlabel('action (of one context)')
  axes.set_ylabel('probability (axis does not start at 0)')
  axes.set_title('Exact preferences: dpo learns reference × pi*')
  axes.legend(ncols=2, loc='upper left')


def _draw_errors(
  axes: matplotlib_axes.Axes, sizes: Sequence[int], errors: Mapping[str, np.ndarray], plateau: float
) -> None:
  sizes = np.asarray(sizes)
  for name, error in errors.items():
    line = ':' if name == 'PD' else '-'
    axes.plot(sizes, error, line, marker=MARKER[name], markersize=5, color=COLOR[name], label=LABEL[name])
  axes.plot(sizes, 1.5 * errors['PMLE'][0] * sizes[0] / sizes, '--', color='0.6', linewidth=1, label='slope of 1/n')
  axes.axhline(plateau, color=COLOR['DPO'], linestyle='--', linewidth=1, label='KL(pi* || reference × pi*, normalised)')
  axes.set_xscale('log', base=2)
  axes.set_yscale('log')
  axes.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axes.grid(alpha=0.25)
  axes.set_xlabel('labelled pairs over all contexts')
  axes.set_ylabel('forward KL to pi*, nats')
  axes.set_title('Finite samples: convergence to the target, or a plateau')
  axes.legend(fontsize=8, loc='lower left')
