"""Batches whose loss or gradient is not finite: skipped inside the step, counted, and searched for the rows at fault."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.data.batches import batching, order
from alignjax.training.state import Frozen, Skips, TrainState
from alignjax.types import Array, PreferenceBatch

Step = Callable[[TrainState, Frozen, PreferenceBatch], tuple[TrainState, dict[str, Array]]]
MOST_ROWS = 3  # the search stops after it has found this many rows


def guarded(step: Step) -> Callable[[TrainState, Frozen, PreferenceBatch], Any]:
  """Wraps a step: a batch that gives a loss, a gradient or a memory that is not finite changes nothing but counters.

  Parameters, the optimizer's moments and counters, the key and the objective's memory stay bit for bit. `step`, which
  counts batches, and `skips` go on. The decision depends on values that are the same on all devices.

  Args:
    step: returns metrics with `loss` and `gradient_norm`. The norm is not finite if any entry of the gradient is not.

  Returns:
    A function with the arguments of `step`: the new state, the metrics with `skipped` (batches skipped since the run
    began), and the names of what had to be finite -> whether it was.
  """

  def guarded_step(state: TrainState, frozen: Frozen, batch: PreferenceBatch) -> Any:
    new, values = step(state, frozen, batch)
    finite = {name: jnp.isfinite(values[name]) for name in ('loss', 'gradient_norm')}
    finite |= {f'memory.{name}': jnp.all(jnp.isfinite(value)) for name, value in new.memory.items()}
    good = jnp.all(jnp.stack(list(finite.values())))

    def choose(name: str) -> Any:
      return jax.tree.map(lambda now, before: jnp.where(good, now, before), getattr(new, name), getattr(state, name))

    skipped = 1 - good.astype(jnp.int32)
    skips = Skips(state.skips.total + skipped, (state.skips.in_a_row + 1) * skipped)
    kept = {name: choose(name) for name in ('params', 'opt_state', 'key', 'memory')}
    return TrainState(new.step, **kept, skips=skips), {**values, 'skipped': skips.total}, finite

  return guarded_step
