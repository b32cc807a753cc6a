"""Agreement between the processes of a run."""

import jax
from jax.experimental import multihost_utils
import numpy as np


def gather(value: int) -> list[int]:
  """Gathers one uint32 from each process. All processes must call it."""
  if jax.process_count() == 1:
    return [value]
  return [int(x) for x in multihost_utils.process_allgather(np.array([value], np.uint32)).ravel()]
