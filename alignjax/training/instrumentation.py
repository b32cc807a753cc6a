"""The training step as the loop runs it: guarded, and with the loop's own metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.optim import schedules
from alignjax.training import checksums, skipping
from alignjax.training.state import Frozen, TrainState
from alignjax.types import PreferenceBatch


def instrumented(step: skipping.Step, schedule: schedules.Schedule | None) -> Callable[..., Any]:
  """Guards a step, and adds metrics: learning rate, tokens, and a hash of the batch.

  Args:
    step: the result of `build_train_step`.
    schedule: the learning rate as a function of updates done; None adds no learning rate.

  Returns:
    A function with the arguments of `step`, which returns the new state, and (metrics, verdict).
  """
  guarded = skipping.guarded(step)

  def run(state: TrainState, frozen: Frozen, batch: PreferenceBatch) -> Any:
    examples = batch.examples
    lengths = examples.prompt_length + jnp.sum(examples.response_length, axis=1)
    own = {
      'tokens': jnp.sum(jnp.where(examples.weight > 0, lengths, 0)),
      'batch_hash': sum(checksums.checksum(leaf) for leaf in jax.tree.leaves(batch)),
    }
    if schedule is not None:
      own = {'learning_rate': schedule(state.updates), **own}
    state, values, verdict = guarded(state, frozen, batch)
    return state, ({**values, **own}, verdict)

  return run
