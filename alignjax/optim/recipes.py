"""Optimizers as expressions, on the command line and in configs.

  adamw(1e-6)        chain(adamw(1e-6), online_dare(reserve=0.1, alpha=1e-6), weight_decay(0.01))

A chain has one base optimizer, whose learning rate is the peak of the run's schedule. `child_tuning` comes before the
base; after it come, in this order, online merges (which merge the update with the reference delta), `weight_decay`, and
a `moving_average`. Any other order raises an error that gives the reason. Gradient clipping is a separate setting,
`gradient_clip`, and comes before everything else.
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
  """The position of a link in a chain. Links must be in ascending order."""

  GRADIENT = enum.auto()
  BASE = enum.auto()
  MERGE = enum.auto()
  DECAY = enum.auto()
  AVERAGE = enum.auto()
  CHAIN = enum.auto()  # a complete chain, not a link


@dataclasses.dataclass(frozen=True)
class Recipe:
  """An optimizer, or a link of a chain, that is built once the schedule is known.

  Attributes:
    name: the name of its factory.
    place: its position in a chain.
    build: builds the transformation from the schedule: number of updates -> learning rate.
    learning_rate: the peak of the schedule; None for links without a learning rate.
    decays: whether the base optimizer itself applies weight decay.
    needs_delta: whether `update` requires `reference_delta`.
    averages: whether the state holds an average of the parameters for `alignjax.optim.averaged`.
  """

  name: str
  place: Place
  build: Callable[[schedules.Schedule], optax.GradientTransformation]
  learning_rate: float | None = None
  decays: bool = False
  needs_delta: bool = False
  averages: bool = False


BASES: dict[str, Callable[..., Recipe]] = {}
"""All base optimizers, by their names in expressions; `factory` adds entries."""


def _base(build: Callable[..., Recipe]) -> Callable[..., Recipe]:
  """Registers a base optimizer of this module."""
  return registry.add(BASES, build, 'optimizers')


def factory[**P](
  build: Callable[P, optax.GradientTransformation],
) -> Callable[P, optax.GradientTransformation]:
  """Registers a function that builds an optax optimizer, so that expressions can use its name.

  @factory
  def clipped_sgd(learning_rate, largest=1.0):
    return optax.chain(optax.clip(largest), optax.sgd(learning_rate))

  Args:
    build: a function with an argument `learning_rate` and other hyperparameters. As in optax, the learning rate is a
      number or a schedule: number of updates -> learning rate.

  Returns:
    `build`, unchanged.

  Raises:
    ValueError: `build` has no argument `learning_rate`, or another optimizer is registered under the same name.
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

    transform(rate)  # raises errors for invalid hyperparameters now, while the expression can be shown
    return Recipe(name, Place.BASE, transform, float(rate))

  if name in LINKS or name == 'chain':
    raise ValueError(
      f'two optimizers are called {name}: one in {__name__}, one in {build.__module__}. Rename one of them'
    )
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
    beta1: decay rate of m, the mean of gradients, in [0, 1).
    beta2: decay rate of v, the mean of squared gradients, in [0, 1).
    epsilon: constant added to the denominator, > 0.
    weight_decay: decay rate of weights, >= 0; norm scales and biases do not decay. It must be 0 before a merge: chain
      `weight_decay` after the merge instead.

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
  """Adafactor: second moments of matrices factored into row and column means, without a first moment.

  u = g / sqrt(v),   theta <- theta - lr(t) u / max(1, rms(u) / clip)

  Step sizes are absolute, as in Adam, not relative to the size of the weights. Matrices with a side below 128 store the
  full v. Layers of the same kind are stacked: each layer has its own v, but rms(u) is taken over all of them.

  Args:
    learning_rate: peak of the schedule, > 0.
    decay: exponent of the decay rate of v, in (0, 1): the rate at step t is 1 - t^-decay.
    clip: largest rms of u, > 0.

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
    learning_rate: peak of the schedule, > 0; usually a tenth of Adam's or less.
    beta1: weight of the momentum in the interpolation, in [0, 1).
    beta2: decay rate of the momentum, in [0, 1).

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
  """Muon: the momentum of each matrix, orthogonalised by Newton-Schulz iterations.

  theta <- theta - lr(t) rms sqrt(max(rows, columns)) orthogonal(m)

  The matrices of each layer, and the factors of adapters, are orthogonalised separately. Embeddings, the output head
  and norm scales use Adam with Nesterov momentum instead, with the same learning rate.

  Args:
    learning_rate: peak of the schedule, > 0.
    beta: decay rate of the momentum, in [0, 1).
    rms: root mean square of the update of a full-rank matrix, as a multiple of the learning rate, > 0. At 0.2 updates
      are about as large as Adam's, so Adam's learning rates can be reused.

  References:
    Jordan 2024, Muon, https://kellerjordan.github.io/posts/muon.
    Liu et al. 2025, Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982 (rms).
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
    momentum: decay rate of the momentum, in [0, 1).
  """
  _positive(learning_rate=learning_rate)
  _rates(momentum=momentum)
  return Recipe('sgd', Place.BASE, lambda schedule: optax.sgd(schedule, momentum or None), learning_rate)


def weight_decay(rate: float) -> Recipe:
  """Decoupled weight decay that is not merged.

  theta <- theta + u - lr(t) rate theta,   u = the update so far

  Args:
    rate: decay rate, >= 0; norm scales and biases do not decay.
  """
  _require(_is_number(rate) and rate >= 0, 'rate', rate, 'at least 0')

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return optax.add_decayed_weights(lambda count: -rate * schedule(count), schedules.decays)

  return Recipe('weight_decay', Place.DECAY, build)


def chain(*links: Recipe) -> Recipe:
  """Applies links one after another; each transforms the update of the previous one.

  Raises:
    ValueError: the chain does not have exactly one base optimizer, or a link is in the wrong position.
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
      raise ValueError(f'chain: {link!r} is not a link of an optimizer')
    if link.place is Place.CHAIN:
      raise ValueError('chain: chains cannot be nested; write the links of the inner chain instead')
  bases = [link.name for link in links if link.place is Place.BASE]
  if not bases:
    raise ValueError(f'no link has a learning rate: chain one of {", ".join(sorted(BASES))}')
  if len(bases) > 1:
    raise ValueError(f'a chain has one learning rate, but {" and ".join(bases)} have one each: keep only one of them')
  for early, late in itertools.pairwise(links):
    if late.place is Place.GRADIENT and early.place > late.place:
      raise ValueError(f'{late.name} must come before {early.name}: it masks the gradient, not the update')
    if early.place > late.place:
      raise ValueError(f'{early.name} must come after {late.name}: {_REASONS[early.place]}')
    if early.place is Place.AVERAGE:
      raise ValueError('a chain can have at most one moving_average: keep only one of them')
  merges = [link.name for link in links if link.place is Place.MERGE]
  decaying = [link.name for link in links if link.decays]
  if merges and decaying:
    raise ValueError(
      f'{merges[0]} would also merge the weight decay of {decaying[0]}: remove it there and chain weight_decay(...) '
      f'after {merges[0]}'
    )


_REASONS = {
  Place.MERGE: 'it merges the update of the base optimizer',
  Place.DECAY: 'the decay is added to the update and must not be merged',
  Place.AVERAGE: 'it averages the parameters after the whole update',
}


def _link(factory: Callable[..., optax.GradientTransformation]) -> Callable[..., Recipe]:
  """Turns a factory of `alignjax.optim` into a factory of recipes with the same signature, for expressions."""
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
"""All transforms of this package, by their names in expressions."""
LINKS = {'weight_decay': weight_decay} | {name: _link(build) for name, build in TRANSFORMS.items()}


def parse_optimizer(text: str) -> Recipe:
  """Reads an optimizer from its expression, such as `'chain(adamw(1e-6), online_dare(reserve=0.1, alpha=1e-6))'`.

  Returns:
    A recipe with a learning rate.

  Raises:
    ExpressionError: the text is not a valid optimizer. The message shows the position, the reason and the known names.
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
  """Builds the optimizer of a run.

  Args:
    recipe: a recipe with a learning rate.
    schedule: number of updates -> learning rate, with the recipe's learning rate as its peak.
    gradient_clip: largest global norm of a gradient, clipped before everything else; 0 for no clipping.
  """
  clip = optax.clip_by_global_norm(gradient_clip) if gradient_clip else optax.identity()
  return optax.chain(clip, recipe.build(schedule))


def _matrices(params: Params) -> Any:
  """The row and column axes of the matrices that muon orthogonalises; None for other parameters."""

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
