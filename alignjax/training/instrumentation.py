"""The training step as the loop runs it: guarded, and with the loop's own metrics. Peak memory."""

from collections.abc import Callable
import resource
import sys
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


def peak_memory_gib() -> float:
  """Peak memory of the first device in GiB, as its backend reports it; on a CPU, of this process."""
  peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  if peak:
    return peak / 2**30
  size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return size / (2**30 if sys.platform == 'darwin' else 2**20)  # macOS counts bytes, Linux kibibytes
