"""The types shared by all layers.

Axis names in the shape comments of the library:

  B  prompts in a batch                 D  width of a hidden state
  N  responses to one prompt            V  vocabulary
  P  prompt tokens (right-padded)       L  layers
  R  response tokens (right-padded)

and of packed batches:

  S  packed rows                        M  response tokens of a row, at most
  T  positions of a row                 E  pairs of blocks of a row that see each other, at most
  G  prompts of a row, at most

Response 0 is the preferred one, with the probability `label`. Log-probabilities are in nats; `*_logp` is per token
unless a comment says otherwise.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
BLOCK = 64  # positions of a packed row whose attention is computed together
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

  @property
  def examples(self) -> 'PreferenceBatch':
    """The prompts with their responses, one row each, as objectives see them."""
    return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedRows:
  """S rows of T positions. Each holds several whole prompts, each of them once, followed by its branches.

  A branch is a response behind the last token of its prompt, so its positions are those that predict its tokens:

    tokens    x0 x0 x0 | x0 y00 y00 | x0 y01 || x1 | x1 y10 || padding
    segment   0  0  0    0  0   0     0  0      1    1  1     -1
    branch    0  0  0    1  1   1     2  2      0    1  1     0
    position  0  1  2    3  4   5     3  4      0    1  2     0

  A position sees those before it, and itself, that belong to its segment and to the prompt or its own branch.
  """

  tokens: Array  # [S, T] int32
  segment: Array  # [S, T] int32, the place of the prompt in its row; -1 for padding
  branch: Array  # [S, T] int32, 0 for the prompt, n + 1 for response n
  position: Array  # [S, T] int32, counted from the first token of the prompt
  # [S, E, 2] int32: the blocks of BLOCK positions, of queries and of keys, of which some may see each other, ordered by
  # the first; -1 for padding.
  pairs: Array
  predicting: Array  # [S, M] int32, the positions that predict response tokens: response after response
  target: Array  # [S, M] int32, the tokens that they predict
  first: Array  # [S, G, N] int32, where in `predicting` a response starts
  final: Array | None  # [S, G, N] int32, the position of the last token of a response; None if rows leave it out
  longest: int = dataclasses.field(
    metadata={'static': True}
  )  # tokens of the longest prompt with a response in the data


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedBatch(PreferenceBatch):
  """Packed rows with their prompts: the fields of `PreferenceBatch` are [S, G, ...] instead of [B, ...].

  A row with fewer than G prompts is filled up with prompts of weight 0. In `cached`, hidden states are stored where
  they are read, [S, M, D] as `PackedRows.target`.
  """

  rows: PackedRows | None = None

  @property
  def examples(self) -> PreferenceBatch:
    """The prompts with their responses, [S * G, ...]. Cached hidden states are left out."""
    fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(PreferenceBatch)}
    fields['cached'] = {
      name: value for name, value in self.cached.items() if value.shape[:3] == self.response.shape[:3]
    }
    return PreferenceBatch(**jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), fields))


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
