"""Coefficients that follow the training step, as in `schedule(1.0, 0.0, 500) * sft()`."""

import dataclasses
import math

import jax.numpy as jnp

from alignjax.types import Array


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A coefficient that moves linearly from `start` to `end` over `steps` updates, and stays at `end` afterwards.

  value(step) = (1 - f) start + f end,   f = min(step / steps, 1)

  The first update is made at `start`, the one after `steps` updates at `end`.
  """

  start: float
  end: float
  steps: int

  def __post_init__(self):
    for name in ('start', 'end'):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'schedule: {name} must be a finite number, got {value!r}')
    if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
      raise ValueError(f'schedule: steps must be a whole number of updates, at least 1, got {self.steps!r}')

  def __repr__(self) -> str:
    return f'schedule(start={self.start!r}, end={self.end!r}, steps={self.steps!r})'

  def __neg__(self) -> 'Schedule':
    return Schedule(-self.start, -self.end, self.steps)

  def __call__(self, step: Array | None) -> Array:
    """[] float32: the coefficient after `step` updates; the one at the start where no step is known."""
    done = jnp.asarray(0 if step is None else step, jnp.float32)
    fraction = jnp.minimum(done / self.steps, 1.0)
    return (1.0 - fraction) * self.start + fraction * self.end


def schedule(start: float, end: float, steps: int) -> Schedule:
  """A coefficient for an objective that follows the training step: `schedule(1.0, 0.0, 500) * sft()`.

  value(step) = (1 - f) start + f end,   f = min(step / steps, 1)

  The step is the number of updates done, `table.step`. An evaluation uses the current step. A notebook
  whose table has no step gets `start`. The training metrics report the coefficient as `sft/coefficient`.

  Args:
    start: the coefficient of the first update.
    end: the coefficient from `steps` updates on.
    steps: the number of updates between the two, at least 1.

  Returns:
    A coefficient: multiply an objective by it.

  Raises:
    ValueError: if start or end is not finite, or steps is less than 1.
  """
  return Schedule(start, end, steps)
