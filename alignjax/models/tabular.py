"""An exact language model: a table of logits with one row for each context of the last few tokens.

It implements every function of `base.LanguageModel` with a handful of parameters and no approximation. Objectives,
samplers and training loops can therefore be checked against closed-form optima and enumerated probabilities.

  logits [C, V], C = (V + 1)^order: contexts are numbers in base V + 1, where the digit V means 'before the start'
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax.models import base
from alignjax.types import Array, Head, Params


@dataclasses.dataclass(frozen=True)
class TabularConfig:
  """The size of the table. With order > R, every prefix of a response has its own context.

  Raises:
    ValueError: a size is not positive, or there are too many contexts to number in int32.
  """

  vocab_size: int  # V
  order: int  # tokens of context

  def __post_init__(self):
    if self.vocab_size < 1 or self.order < 1:
      raise ValueError(f'vocab_size={self.vocab_size} and order={self.order} must both be at least 1')
    if (self.vocab_size + 1) ** (self.order + 1) > 2**31:
      raise ValueError(f'order={self.order} with vocab_size={self.vocab_size} has too many contexts: lower one of them')

  @property
  def contexts(self) -> int:
    """C, the number of rows of the table and the width of a hidden state."""
    return (self.vocab_size + 1) ** self.order

  def context(self, tokens: Sequence[int]) -> int:
    """The row of the table that predicts the token after `tokens` (prompt and response so far)."""
    digits = [self.vocab_size] * self.order + list(tokens)
    row = 0
    for digit in digits[-self.order :]:
      row = row * (self.vocab_size + 1) + digit
    return row


class Cache(NamedTuple):
  """The context of each sample, which is the only decoding state of a table."""

  context: Array  # [B, N] int32


def build(config: TabularConfig) -> base.LanguageModel:
  """Builds the table as a language model: hidden states are one-hot contexts, and the head is the table."""
  digit = config.vocab_size + 1

  def init(key: Array) -> Params:
    return {'logits': jax.random.normal(key, (config.contexts, config.vocab_size))}

  def push(context: Array, token: Array) -> Array:
    return (context * digit + token) % config.contexts

  def of_prompt(prompt: Array, length: Array) -> Array:
    """[B] contexts after the first `length` tokens of each prompt."""
    context = jnp.full(length.shape, config.contexts - 1, jnp.int32)
    for i in range(prompt.shape[1]):
      context = jnp.where(i < length, push(context, prompt[:, i]), context)
    return context

  def hidden(params: Params, prompt: Array, prompt_length: Array, response: Array, response_length: Array) -> Array:
    del params, response_length
    response = jnp.asarray(response)
    context = jnp.broadcast_to(of_prompt(jnp.asarray(prompt), jnp.asarray(prompt_length))[:, None], response.shape[:2])
    contexts = [context]
    for t in range(response.shape[2] - 1):
      contexts.append(push(contexts[-1], response[:, :, t]))
    return jax.nn.one_hot(jnp.stack(contexts, axis=2), config.contexts)

  def prefill(params: Params, prompt: Array, prompt_length: Array, samples: int, max_new_tokens: int) -> Cache:
    del params, max_new_tokens
    context = of_prompt(jnp.asarray(prompt), jnp.asarray(prompt_length) - 1)
    return Cache(jnp.broadcast_to(context[:, None], (prompt.shape[0], samples)))

  def decode(params: Params, cache: Cache, token: Array) -> tuple[Cache, Array]:
    del params
    context = push(cache.context, token)
    return Cache(context), jax.nn.one_hot(context, config.contexts)

  return base.LanguageModel(
    config=config,
    init=init,
    hidden=hidden,
    head=lambda params: Head(params['logits']),
    prefill=prefill,
    decode=decode,
  )
