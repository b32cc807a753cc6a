"""Mean and deviation of the margin of preference pairs: over one batch, and as moving averages over batches.

The margin is G = rho(y_w) - rho(y_l), of log-ratios summed or averaged over tokens. With row weights w, their sum W,
and q the probability that the label is right:

  mean      = sum_b w_b (2 q_b - 1) G_b / W
  deviation = sqrt( sum_b w_b (q_b (G_b - mean)^2 + (1 - q_b) (-G_b - mean)^2) / (W - 1) )

Weights are frequencies: a row of weight 2 counts as two rows, one of weight 0 does not count, and W - 1 is the `n - 1`
of an unbiased variance. A soft label is two pairs, one in each order, with weights q and 1 - q. For W <= 1 the
deviation is undefined. It is set to infinity, so that standardised margins are 0, and the batch does not enter the
averages.

All rows of a step are one batch: microbatches and the mesh make no difference. `GroupedAverage` counts the rows of a
batch as several small batches instead, in their order.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base
from alignjax.types import Array, PreferenceBatch

_SMALLEST_DEVIATION = 1e-6  # nats: the rounding of float32 log-probabilities is below it


class Moments(NamedTuple):
  """Mean and deviation of a margin, [] each, without gradient."""

  mean: Array
  deviation: Array

  def standardise(self, margin: Array) -> Array:
    """(G - mean) / deviation of [B]; exactly 0 for a margin of 0 whose mean is 0.

    The deviation is at least 1e-6 times the mean's size or 1 nat, whichever is larger, so policy == reference gives 0
    instead of 0 / 0.
    """
    floor = _SMALLEST_DEVIATION * jnp.maximum(1.0, jnp.abs(self.mean))
    return (margin - self.mean) / jnp.maximum(self.deviation, floor)


def of_batch(margin: Array, batch: PreferenceBatch) -> Moments:
  """The moments of margins [B] over a batch; mean 0 and deviation infinity if all weights are 0."""
  return _moments(jax.lax.stop_gradient(margin), jnp.asarray(batch.label), jnp.asarray(batch.weight, jnp.float32))


def _moments(margin: Array, label: Array, weight: Array) -> Moments:
  margin = jnp.where(weight > 0, margin, 0.0)
  total = jnp.sum(weight)
  mean = jnp.sum(weight * (2.0 * label - 1.0) * margin) / jnp.where(total > 0, total, 1.0)
  squares = label * jnp.square(margin - mean) + (1.0 - label) * jnp.square(-margin - mean)
  variance = jnp.sum(weight * squares) / jnp.where(total > 1, total - 1.0, 1.0)
  return Moments(mean, jnp.where(total > 1, jnp.sqrt(variance), jnp.inf))


@dataclasses.dataclass(frozen=True)
class MarginAverage:
  """Exponential moving averages of the moments of a margin, m <- decay m + (1 - decay) m_batch, from zero.

  The averages are kept in an objective's memory under names that describe them, so the objectives of a sum share equal
  ones. The deviation is averaged, not the variance.

  Before the first batch (in a notebook, or before the first step), reading returns what one update by the current batch
  would give.

  Args:
    decay: weight of the old average in an update, in [0, 1).
    length_normalised: whether log-ratios are averaged over the tokens of a response instead of summed.
  """

  decay: float
  length_normalised: bool

  def margin(self, table: stats.StatTable) -> Array:
    """[B], without gradient."""
    reduce = table.mean if self.length_normalised else table.sum
    log_ratio = reduce(stats.logp) - reduce(stats.reference_logp)
    return jax.lax.stop_gradient(log_ratio[:, 0] - log_ratio[:, 1])

  @property
  def memory(self) -> base.Memory:
    """The averages as an objective carries them: {count, mean, deviation}, not corrected for starting at zero."""
    return base.Memory({self._key(name): 0.0 for name in ('count', 'mean', 'deviation')}, self._update)

  def present(self, table: stats.StatTable, batch: PreferenceBatch) -> Moments:
    """The moments of the current batch, independent of the memory."""
    return of_batch(self.margin(table), batch)

  def count(self, table: stats.StatTable) -> Array:
    """[] float32: how many batches have been averaged."""
    return self._stored(table, 'count')

  def uncorrected(self, table: stats.StatTable, batch: PreferenceBatch) -> Moments:
    """The averages without correction: after t equal batches, 1 - decay^t of their limit."""
    return self._read(table, batch, 1.0, 1.0 - self.decay)

  def corrected(self, table: stats.StatTable, batch: PreferenceBatch) -> Moments:
    """The averages divided by 1 - decay^t: weighted means of the t batches seen."""
    return self._read(table, batch, 1.0 / (1.0 - self.decay ** jnp.maximum(self.count(table), 1.0)), 1.0)

  def _read(self, table: stats.StatTable, batch: PreferenceBatch, of_stored: Array | float, of_now: float) -> Moments:
    now, seen = self.present(table, batch), self.count(table) > 0

    def read(name: str) -> Array:
      return jnp.where(seen, of_stored * self._stored(table, name), of_now * getattr(now, name))

    return Moments(read('mean'), read('deviation'))

  def _update(self, table: stats.StatTable, batch: PreferenceBatch) -> Mapping[str, Array]:
    now = self.present(table, batch)
    counts = jnp.sum(jnp.asarray(batch.weight)) > 1

    def averaged(name: str) -> Array:
      old = self._stored(table, name)
      return jnp.where(counts, self.decay * old + (1.0 - self.decay) * getattr(now, name), old)

    values = {
      'count': self.count(table) + counts.astype(jnp.float32),
      'mean': averaged('mean'),
      'deviation': averaged('deviation'),
    }
    return {self._key(name): value for name, value in values.items()}

  def _stored(self, table: stats.StatTable, name: str) -> Array:
    return jnp.asarray(table.memory.get(self._key(name), 0.0), jnp.float32)

  def _key(self, name: str) -> str:
    return f'margin_average(decay={self.decay!r}, length_normalised={self.length_normalised!r})/{name}'


class _Running(NamedTuple):
  """Averages not corrected for starting at zero, [] each."""

  count: Array  # groups averaged
  mean: Array
  deviation: Array


@dataclasses.dataclass(frozen=True)
class GroupedAverage:
  """The averages of `MarginAverage`, updated after every `rows` rows of a batch instead of once per batch.

  The rows of positive weight are counted off in the order of the batch; the last group can be smaller. A group whose
  weights sum to 1 or less has no deviation and does not enter the averages.

  Args:
    average: the decay, and the margin.
    rows: size of a group, at least 1.
  """

  average: MarginAverage
  rows: int

  @property
  def memory(self) -> base.Memory:
    """The averages after all groups: {count, mean, deviation}, not corrected for starting at zero."""
    return base.Memory({self._key(name): 0.0 for name in _Running._fields}, self._update)

  def uncorrected(self, table: stats.StatTable, batch: PreferenceBatch) -> Moments:
    """[B] each: the averages right after the group of each row; in evaluation, the stored ones for all rows.

    Before the first batch, reading returns what training on the current batch would give.
    """
    _, rows = self._run(self._stored(table.before or {}), table, batch)
    if table.before is not None:
      return rows
    stored = self._stored(table.memory)
    return jax.tree.map(lambda old, now: jnp.where(stored.count > 0, old, now), Moments(*stored[1:]), rows)

  def _run(self, start: _Running, table: stats.StatTable, batch: PreferenceBatch) -> tuple[_Running, Moments]:
    """The averages after the batch, [] each, and those right after the group of each row, [B] each."""
    weight, margin = jnp.asarray(batch.weight, jnp.float32), self.average.margin(table)
    group = jnp.maximum(jnp.cumsum(weight > 0) - 1, 0) // self.rows
    groups = -(-weight.size // self.rows)
    members = jnp.where(group[None] == jnp.arange(groups)[:, None], weight[None], 0.0)  # [groups, B]
    own = jax.vmap(_moments, (None, None, 0))(margin, jnp.asarray(batch.label), members)

    def average(old: _Running, found: tuple[Moments, Array]) -> tuple[_Running, _Running]:
      now, counts = found
      decay = self.average.decay
      new = _Running(old.count + 1.0, *(decay * x + (1.0 - decay) * y for x, y in zip(old[1:], now, strict=True)))
      new = jax.tree.map(lambda x, y: jnp.where(counts, x, y), new, old)
      return new, new

    end, after = jax.lax.scan(average, start, (own, jnp.sum(members, axis=1) > 1))
    deviation = jnp.where(after.count > 0, after.deviation, jnp.inf)
    return end, Moments(after.mean[group], deviation[group])

  def _update(self, table: stats.StatTable, batch: PreferenceBatch) -> Mapping[str, Array]:
    end, _ = self._run(self._stored(table.memory), table, batch)
    return {self._key(name): value for name, value in end._asdict().items()}

  def _stored(self, memory: Mapping[str, Array]) -> _Running:
    return _Running(*(jnp.asarray(memory.get(self._key(name), 0.0), jnp.float32) for name in _Running._fields))

  def _key(self, name: str) -> str:
    kind = f'decay={self.average.decay!r}, length_normalised={self.average.length_normalised!r}, rows={self.rows!r}'
    return f'margin_average({kind})/{name}'
