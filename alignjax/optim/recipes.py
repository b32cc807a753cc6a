"""Optimizers as expressions, on the command line and in configs.

  adamw(1e-6)        chain(adamw(1e-6), online_dare(reserve=0.1, alpha=1e-6), weight_decay(0.01))

A chain has one base optimizer (see `bases`), whose learning rate is the peak of the run's schedule. `child_tuning`
comes before the base; after it come, in this order, online merges (which merge the update with the reference delta),
`weight_decay`, and a `moving_average`. Any other order raises an error that gives the reason. Gradient clipping is a
separate setting, `gradient_clip`, and comes before everything else.
"""

from collections.abc import Callable, Sequence
import functools
import inspect
import itertools
from typing import Any

import optax

from alignjax import expressions, registry
from alignjax.optim import baselines, bases, online_merging, schedules


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
  def make(*args: P.args, **kwargs: P.kwargs) -> bases.Recipe:
    bound = signature.bind(*args, **kwargs)
    rate = bound.arguments['learning_rate']
    bases.positive(learning_rate=rate)

    def transform(learning_rate: float | schedules.Schedule) -> optax.GradientTransformation:
      bound.arguments['learning_rate'] = learning_rate
      made = build(*bound.args, **bound.kwargs)
      if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f'{name}: must return an optax.GradientTransformation, not {type(made).__name__}')
      return made

    transform(rate)  # raises errors for invalid hyperparameters now, while the expression can be shown
    return bases.Recipe(name, bases.Place.BASE, transform, float(rate))

  if name in LINKS or name == 'chain':
    raise ValueError(
      f'two optimizers are called {name}: one in {__name__}, one in {build.__module__}. Rename one of them'
    )
  registry.add(bases.BASES, make, 'optimizers')
  return build


def weight_decay(rate: float) -> bases.Recipe:
  """Decoupled weight decay that is not merged.

  theta <- theta + u - lr(t) rate theta,   u = the update so far

  Args:
    rate: decay rate, >= 0; norm scales and biases do not decay.
  """
  bases.require(bases.is_number(rate) and rate >= 0, 'rate', rate, 'at least 0')

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return optax.add_decayed_weights(lambda count: -rate * schedule(count), schedules.decays)

  return bases.Recipe('weight_decay', bases.Place.DECAY, build)


def chain(*links: bases.Recipe) -> bases.Recipe:
  """Applies links one after another; each transforms the update of the previous one.

  Raises:
    ValueError: the chain does not have exactly one base optimizer, or a link is in the wrong position.
  """
  _check_links(links)
  return bases.Recipe(
    name='chain',
    place=bases.Place.CHAIN,
    build=lambda schedule: optax.chain(*(link.build(schedule) for link in links)),
    learning_rate=next(link.learning_rate for link in links if link.place is bases.Place.BASE),
    needs_delta=any(link.needs_delta for link in links),
    averages=any(link.averages for link in links),
  )


def _check_links(links: Sequence[Any]) -> None:
  for link in links:
    if not isinstance(link, bases.Recipe):
      raise ValueError(f'chain: {link!r} is not a link of an optimizer')
    if link.place is bases.Place.CHAIN:
      raise ValueError('chain: chains cannot be nested; write the links of the inner chain instead')
  rated = [link.name for link in links if link.place is bases.Place.BASE]
  if not rated:
    raise ValueError(f'no link has a learning rate: chain one of {", ".join(sorted(bases.BASES))}')
  if len(rated) > 1:
    raise ValueError(f'a chain has one learning rate, but {" and ".join(rated)} have one each: keep only one of them')
  for early, late in itertools.pairwise(links):
    if late.place is bases.Place.GRADIENT and early.place > late.place:
      raise ValueError(f'{late.name} must come before {early.name}: it masks the gradient, not the update')
    if early.place > late.place:
      raise ValueError(f'{early.name} must come after {late.name}: {_REASONS[early.place]}')
    if early.place is bases.Place.AVERAGE:
      raise ValueError('a chain can have at most one moving_average: keep only one of them')
  merges = [link.name for link in links if link.place is bases.Place.MERGE]
  decaying = [link.name for link in links if link.decays]
  if merges and decaying:
    raise ValueError(
      f'{merges[0]} would also merge the weight decay of {decaying[0]}: remove it there and chain weight_decay(...) '
      f'after {merges[0]}'
    )


_REASONS = {
  bases.Place.MERGE: 'it merges the update of the base optimizer',
  bases.Place.DECAY: 'the decay is added to the update and must not be merged',
  bases.Place.AVERAGE: 'it averages the parameters after the whole update',
}


def _link(factory: Callable[..., optax.GradientTransformation]) -> Callable[..., bases.Recipe]:
  """Turns a factory of `alignjax.optim` into a factory of recipes with the same signature, for expressions."""
  name = factory.__name__
  place = {'child_tuning': bases.Place.GRADIENT, 'moving_average': bases.Place.AVERAGE}.get(name, bases.Place.MERGE)

  @functools.wraps(factory)
  def make(*args: Any, **options: Any) -> bases.Recipe:
    transform = factory(*args, **options)
    bound = inspect.signature(factory).bind(*args, **options)
    bound.apply_defaults()
    return bases.Recipe(
      name,
      place,
      lambda schedule: transform,
      needs_delta=place is bases.Place.MERGE,
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


def parse_optimizer(text: str) -> bases.Recipe:
  """Reads an optimizer from its expression, such as `'chain(adamw(1e-6), online_dare(reserve=0.1, alpha=1e-6))'`.

  Returns:
    A recipe with a learning rate.

  Raises:
    ExpressionError: the text is not a valid optimizer. The message shows the position, the reason and the known names.
  """
  known = {'optimizers': bases.BASES | {'chain': chain}, 'links of a chain': LINKS}
  recipe = expressions.parse(text, bases.Recipe, 'an optimizer', known)
  try:
    return recipe if recipe.place is bases.Place.CHAIN else chain(recipe)
  except ValueError as error:
    raise expressions.ExpressionError(f'{error}\n  {text}') from None


def build_optimizer(
  recipe: bases.Recipe, schedule: schedules.Schedule, gradient_clip: float = 0.0
) -> optax.GradientTransformation:
  """Builds the optimizer of a run.

  Args:
    recipe: a recipe with a learning rate.
    schedule: number of updates -> learning rate, with the recipe's learning rate as its peak.
    gradient_clip: largest global norm of a gradient, clipped before everything else; 0 for no clipping.
  """
  clip = optax.clip_by_global_norm(gradient_clip) if gradient_clip else optax.identity()
  return optax.chain(clip, recipe.build(schedule))
