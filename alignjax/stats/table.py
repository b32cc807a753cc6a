"""The table of statistics, through which an objective sees the models."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from alignjax import numerics
from alignjax.stats import path, response, token
from alignjax.types import Array, WeightedSum

Stat = token.TokenStat | path.PathStat | response.ResponseStat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StatTable:
  """Statistics of a batch, with the lengths of the responses, and the state of the training step.

  Token and path statistics are [B, N, R] float32 and 0 at padding, response statistics [B, N] float32.
  """

  values: Mapping[str, Array]  # name of the statistic to its values
  length: Array  # [B, N] int32
  memory: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # state of an objective, from batches so far
  step: Array | None = None  # [] int32, updates done so far; None in a notebook, where schedules are at their start
  pool: Mapping[str, WeightedSum] = dataclasses.field(default_factory=dict)  # in an evaluation: sums over all of it
  before: Mapping[str, Array] | None = None  # in training, the memory without this batch; None if it is only read

  @classmethod
  def create(cls, values: Mapping[str, Array], length: Array) -> 'StatTable':
    """Casts the statistics to float32 and sets padding to 0, with zero gradient, whatever its values are."""

    def clean(value: Array) -> Array:
      if value.ndim == length.ndim:  # a response statistic
        return value.astype(jnp.float32)
      return jnp.where(numerics.length_mask(length, value.shape[-1]), value.astype(jnp.float32), 0.0)

    return cls({name: clean(value) for name, value in values.items()}, length)

  def __getitem__(self, stat: Stat) -> Array:
    """[B, N, R] or [B, N]: the statistic of each token, or of each response."""
    if stat.name not in self.values:
      raise ValueError(
        f'the objective reads the statistic {stat.name!r}, but the table holds only {sorted(self.values)}: '
        'add it to the objective’s `needs`'
      )
    return self.values[stat.name]

  @property
  def mask(self) -> Array:
    """[B, N, R] bool: True on response tokens."""
    sizes = [value.shape[-1] for value in self.values.values() if value.ndim > self.length.ndim]
    if not sizes:
      raise ValueError('the mask of response tokens needs a token statistic: add one, such as `logp`, to `needs`')
    return numerics.length_mask(self.length, sizes[0])

  def sum(self, stat: token.TokenStat) -> Array:
    """[B, N]: the statistic summed over the tokens of each response."""
    return numerics.masked_sum(self[stat], self.mask)

  def mean(self, stat: token.TokenStat) -> Array:
    """[B, N]: the statistic averaged over the tokens of each response; 0 for an empty response."""
    return numerics.masked_mean(self[stat], self.mask)

  def first(self, stat: path.PathStat) -> Array:
    """[B, N]: the path statistic of whole responses, that of their first token; 0 for an empty response."""
    return self[stat][..., 0]

  def log_ratio(self) -> Array:
    """[B, N]: log pi(y|x) - log pi_ref(y|x) of each response, nats."""
    # Subtract token by token: the difference of two sums over hundreds of tokens would carry the rounding of the sums.
    return numerics.masked_sum(self[token.logp] - self[token.reference_logp], self.mask)
