"""Records the statistics and fields that an objective reads, and finds the fields that the loss depends on."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.interpreters import partial_eval

from alignjax import objectives, stats
from alignjax.types import Array, PreferenceBatch


class RecordingTable:
  """A table that records in `read` which statistics are read from it."""

  def __init__(self, table: stats.StatTable):
    self._table = table
    self.read: set[stats.Stat] = set()

  def __getitem__(self, stat: stats.Stat) -> Array:
    self.read.add(stat)
    return self._table[stat]

  length = property(lambda self: self._table.length)
  memory = property(lambda self: self._table.memory)
  pool = property(lambda self: self._table.pool)
  before = property(lambda self: self._table.before)
  step = property(lambda self: self._table.step)
  mask = property(lambda self: self._table.mask)
  sum = stats.StatTable.sum
  mean = stats.StatTable.mean
  first = stats.StatTable.first
  log_ratio = stats.StatTable.log_ratio


class RecordingBatch:
  """A batch that records in `read` which fields are read from it. Arrays of `cached` have their own names."""

  def __init__(self, batch: PreferenceBatch):
    self._batch = batch
    self.read: set[str] = set()

  def __getattr__(self, name: str) -> Any:
    if name == 'cached':
      return _RecordingMapping(self._batch.cached, self.read)
    value = getattr(self._batch, name)
    if value is not None:
      self.read.add(name)
    return value


class _RecordingMapping(Mapping):
  def __init__(self, values: Mapping[str, Array], read: set[str]):
    self._values, self._read = values, read

  def __getitem__(self, key: str) -> Array:
    value = self._values[key]
    self._read.add(key)
    return value

  def __contains__(self, key: object) -> bool:
    return key in self._values

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)


def loss_reads(objective: objectives.Objective, table: stats.StatTable, batch: PreferenceBatch) -> frozenset[str]:
  """Finds the fields of the batch that the loss depends on, from the jaxpr of the loss.

  Fields that only affect metrics or the table are not included.
  """
  program = jax.make_jaxpr(lambda batch: objective.apply(table, batch).loss)(batch).jaxpr
  _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(batch)]
  return frozenset(_name(path) for path, is_used in zip(paths, used, strict=True) if is_used)


def _name(path: tuple[Any, ...]) -> str:
  """The field, or the name of the cached array."""
  last = path[-1]
  return last.key if isinstance(last, jax.tree_util.DictKey) else last.name
