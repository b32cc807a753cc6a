"""The types shared by all layers.

Axis names in the shape comments of the library:

  B  prompts in a batch                 D  width of a hidden state
  N  responses to one prompt            V  vocabulary
  P  prompt tokens (right-padded)       L  layers
  R  response tokens (right-padded)

Response 0 is the preferred one, with the probability `label`. Log-probabilities are in nats; `*_logp` is per token
unless a comment says otherwise.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any  # a nested dict of arrays, as optax, orbax and `jax.tree` see it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreferenceBatch:
  """B prompts with N responses each. Each prompt is stored and encoded once for all of its responses.

  Lengths determine what is padding, not token ids, because the pad token may equal the end token.
  """

  prompt: Array  # [B, P] int32, right-padded
  prompt_length: Array  # [B] int32, at least 1
  response: Array  # [B, N, R] int32, right-padded, the end token included
  response_length: Array  # [B, N] int32
  label: Array  # [B] float32, P(response 0 is preferred to response 1); for N = 1, P(the response is desirable)
  weight: Array  # [B] float32, 0 for a padding row
  score: Array | None = None  # [B, N] float32, the reward of each response
  behaviour_logp: Array | None = None  # [B, N] float32, nats per response, under the policy that generated it
  # Precomputed statistics by name: [B, N, R, ...] per token, or [B, N] per response. Also `behaviour_token_logp`,
  # [B, N, R], the log-probability of each token in nats under the policy that generated it.
  cached: Mapping[str, Array] = dataclasses.field(default_factory=dict)


class Term(NamedTuple):
  """The result of an objective: one loss per prompt, not reduced."""

  loss: Array  # [B] float32
  metrics: Mapping[str, Array]  # [B] each, without gradients


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
  """A weighted mean before division, so that it adds up over microbatches, hosts and evaluation batches."""

  total: Array
  weight: Array

  @classmethod
  def of(cls, values: Array, weight: Array) -> 'WeightedSum':
    """Sums `values` [B] with weights `weight` [B]. Rows of weight 0 are ignored, even if their value is not finite."""
    return cls(jnp.sum(jnp.where(weight > 0, weight * values, 0.0)), jnp.sum(weight))

  def __add__(self, other: 'WeightedSum') -> 'WeightedSum':
    return WeightedSum(self.total + other.total, self.weight + other.weight)

  def mean(self) -> Array:
    """total / weight, or 0 if the weight is 0."""
    return self.total / jnp.where(self.weight > 0, self.weight, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
  """Maps a hidden state to logits, `soft_cap * tanh((h @ kernel + bias) / soft_cap)`, and to a reward, `h @ score`.

  A language model has no `score`, and a reward model need not have a `kernel`.
  """

  kernel: Array | None  # [D, V]
  bias: Array | None = None  # [V]
  soft_cap: float | None = dataclasses.field(default=None, metadata={'static': True})
  score: Array | None = None  # [D, 1]
