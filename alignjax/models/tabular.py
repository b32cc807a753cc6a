"""An exact language model: a table of logits with one row for each context of the last few tokens.

It has every function of `base.LanguageModel`, no approximation and a handful of parameters, so that closed-form optima
and probabilities enumerated by hand can be compared with what objectives, samplers and training loops do.

  logits [C, V], C = (V + 1)^order: contexts are numbers in base V + 1, in which the digit V says 'before the start'
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
  """The size of the table. With order > R, a context tells all prefixes of a response apart.

  Raises:
    ValueError: if a size is not positive, or the contexts are too many to be numbered.
  """

  vocab_size: int  # V
  order: int  # tokens of context

  def __post_init__(self):
    if self.vocab_size < 1 or self.order < 1:
      raise ValueError(f'vocab_size={self.vocab_size} and order={self.order} must both be at least 1')
    if (self.vocab_size + 1) ** (self.order + 1) > 2**31:
      raise ValueError(f'order={self.order} over vocab_size={self.vocab_size} tokens has too many contexts: lower one')

  @property
  def contexts(self) -> int:
    """C, the rows of the table and the width of a hidden state."""
    return (self.vocab_size + 1) ** self.order

  def context(self, tokens: Sequence[int]) -> int:
    """The row of the table that predicts what follows `tokens`, prompt and response so far."""
    digits = [self.vocab_size] * self.order + list(tokens)
    row = 0
    for digit in digits[-self.order :]:
      row = row * (self.vocab_size + 1) + digit
    return row


class Cache(NamedTuple):
  """The context of each sample, which is all that a table remembers."""

  context: Array  # [B, N] int32


def build(config: TabularConfig) -> base.LanguageModel:
  """Builds the table as a language model: one-hot contexts are its hidden states, the table is its head."""
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
