"""Coefficients that follow the training step, as in `schedule(1.0, 0.0, 500) * sft()`."""

import dataclasses
import math

import jax.numpy as jnp

from alignjax.types import Array


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A coefficient that moves linearly from `start` to `end` over `steps` updates, and stays at `end` afterwards.

  value(step) = (1 - f) start + f end,   f = min(step / steps, 1)

  The first update uses `start`; the update after `steps` updates uses `end`.
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
    """The coefficient after `step` updates, [] float32; None means 0."""
    done = jnp.asarray(0 if step is None else step, jnp.float32)
    fraction = jnp.minimum(done / self.steps, 1.0)
    return (1.0 - fraction) * self.start + fraction * self.end


def schedule(start: float, end: float, steps: int) -> Schedule:
  """A coefficient for an objective that follows the training step: `schedule(1.0, 0.0, 500) * sft()`.

  value(step) = (1 - f) start + f end,   f = min(step / steps, 1)

  The step is `table.step`, the number of updates done. Evaluation uses the current step. A table without a step, as in
  a notebook, gets `start`. Training reports the coefficient as the metric `sft/coefficient`.

  Args:
    start: the coefficient of the first update.
    end: the coefficient from `steps` updates on.
    steps: the number of updates between the two, at least 1.

  Returns:
    A coefficient: multiply an objective by it.

  Raises:
    ValueError: start or end is not finite, or steps is less than 1.
  """
  return Schedule(start, end, steps)
