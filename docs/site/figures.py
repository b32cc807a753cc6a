"""The figures of the site, drawn from the code: losses and gradients of each family, risk measures, nested values."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import io
import pathlib

import jax.numpy as jnp
import matplotlib as mpl
from matplotlib import figure as figures
import numpy as np

from alignjax import objectives, risk, stats
from docs.site import staging, sweeps

INK = {'light': '#24292f', 'dark': '#d0d7de'}  # text and axes
LIMITS = {'loss': (-20.0, 40.0), 'pull': (-3.0, 5.0)}  # shown of a relative loss, and of its gradient
COLORS = ('#3b82f6', '#f97316', '#10b981', '#ef4444', '#a855f7', '#14b8a6', '#eab308', '#ec4899')
RELATIVE = (
  'To compare shapes, each loss is shifted to 0 at margin 0 and divided by its slope there, at default arguments. '
  'Solid lines pull the chosen response up, dashed lines push the rejected one down.'
)
_MARGIN = sweeps.Sweep('margin h, nats', np.linspace(-30, 30, sweeps.POINTS), sweeps.margin)
_COUPLED = f'The 201 margins of the axis are the batch. {RELATIVE}'


@dataclasses.dataclass(frozen=True)
class Family:
  """How the figure of a family is drawn.

  Attributes:
    sweep: the axis.
    caption: a sentence below the figure.
    shown: objectives by label; empty for every objective of the family at default arguments.
    other: a second sweep over the same axis, drawn with dashed lines.
  """

  sweep: sweeps.Sweep = _MARGIN
  caption: str = RELATIVE
  shown: Mapping[str, objectives.Objective] = dataclasses.field(default_factory=dict)
  other: sweeps.Sweep | None = None


def _axis(label: str, low: float, high: float, build: Callable, **options: object) -> sweeps.Sweep:
  return sweeps.Sweep(label, np.linspace(low, high, sweeps.POINTS), build, **options)


def _families() -> Mapping[str, Family]:
  dpo = objectives.dpo()
  labelled = [
    _axis('log-ratio, nats', -30, 30, sweeps.labelled(good), responses=('response',), relative=False)
    for good in (True, False)
  ]
  ratios = [
    _axis(
      'ratio of a token’s probability to when it was drawn',
      0.503,
      1.497,
      sweeps.ratio(sign),
      responses=('response',),
      relative=False,
    )
    for sign in (1.0, -1.0)
  ]
  return {
    'adaptive': Family(
      caption=f'{_COUPLED} A target margin that carries no gradient can raise a loss along the axis although '
      'every pull lowers it.'
    ),
    'batchwise': Family(caption=f'{_COUPLED} `aot_unpaired` and `dr_dpo` give every row the same loss.'),
    'lengths': Family(
      _axis('margin h, nats', -30, 30, sweeps.unequal_lengths),
      f'The chosen response has 10 tokens, the rejected one 5. {RELATIVE}',
    ),
    'reference_free': Family(
      _axis('difference of the log-probabilities, nats', -15, 15, sweeps.margin),
      f'Both responses have 10 tokens, of log-probability -1 each in the middle of the axis. {RELATIVE}',
    ),
    'clipped': Family(
      ratios[0],
      'Solid: a response with advantage 1; dashed: with advantage -1. Beyond the clip, the gradient is 0.',
      other=ratios[1],
    ),
    'likelihood': Family(
      _axis('mean log-probability of a token, nats', -4, 0, sweeps.likelihood, responses=('response',), relative=False),
      'Every token of the response is pulled up with the same strength.',
    ),
    'reward_modelling': Family(
      _axis('difference of the rewards', -4, 4, sweeps.rewards, of=stats.reward),
      'The first three losses agree for pairs. ' + RELATIVE.replace('margin 0', 'equal rewards'),
    ),
    'token_level': Family(
      _axis('shift of the logits of the rejected tokens', -3, 3, sweeps.drift((0.0, 1.0))),
      'Random next-token distributions over 8 tokens; only those of the rejected response drift. Both ways of drifting '
      f'away from the reference count against it. {RELATIVE}',
      shown={'dpo()': dpo, **_members('token_level')},
    ),
    'unpaired': Family(
      labelled[0],
      'Solid: a desirable response; dashed: an undesirable one. The 201 log-ratios of the axis are the batch.',
      other=labelled[1],
    ),
    'weighting': Family(
      _axis('shift of the logits of all tokens of both responses', -1, 1, sweeps.drift((1.0, 1.0))),
      'DPO at margin 0, within each weight, as both responses become more or less likely than under the reference. The '
      'pull is divided by that of DPO: it is the weight.',
      shown={
        'dpo()': dpo,
        'importance_weighted(dpo())': objectives.importance_weighted(dpo),
        'wpo_weighted(dpo())': objectives.wpo_weighted(dpo),
        'tis(dpo())': objectives.tis(dpo),
      },
    ),
  }


def _members(name: str) -> Mapping[str, objectives.Objective]:
  builds = [build for build in objectives.OBJECTIVES.values() if build.__module__ == f'alignjax.objectives.{name}']
  return {build.__name__: build() for build in builds}


def _family(canvas: figures.Figure, name: str) -> str:
  """Draws the loss and the gradient of each objective of a family. Returns the caption."""
  family = _families().get(name, Family())
  left, right = canvas.subplots(1, 2)
  for color, (label, objective) in zip(COLORS, (family.shown or _members(name)).items(), strict=False):
    curve = family.sweep.curve(objective)
    left.plot(family.sweep.x, curve.loss, color=color, label=label)
    for i, sign in enumerate((1.0, -1.0)[: curve.pull.shape[1]]):
      style = '-' if i == 0 else '--'
      right.plot(family.sweep.x, sign * curve.pull[:, i], style, color=color)
    if family.other:
      second = family.other.curve(objective)
      left.plot(family.sweep.x, second.loss, '--', color=color)
      right.plot(family.sweep.x, second.pull[:, 0], '--', color=color)
  if family.sweep.relative:
    for axes, (low, high) in zip((left, right), LIMITS.values(), strict=True):
      bottom, top = axes.get_ylim()
      axes.set_ylim(max(bottom, low), min(top, high))
  if name == 'likelihood':
    right.set_ylim(0.0, 0.2)  # a constant
  left.set(xlabel=family.sweep.label, title='loss')
  right.set(xlabel=family.sweep.label, title='pull: minus the gradient, per token')
  canvas.legend(loc='outside lower center', ncols=4)
  return family.caption


def _on_policy(canvas: figures.Figure) -> str:
  """Draws the pull on two samples, by their scores and by their log-ratios; the loss is minus the mean return."""
  shown = {'rlhf(beta=0.05)': objectives.rlhf(), 'reverse_kl(gamma=0.01, beta=0.05)': objectives.reverse_kl()}
  panels = (
    _axis('score of the first sample minus that of the second', -2, 2, sweeps.scores, relative=False),
    _axis('log-ratio of the first sample, at equal scores, nats', -30, 30, sweeps.drifted, relative=False),
  )
  for axes, sweep in zip(canvas.subplots(1, 2), panels, strict=True):
    for color, (label, objective) in zip(COLORS, shown.items(), strict=False):
      pull = sweep.curve(objective).pull
      axes.plot(sweep.x, pull[:, 0], color=color, label=label if sweep is panels[0] else None)
      axes.plot(sweep.x, pull[:, 1], '--', color=color)
    axes.set(xlabel=sweep.label, title='pull: minus the gradient, per token')
  canvas.legend(loc='outside lower center', ncols=2)
  return (
    'Solid: the first of two samples; dashed: the second. The sample with the higher score is pulled up and the other '
    'one down. At equal scores, one that is already more likely than under the reference is pushed down.'
  )


def _distillation(canvas: figures.Figure) -> str:
  """Draws both divergences of two tokens, and their gradients in the logit of the first."""
  left, right = canvas.subplots(1, 2)
  teacher, policy = 0.3, np.linspace(0.01, 0.99, sweeps.POINTS)
  for color, direction in zip(COLORS, ('reverse', 'forward'), strict=False):
    loss, pull = sweeps.two_tokens(objectives.distil(divergence=direction), policy, teacher)
    left.plot(policy, loss, color=color, label=f"distil(divergence='{direction}')")
    right.plot(policy, pull, color=color)
  for axes, title in ((left, 'loss, nats'), (right, 'pull on the logit of the token')):
    axes.axvline(teacher, color='0.5', linewidth=0.8)
    axes.set(xlabel='probability of a token under the policy', title=title)
  canvas.legend(loc='outside lower center', ncols=2)
  return 'Two tokens, of which the teacher gives the first one probability 0.3, the grey line.'


def _risk(canvas: figures.Figure) -> str:
  """Draws the measures of a normal variable against their parameter, and the weights that they give to its values."""
  left, right = canvas.subplots(1, 2)
  values = jnp.linspace(-3.5, 3.5, 281)
  log_probs = -0.5 * values**2 - jnp.log(jnp.sum(jnp.exp(-0.5 * values**2)))
  shown = {
    'expectation()': risk.expectation(),
    'cvar(0.5)': risk.cvar(0.5),
    'cvar(0.1)': risk.cvar(0.1),
    'entropic(1.0)': risk.entropic(1.0),
    'mean_semideviation(1.0)': risk.mean_semideviation(1.0),
  }
  levels, kappas = np.linspace(0.01, 1, 40), np.linspace(0, 3, 25)
  left.plot(levels, [float(risk.cvar(float(level))(values, log_probs)) for level in levels], color=COLORS[1])
  left.plot(kappas, [float(risk.entropic(float(kappa))(values, log_probs)) for kappa in kappas], color=COLORS[3])
  left.annotate('cvar(level)', (0.25, 1.35), color=COLORS[1])
  left.annotate('entropic(kappa)', (1.9, 0.75), color=COLORS[3])
  left.set(xlabel='level or kappa', title='value of a standard normal cost')
  for color, (label, measure) in zip(COLORS, shown.items(), strict=False):
    weights = sweeps.weights(measure, values, log_probs) / np.exp(np.asarray(log_probs))
    right.plot(values, weights, color=color, label=label)
  right.set(xlabel='value of the cost', title='gradient in the value, divided by its probability', ylim=(-0.2, 11))
  canvas.legend(loc='outside lower center', ncols=3)
  return 'A measure weighs the values of a cost: the mean weighs all alike, a CVaR only its worst share.'


def _nested(canvas: figures.Figure) -> str:
  """Draws the nested and the static CVaR of a sum of independent costs against the number of steps."""
  axes = canvas.subplots(1, 1)
  probs = np.array([0.5, 0.3, 0.2])
  costs = np.array([0.0, 1.0, 3.0])
  steps = np.arange(1, 13)
  for color, level in zip(COLORS, (1.0, 0.5, 0.1), strict=False):
    one = float(risk.cvar(level)(jnp.asarray(costs, jnp.float32), jnp.log(jnp.asarray(probs, jnp.float32))))
    static = []
    total, mass = np.zeros(1), np.ones(1)
    for _ in steps:
      total, mass = (total[:, None] + costs).ravel(), (mass[:, None] * probs).ravel()
      total, where = np.unique(total, return_inverse=True)
      mass = np.bincount(where, weights=mass)
      static.append(float(risk.cvar(level)(jnp.asarray(total, jnp.float32), jnp.log(jnp.asarray(mass, jnp.float32)))))
    axes.plot(steps, one * steps, 'o-', color=color, markersize=3, label=f'nested, cvar({level:g})')
    axes.plot(steps, static, '--', color=color, label=f'static, cvar({level:g})')
  axes.set(xlabel='tokens of a response', ylabel='value', title='risk of a sum of independent costs')
  canvas.legend(loc='outside right center')
  return (
    'Each token costs 0, 1 or 3 with probability 0.5, 0.3 and 0.2. The nested value applies the measure at every '
    'token, so bad tokens do not average out; for the mean, level 1, the two agree.'
  )


def drawings() -> Mapping[str, Callable[[figures.Figure], str]]:
  """All figures by name: functions that draw on a figure and return its caption."""
  families = [path.stem for path in sorted((staging.ROOT / 'docs' / 'objectives').glob('*.md'))]
  own = {'distillation': _distillation, 'on_policy': _on_policy, 'risk': _risk, 'nested': _nested}
  return {**{name: functools.partial(_family, name=name) for name in families}, **own}


def _style(name: str) -> Mapping[str, object]:
  """The style of a figure; the same figure is the same text in every build."""
  inked = ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color', 'grid.color')
  return {
    **dict.fromkeys(inked, INK['light']),
    'axes.spines.top': False,
    'axes.spines.right': False,
    'font.size': 9,
    'legend.frameon': False,
    'axes.grid': True,
    'grid.alpha': 0.15,
    'lines.linewidth': 1.4,
    'axes.titlesize': 9,
    'svg.hashsalt': name,
    'svg.fonttype': 'path',
  }


def draw(folder: pathlib.Path, names: Sequence[str] = ()) -> None:
  """Writes the figures as SVG, for light and for dark pages, and their captions.

  Args:
    folder: where to write.
    names: which of them; empty for all.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for name, drawing in drawings().items():
    if names and name not in names:
      continue
    with mpl.rc_context(_style(name)):
      canvas = figures.Figure(figsize=(8, 3.4), layout='constrained')
      caption = drawing(canvas)
      image = io.StringIO()
      canvas.savefig(image, format='svg', transparent=True, metadata={'Date': None})
    for mode, ink in INK.items():
      staging.write(folder / f'{name}-{mode}.svg', image.getvalue().replace(INK['light'], ink))
    staging.write(folder / f'{name}.txt', f'*{caption}*\n')
