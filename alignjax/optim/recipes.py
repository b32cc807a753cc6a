"""One expression names an optimizer, on the command line and in a config.

  adamw(1e-6)        chain(adamw(1e-6), online_dare(reserve=0.1, alpha=1e-6), weight_decay(0.01))

A chain has one base optimizer, whose learning rate is the peak of the run's schedule. What may stand around it, in this
order: `child_tuning` before it; after it, online merges, which merge the finished update with the reference delta; then
`weight_decay`; and last a `moving_average`. Any other order is refused, with the reason. The clip of the gradient is a
setting of its own, `gradient_clip`, and comes before everything.
"""

from collections.abc import Callable, Sequence
import dataclasses
import enum
import functools
import inspect
import itertools
from typing import Any

import jax
import optax
from optax import contrib

from alignjax import expressions, registry
from alignjax.optim import baselines, online_merging, schedules
from alignjax.types import Params


class Place(enum.IntEnum):
  """Where a link stands in a chain. From link to link it goes up."""

  GRADIENT = enum.auto()
  BASE = enum.auto()
  MERGE = enum.auto()
  DECAY = enum.auto()
  AVERAGE = enum.auto()
  CHAIN = enum.auto()  # a whole one, which is no link


@dataclasses.dataclass(frozen=True)
class Recipe:
  """An optimizer that awaits its schedule, or a link of one.

  Attributes:
    name: of its factory.
    place: where it may stand.
    build: makes it from the learning rate by updates done.
    learning_rate: peak of that schedule; None where the link has none of its own.
    decays: whether weights decay within the base optimizer.
    needs_delta: whether `update` must be given `reference_delta`.
    averages: whether its state holds an average of the parameters, for `alignjax.optim.averaged`.
  """

  name: str
  place: Place
  build: Callable[[schedules.Schedule], optax.GradientTransformation]
  learning_rate: float | None = None
  decays: bool = False
  needs_delta: bool = False
  averages: bool = False


BASES: dict[str, Callable[..., Recipe]] = {}
"""Every optimizer by the name that expressions use; `factory` adds to it."""


def _base(build: Callable[..., Recipe]) -> Callable[..., Recipe]:
  """Registers a base optimizer of this module."""
  return registry.add(BASES, build, 'optimizers')


def factory[**P](
  build: Callable[P, optax.GradientTransformation],
) -> Callable[P, optax.GradientTransformation]:
  """Registers a function that builds an optimizer of optax, so that expressions know it by its name.

  @factory
  def clipped_sgd(learning_rate, largest=1.0):
    return optax.chain(optax.clip(largest), optax.sgd(learning_rate))

  Args:
    build: a function of a learning rate, which it gets as a number or as a function of the updates done, as optax's own
      optimizers do, and of other hyper-parameters.

  Returns:
    The function as it was.

  Raises:
    ValueError: it has no argument `learning_rate`, or another optimizer is registered under the name.
  """
  name, signature = build.__name__, inspect.signature(build)
  if 'learning_rate' not in signature.parameters:
    raise ValueError(f'{name}: needs an argument learning_rate, the peak of the schedule')

  @functools.wraps(build)
  def make(*args: P.args, **kwargs: P.kwargs) -> Recipe:
    bound = signature.bind(*args, **kwargs)
    rate = bound.arguments['learning_rate']
    _positive(learning_rate=rate)

    def transform(learning_rate: float | schedules.Schedule) -> optax.GradientTransformation:
      bound.arguments['learning_rate'] = learning_rate
      made = build(*bound.args, **bound.kwargs)
      if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f'{name}: must return an optax.GradientTransformation, not {type(made).__name__}')
      return made

    transform(rate)  # refuses unfit hyper-parameters now, where the expression can be shown
    return Recipe(name, Place.BASE, transform, float(rate))

  if name in LINKS or name == 'chain':
    raise ValueError(f'two optimizers are called {name}: one in {__name__}, one in {build.__module__}. Rename one')
  registry.add(BASES, make, 'optimizers')
  return build


@_base
def adamw(
  learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0
) -> Recipe:
  """Adam with decoupled weight decay.

  theta <- theta - lr(t) (m^ / (sqrt(v^) + epsilon) + weight_decay theta)

  Args:
    learning_rate: peak of the schedule, > 0.
    beta1, beta2: decay rates of the means of gradients, m, and of squared gradients, v, in [0, 1).
    epsilon: > 0.
    weight_decay: >= 0; norm scales and biases do not decay. Before a merge it must be 0: chain `weight_decay` after it.

  References:
    Loshchilov, Hutter 2017, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101.
  """
  _positive(learning_rate=learning_rate, epsilon=epsilon)
  _rates(beta1=beta1, beta2=beta2)
  _require(_is_number(weight_decay) and weight_decay >= 0, 'weight_decay', weight_decay, 'at least 0')

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, beta1, beta2, epsilon, weight_decay=weight_decay, mask=schedules.decays)

  return Recipe('adamw', Place.BASE, build, learning_rate, decays=weight_decay > 0)


@_base
def adafactor(learning_rate: float, decay: float = 0.8, clip: float = 1.0) -> Recipe:
  """Adafactor: second moments of matrices from the means of their rows and columns, and no first moment.

  u = g / sqrt(v),   theta <- theta - lr(t) u / max(1, rms(u) / clip)

  Steps are absolute, as Adam's, not relative to the size of the weights. Matrices with a side below 128 keep v whole.
  Layers of one kind are stacked: each has its own v, and rms(u) is taken over all of them.

  Args:
    learning_rate: peak of the schedule, > 0.
    decay: v's mean has the decay rate 1 - t^-decay at step t, in (0, 1).
    clip: > 0.

  References:
    Shazeer, Stern 2018, Adafactor, https://arxiv.org/abs/1804.04235.
  """
  _positive(learning_rate=learning_rate, decay=decay, clip=clip)
  _rates(decay=decay)

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return optax.adafactor(schedule, decay_rate=decay, multiply_by_parameter_scale=False, clipping_threshold=clip)

  return Recipe('adafactor', Place.BASE, build, learning_rate)


@_base
def lion(learning_rate: float, beta1: float = 0.9, beta2: float = 0.99) -> Recipe:
  """Lion: the sign of an interpolated momentum.

  theta <- theta - lr(t) sign(beta1 m + (1 - beta1) g),   m <- beta2 m + (1 - beta2) g

  Args:
    learning_rate: peak of the schedule, > 0; a tenth of Adam's or less.
    beta1, beta2: in [0, 1).

  References:
    Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, https://arxiv.org/abs/2302.06675.
  """
  _positive(learning_rate=learning_rate)
  _rates(beta1=beta1, beta2=beta2)
  return Recipe(
    'lion', Place.BASE, lambda schedule: optax.lion(schedule, beta1, beta2, weight_decay=0.0), learning_rate
  )


@_base
def muon(learning_rate: float, beta: float = 0.95, rms: float = 0.2) -> Recipe:
  """Muon: the momentum of each matrix, made orthogonal by Newton-Schulz iterations.

  theta <- theta - lr(t) rms sqrt(max(rows, columns)) orthogonal(m)

  Each layer's matrices are matrices of their own, and so are the factors of adapters. Embeddings, the output head and
  norm scales have no part in it: Adam with Nesterov momentum takes them, with the same learning rate.

  Args:
    learning_rate: peak of the schedule, > 0.
    beta: decay rate of the momentum, in [0, 1).
    rms: root mean square of the update of a matrix of full rank, in learning rates, > 0. At 0.2 it is as large as
      Adam's usually is, so that Adam's learning rates fit.

  References:
    Jordan 2024, Muon, https://kellerjordan.github.io/posts/muon.
    Liu et al. 2025, Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982, for rms.
  """
  _positive(learning_rate=learning_rate, rms=rms)
  _rates(beta=beta)

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return contrib.muon(schedule, beta=beta, consistent_rms=rms, muon_weight_dimension_numbers=_matrices)

  return Recipe('muon', Place.BASE, build, learning_rate)


@_base
def sgd(learning_rate: float, momentum: float = 0.0) -> Recipe:
  """Gradient descent.

  m <- momentum m + g,   theta <- theta - lr(t) m

  Args:
    learning_rate: peak of the schedule, > 0.
    momentum: in [0, 1).
  """
  _positive(learning_rate=learning_rate)
  _rates(momentum=momentum)
  return Recipe('sgd', Place.BASE, lambda schedule: optax.sgd(schedule, momentum or None), learning_rate)


def weight_decay(rate: float) -> Recipe:
  """Decoupled weight decay that no merge touches.

  theta <- theta + u - lr(t) rate theta,   u = the update so far

  Args:
    rate: >= 0; norm scales and biases do not decay.
  """
  _require(_is_number(rate) and rate >= 0, 'rate', rate, 'at least 0')

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return optax.add_decayed_weights(lambda count: -rate * schedule(count), schedules.decays)

  return Recipe('weight_decay', Place.DECAY, build)


def chain(*links: Recipe) -> Recipe:
  """One after the other: what a link makes of the update goes to the next.

  Raises:
    ValueError: unless exactly one link is a base optimizer, with a learning rate, and each may stand where it stands.
  """
  _check_links(links)
  return Recipe(
    name='chain',
    place=Place.CHAIN,
    build=lambda schedule: optax.chain(*(link.build(schedule) for link in links)),
    learning_rate=next(link.learning_rate for link in links if link.place is Place.BASE),
    needs_delta=any(link.needs_delta for link in links),
    averages=any(link.averages for link in links),
  )


def _check_links(links: Sequence[Any]) -> None:
  for link in links:
    if not isinstance(link, Recipe):
      raise ValueError(f'chain: {link!r} is no link of an optimizer')
    if link.place is Place.CHAIN:
      raise ValueError('chain: a chain is no link of another; write its links in their place')
  bases = [link.name for link in links if link.place is Place.BASE]
  if not bases:
    raise ValueError(f'no link has a learning rate: chain one of {", ".join(sorted(BASES))}')
  if len(bases) > 1:
    raise ValueError(f'a chain has one learning rate, and {" and ".join(bases)} have one each: leave one of them')
  for early, late in itertools.pairwise(links):
    if late.place is Place.GRADIENT and early.place > late.place:
      raise ValueError(f'{late.name} must stand before {early.name}: it thins out the gradient, not the update')
    if early.place > late.place:
      raise ValueError(f'{early.name} must stand after {late.name}: {_REASONS[early.place]}')
    if early.place is Place.AVERAGE:
      raise ValueError('a chain has one moving_average at most')
  merges = [link.name for link in links if link.place is Place.MERGE]
  decaying = [link.name for link in links if link.decays]
  if merges and decaying:
    raise ValueError(
      f'{merges[0]} would merge the weight decay of {decaying[0]} too: leave it out there, and chain '
      f'weight_decay(...) after {merges[0]}'
    )


_REASONS = {
  Place.MERGE: 'it merges finished updates',
  Place.DECAY: 'the decay is added to a finished update, and not to be merged',
  Place.AVERAGE: 'it averages the parameters that the whole update leads to',
}


def _link(factory: Callable[..., optax.GradientTransformation]) -> Callable[..., Recipe]:
  """A factory of `alignjax.optim` with its own signature, for expressions."""
  name = factory.__name__
  place = {'child_tuning': Place.GRADIENT, 'moving_average': Place.AVERAGE}.get(name, Place.MERGE)

  @functools.wraps(factory)
  def make(*args: Any, **options: Any) -> Recipe:
    transform = factory(*args, **options)
    bound = inspect.signature(factory).bind(*args, **options)
    bound.apply_defaults()
    return Recipe(
      name,
      place,
      lambda schedule: transform,
      needs_delta=place is Place.MERGE,
      averages=bound.arguments.get('history') == 'average',
    )

  return make


TRANSFORMS = {
  build.__name__: build
  for build in (
    baselines.child_tuning,
    baselines.moving_average,
    online_merging.online_dare,
    online_merging.online_merge,
    online_merging.online_ties,
  )
}
"""Every transform of this package by the name that expressions use."""
LINKS = {'weight_decay': weight_decay} | {name: _link(build) for name, build in TRANSFORMS.items()}


def parse_optimizer(text: str) -> Recipe:
  """Reads an optimizer from its expression, such as `'chain(adamw(1e-6), online_dare(reserve=0.1, alpha=1e-6))'`.

  Returns:
    A recipe with a learning rate.

  Raises:
    ExpressionError: for anything else. The message shows where, says why and lists the known names.
  """
  known = {'optimizers': BASES | {'chain': chain}, 'links of a chain': LINKS}
  recipe = expressions.parse(text, Recipe, 'an optimizer', known)
  try:
    return recipe if recipe.place is Place.CHAIN else chain(recipe)
  except ValueError as error:
    raise expressions.ExpressionError(f'{error}\n  {text}') from None


def build_optimizer(
  recipe: Recipe, schedule: schedules.Schedule, gradient_clip: float = 0.0
) -> optax.GradientTransformation:
  """The optimizer of a run.

  Args:
    recipe: with a learning rate.
    schedule: learning rate by updates done, with the recipe's as its peak.
    gradient_clip: the largest global norm of a gradient, before everything else; 0 for no clip.
  """
  clip = optax.clip_by_global_norm(gradient_clip) if gradient_clip else optax.identity()
  return optax.chain(clip, recipe.build(schedule))


def _matrices(params: Params) -> Any:
  """The axes that muon takes for rows and columns; None where a parameter is not one of its matrices."""

  def axes(path: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
    del leaf
    inner = path[-1].key in ('kernel', 'lora_a', 'lora_b') and path[0].key != 'unembed'
    return contrib.MuonDimensionNumbers(-2, -1) if inner else None

  return jax.tree_util.tree_map_with_path(axes, params)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(**numbers: Any) -> None:
  for name, value in numbers.items():
    _require(_is_number(value) and value > 0, name, value, 'a positive number')


def _rates(**numbers: Any) -> None:
  for name, value in numbers.items():
    _require(_is_number(value) and 0 <= value < 1, name, value, 'in [0, 1)')


def _require(condition: bool, name: str, value: Any, wanted: str) -> None:
  if not condition:
    raise ValueError(f'{name}={value!r} must be {wanted}')
