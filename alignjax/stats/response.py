"""Response statistics: numbers from the policy's hidden states, per response as a reward, or per token as a value.

The table holds them with the token statistics: an objective names them in its `needs` and reads `table[stat]`.
"""

from collections.abc import Callable
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from alignjax.types import Array, Head, PreferenceBatch


@dataclasses.dataclass(frozen=True)
class ResponseStat:
  """A named function of (hidden states, head, batch) -> [B, N] or [B, N, R]. Gradients flow into the policy.

  Two statistics with the same name are the same statistic. If a batch has `cached[name]`, these values are used and the
  function is not called. States are not masked: the function selects those that it reads, as in `last_state`.

  Attributes:
    name: its name in the table.
    function: the function. Its states are [B, N, R, D], entry t predicts response token t.
    final: whether its states are [B, N, D] instead: the state after the last token of each response.
    per_token: whether it returns one number per token, [B, N, R], instead of one per response.
    score: whether it reads the score head.
  """

  name: str
  function: Callable[[Array, Head, PreferenceBatch], Array] = dataclasses.field(compare=False, repr=False)
  final: bool = False
  per_token: bool = False
  score: bool = False
  policy: ClassVar[bool] = True  # it reads the policy's hidden states
  reference: ClassVar[bool] = False  # it does not read those of the reference

  def __call__(self, states: Array, head: Head, batch: PreferenceBatch) -> Array:
    values = self.function(states, head, batch)
    each, axes = ('token', 3) if self.per_token else ('response', 2)
    shape = batch.response.shape[:axes]
    if values.shape != shape:
      raise ValueError(
        f'the response statistic {self.name!r} must return one value for each {each}, shape {shape}, got {values.shape}'
      )
    return values


def _score(name: str) -> Callable[[Array, Head, PreferenceBatch], Array]:
  """<score, h> of states [..., D], with products and sum in float32 for any compute dtype."""

  def score(states: Array, head: Head, batch: PreferenceBatch) -> Array:
    del batch
    if head.score is None:
      raise ValueError(
        f'the statistic `{name}` needs a model with a score head: load or build the model with output="score" or '
        'output="both"'
      )
    kernel = jnp.expand_dims(head.score.astype(jnp.float32)[:, 0], range(states.ndim - 1))
    return jnp.sum(states.astype(jnp.float32) * kernel, axis=-1)

  return score


reward = ResponseStat('reward', _score('reward'), final=True, score=True)
"""[B, N]: r(x, y) = <score, h>, with h the final hidden state after the last token of the response, its end token."""


value = ResponseStat('value', _score('value'), per_token=True, score=True)
"""[B, N, R]: V(s_t) = <score, h_t>, with h_t the final hidden state that predicts response token t: a critic."""


def final_states(states: Array, batch: PreferenceBatch) -> Array:
  """[B, N, D]: the state after the last token of each response; for an empty response, the state after its prompt.

  Args:
    states: [B, N, R + 1, D], of responses padded by one token; entry t is the state before response token t.
    batch: the batch of the responses, without this padding.
  """
  return jnp.take_along_axis(states, jnp.asarray(batch.response_length)[..., None, None], axis=2)[:, :, 0]


def last_state(states: Array, batch: PreferenceBatch) -> Array:
  """[B, N, D]: the hidden state that predicts the last token of each response, so it has read all tokens before it.

  An empty response gives the state that has read its prompt.

  Args:
    states: [B, N, R, D]; entry t predicts response token t.
    batch: the batch of the responses.
  """
  last = jnp.maximum(jnp.asarray(batch.response_length) - 1, 0)
  return jnp.take_along_axis(states, last[..., None, None], axis=2)[:, :, 0]
