"""Learning-rate schedules, and the mask of weights that decay."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alignjax import expressions
from alignjax.types import Array, Params

Schedule = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Shape:
  """The learning rate after the warm-up as a share of its peak: a function of the progress, from 0 to 1."""

  curve: Callable[[Array], Array]
  to: float  # the share at the end

  def __post_init__(self):
    if isinstance(self.to, bool) or not isinstance(self.to, int | float) or not 0 <= self.to <= 1:
      raise ValueError(f'to={self.to!r} must be in [0, 1]: the learning rate at the end as a share of its peak')

  def __call__(self, progress: Array) -> Array:
    return self.to + (1.0 - self.to) * self.curve(progress)


def constant() -> Shape:
  """The peak throughout."""
  return Shape(jnp.ones_like, 0.0)


def cosine(to: float = 0.0) -> Shape:
  """to + (1 - to) (1 + cos(pi x)) / 2, at progress x."""
  return Shape(lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)), to)


def linear(to: float = 0.0) -> Shape:
  """to + (1 - to) (1 - x), at progress x."""
  return Shape(lambda progress: 1.0 - progress, to)


SHAPES: dict[str, Callable[..., Shape]] = {'constant': constant, 'cosine': cosine, 'linear': linear}


def parse_shape(text: str) -> Shape:
  """Reads a shape from its expression, `'cosine(to=0.1)'`, or from its name alone, `'cosine'`.

  Raises:
    ExpressionError: the text is not a valid shape. The message shows the position, the reason and the known names.
  """
  called = f'{text}()' if text.isidentifier() else text
  return expressions.parse(called, Shape, 'a schedule', {'schedules': SHAPES})


def warmup_steps(warmup: float, steps: int) -> int:
  """The updates over which the learning rate rises.

  Args:
    warmup: below 1, a share of the run; from 1 on, a whole number of updates.
    steps: updates in the run.

  Raises:
    ValueError: the warm-up is negative, or above 1 and not a whole number.
  """
  if not (0 <= warmup < 1 or (warmup >= 1 and float(warmup).is_integer())):
    raise ValueError(f'warmup = {warmup!r}: must be a share of the run in [0, 1) or a whole number of updates')
  return round(warmup * steps) if warmup < 1 else int(warmup)


def build_schedule(shape: str, peak: float, *, steps: int, warmup: int = 0) -> Schedule:
  """A learning rate that rises linearly for `warmup` steps, then follows `shape` to its end after the last step.

  rate(t) = peak (t + 1) / warmup for t < warmup, else peak shape((t - warmup) / (steps - warmup)),   t = updates done

  The rate is positive at every step.

  Args:
    shape: 'constant', 'linear' or 'cosine'; the last two fall to 0, or to a share of the peak: 'cosine(to=0.1)'.
    peak: the learning rate after the warm-up, > 0.
    steps: updates in the run.
    warmup: updates over which the rate rises.

  Raises:
    ValueError: the shape is not valid, the peak is not positive, or the warm-up is longer than the run.
  """
  follow = parse_shape(shape)
  if not peak > 0:
    raise ValueError(f'learning_rate={peak} must be positive')
  if not 0 <= warmup <= steps:
    raise ValueError(f'warmup={warmup} must be from 0 to the number of steps, {steps}')

  def schedule(count: Array) -> Array:
    count = jnp.asarray(count, jnp.float32)
    progress = jnp.clip((count - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    return peak * jnp.where(count < warmup, (count + 1) / max(warmup, 1), follow(progress))

  return schedule


def decays(params: Params) -> Any:
  """A tree like the parameters, True where weight decay applies: everywhere but norm scales and biases."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ('scale', 'bias'), params)
