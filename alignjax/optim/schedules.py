"""Learning-rate schedules, and the mask of weights that decay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.types import Array, Params

Schedule = Callable[[Array], Array]


def _constant(progress: Array) -> Array:
  return jnp.ones_like(progress)


def _linear(progress: Array) -> Array:
  return 1.0 - progress


def _cosine(progress: Array) -> Array:
  return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


SHAPES: dict[str, Callable[[Array], Array]] = {'constant': _constant, 'cosine': _cosine, 'linear': _linear}


def build_schedule(shape: str, peak: float, *, steps: int, warmup: int = 0) -> Schedule:
  """A learning rate that rises linearly for `warmup` steps, then follows `shape` down to 0 after the last step.

  rate(t) = peak (t + 1) / warmup for t < warmup, else peak shape((t - warmup) / (steps - warmup)),   t = updates done

  The rate is positive at every step.

  Args:
    shape: 'constant', 'cosine' or 'linear'.
    peak: the learning rate after the warm-up, > 0.
    steps: updates in the run.
    warmup: updates over which the rate rises.

  Raises:
    ValueError: the shape is unknown, the peak is not positive, or the warm-up is longer than the run.
  """
  if shape not in SHAPES:
    raise ValueError(f'schedule={shape!r} is not one of {", ".join(SHAPES)}')
  if not peak > 0:
    raise ValueError(f'learning_rate={peak} must be positive')
  if not 0 <= warmup <= steps:
    raise ValueError(f'warmup={warmup} must be from 0 to the number of steps, {steps}')

  def schedule(count: Array) -> Array:
    count = jnp.asarray(count, jnp.float32)
    progress = jnp.clip((count - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    return peak * jnp.where(count < warmup, (count + 1) / max(warmup, 1), SHAPES[shape](progress))

  return schedule


def decays(params: Params) -> Any:
  """A tree like the parameters, True where weight decay applies: everywhere but norm scales and biases."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ('scale', 'bias'), params)
