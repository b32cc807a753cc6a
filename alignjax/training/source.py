"""Sources: where the training loop gets its next batch.

A source that reads a file ignores the state of the run. A source that samples from the policy reads `state.params`.
The loop, checkpoints and resuming treat all of them alike.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import grain
import numpy as np

from alignjax.data.batches import batching, order
from alignjax.training import state as training_state


class SourceError(ValueError):
  """A source cannot produce the next batch, on any process. The state is sound, so the run saves it and stops."""


class Source(Protocol):
  """Produces batches, one for each update, and can be moved to where it was at an earlier update."""

  on_policy: bool  # whether all responses are drawn from the policy of `state`, for objectives that require that

  def next(self, state: training_state.TrainState) -> batching.Batch:
    """Returns the next batch: this process's rows of it, as numpy arrays.

    Args:
      state: the state that the batch will update. The update donates it, so do not keep a reference to it. Reading a
        value of it waits for the previous update.

    Raises:
      StopIteration: if no batch is left.
      SourceError: if the batch cannot be produced.
    """

  def get_state(self) -> Any:
    """Returns the source's position in JSON types. Checkpoints store it, one file per process."""

  def set_state(self, state: Any) -> None:
    """Moves to a position that `get_state` returned, possibly in another process."""


class GrainSource:
  """Batches from a Grain iterator.

  Args:
    iterator: yields `Batch`.
  """

  on_policy = False

  def __init__(self, iterator: grain.DatasetIterator):
    self._iterator = iterator

  def next(self, state: training_state.TrainState) -> batching.Batch:
    del state
    return next(self._iterator)

  def get_state(self) -> Any:
    return self._iterator.get_state()

  def set_state(self, state: Any) -> None:
    self._iterator.set_state(state)


class Mixed:
  """Batches from several sources, in a fixed pattern.

  A batch keeps its shape and comes from one source. Example ids are made unique: example i of source k becomes
  i * n + k for n sources, and `locate` inverts that.

  Args:
    sources: the sources.
    pattern: the index of the source that each update draws from, repeated forever: (0, 0, 1) takes two batches from the
      first source, then one from the second.

  Raises:
    ValueError: the pattern is empty or names a source that does not exist.
  """

  def __init__(self, sources: Sequence[Source], pattern: Sequence[int]):
    if not pattern or not set(pattern) <= set(range(len(sources))):
      raise ValueError(
        f'pattern={list(pattern)}: give indices of the {len(sources)} sources, from 0 to {len(sources) - 1}'
      )
    self._sources, self._pattern, self._taken = list(sources), tuple(pattern), 0

  def next(self, state: training_state.TrainState) -> batching.Batch:
    index = self._pattern[self._taken % len(self._pattern)]
    batch = self._sources[index].next(state)
    self._taken += 1
    ids = np.where(batch.ids == order.PADDING_ID, order.PADDING_ID, batch.ids * len(self._sources) + index)
    return batch._replace(ids=ids)

  @property
  def on_policy(self) -> bool:
    return all(source.on_policy for source in self._sources)

  def locate(self, example: int) -> tuple[int, int]:
    """Returns the index of the source that an example id comes from, and its id there."""
    example, index = divmod(example, len(self._sources))
    return index, example

  def get_state(self) -> Any:
    return {'taken': self._taken, 'sources': [source.get_state() for source in self._sources]}

  def set_state(self, state: Any) -> None:
    self._taken = state['taken']
    for source, own in zip(self._sources, state['sources'], strict=True):
      source.set_state(own)
