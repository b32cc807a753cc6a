"""The optimizer of a run: clipping, AdamW and a learning-rate schedule, as an optax chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

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

  No step has a rate of 0, so none is wasted.

  Raises:
    ValueError: for an unknown shape, a peak that is not positive, or a warm-up that is longer than the run.
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


def build_optimizer(
  schedule: Schedule,
  *,
  weight_decay: float = 0.0,
  beta1: float = 0.9,
  beta2: float = 0.999,
  gradient_clip: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW behind a clip of the global gradient norm.

  Args:
    schedule: learning rate by updates done.
    weight_decay: decoupled, times the learning rate; norm scales and biases do not decay.
    beta1, beta2: decay rates of the means of gradients and of squared gradients.
    gradient_clip: the largest global norm; 0 for no clip.
  """
  clip = optax.clip_by_global_norm(gradient_clip) if gradient_clip else optax.identity()
  return optax.chain(clip, optax.adamw(schedule, beta1, beta2, weight_decay=weight_decay, mask=_decays))


def _decays(params: Params) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ('scale', 'bias'), params)
