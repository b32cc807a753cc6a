"""Response statistics: one number per response from the policy's hidden states, such as a value or a reward.

The table holds them with the token statistics: an objective names them in its `needs` and reads `table[stat]`.
"""

from collections.abc import Callable
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from alignjax.types import Array, Head, PreferenceBatch


@dataclasses.dataclass(frozen=True)
class ResponseStat:
  """A named function of (hidden states [B, N, R, D], head, batch) -> [B, N]. Gradients flow into the policy.

  Two statistics with the same name are the same statistic. If a batch has `cached[name]`, [B, N], these values are used
  and the function is not called. Nothing is masked: the function selects the states that it reads, as in `last_state`.
  """

  name: str
  function: Callable[[Array, Head, PreferenceBatch], Array] = dataclasses.field(compare=False, repr=False)
  policy: ClassVar[bool] = True  # it reads the policy's hidden states
  reference: ClassVar[bool] = False  # it does not read those of the reference

  def __call__(self, states: Array, head: Head, batch: PreferenceBatch) -> Array:
    values = self.function(states, head, batch)
    if values.shape != states.shape[:2]:
      raise ValueError(
        f'the response statistic {self.name!r} must return one value for each response, shape {states.shape[:2]}, '
        f'got {values.shape}'
      )
    return values


def last_state(states: Array, batch: PreferenceBatch) -> Array:
  """[B, N, D]: the hidden state that predicts the last token of each response, so it has read all tokens before it.

  An empty response gives the state that has read its prompt.

  Args:
    states: [B, N, R, D]; entry t predicts response token t.
    batch: the batch of the responses.
  """
  last = jnp.maximum(jnp.asarray(batch.response_length) - 1, 0)
  return jnp.take_along_axis(states, last[..., None, None], axis=2)[:, :, 0]
