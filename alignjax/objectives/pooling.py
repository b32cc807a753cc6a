"""Sums over prompts through which the loss of a prompt depends on the others: over a batch, or a whole evaluation."""

from collections.abc import Callable, Mapping
import dataclasses

from alignjax import stats
from alignjax.types import PreferenceBatch, WeightedSum

Sums = Mapping[str, WeightedSum]


@dataclasses.dataclass(frozen=True)
class Pool:
  """Named sums over prompts, without gradient, which the loss of every prompt reads.

  In training, and in a notebook, they are sums over the batch. An evaluation first adds them up over all of its
  batches, so that its loss does not depend on the batch size; `table.pool` then holds them.

  Attributes:
    names: the names. They contain everything that a sum depends on, such as hyper-parameters, because the parts of a
      combined objective share them.
    sums: computes them for a batch.
  """

  names: frozenset[str]
  sums: Callable[[stats.StatTable, PreferenceBatch], Sums]

  def read(self, table: stats.StatTable, batch: PreferenceBatch) -> Sums:
    """The sums over the evaluation, or over the batch if there is none."""
    return table.pool if self.names <= table.pool.keys() else self.sums(table, batch)

  def __add__(self, other: 'Pool') -> 'Pool':
    def sums(table: stats.StatTable, batch: PreferenceBatch) -> Sums:
      return {**self.sums(table, batch), **other.sums(table, batch)}

    return Pool(self.names | other.names, sums)


NO_POOL = Pool(frozenset(), lambda table, batch: {})
