"""Samples responses from a language model, with one prefill for all samples of a prompt."""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from alignjax import numerics, stats
from alignjax.models import base, transposed
from alignjax.sampling import strategies
from alignjax.types import Array, Head, Params


class Prompts(NamedTuple):
  """B prompts to sample responses to."""

  tokens: Array  # [B, P] int32, right-padded
  length: Array  # [B] int32, at least 1
  row_ids: Array | None = None  # [B] int32, ids of the prompts for random draws; None for 0 .. B - 1


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How responses are drawn.

  Raises:
    ValueError: `samples` or `max_new_tokens` is below 1, or an end id is negative.
  """

  samples: int  # N, the number of responses per prompt
  max_new_tokens: int  # R, the number of tokens after which a response is cut off
  strategy: strategies.Strategy = dataclasses.field(default_factory=strategies.chain)  # the model's own distribution
  end_ids: Sequence[int] = ()  # ids of the tokens that end a response; if empty, every response has R tokens
  constrain: base.Constrain = lambda x, _: x  # shards the logits by 'batch' and 'vocab', then by 'row'

  def __post_init__(self):
    if self.samples < 1 or self.max_new_tokens < 1:
      raise ValueError(f'samples={self.samples} and max_new_tokens={self.max_new_tokens} must both be at least 1')
    if any(end < 0 for end in self.end_ids):
      raise ValueError(f'end_ids={tuple(self.end_ids)} must not be negative')


class Samples(NamedTuple):
  """N responses to each of B prompts, with at most R tokens each. All arrays are 0 at padding."""

  response: Array  # [B, N, R] int32, right-padded, the end token included
  response_length: Array  # [B, N] int32
  finished: Array  # [B, N] bool, False if a response was cut off after R tokens without an end token
  logp: Array  # [B, N, R] float32, nats, under the model's own distribution: temperature 1, no truncation
  strategy_logp: Array  # [B, N, R] float32, nats, under the distribution of the strategy


def sample(model: base.LanguageModel, params: Params, prompts: Prompts, key: Array, decoding: Decoding) -> Samples:
  """Draws N responses to each prompt, token by token, until all of them have ended.

  Call it under `jax.jit`; otherwise every call compiles the loop again.

  Args:
    model: the model to sample from.
    params: the parameters of the model, perhaps laid out by `model.lay_out`.
    prompts: the prompts to respond to.
    key: a typed PRNG key. The draws of a response depend only on the key, its row id and its index among the samples.
    decoding: the number and length of responses, and the strategy.
  """
  samples, max_new_tokens, strategy = decoding.samples, decoding.max_new_tokens, decoding.strategy
  prompt, prompt_length, row_ids = jnp.asarray(prompts.tokens), jnp.asarray(prompts.length), prompts.row_ids
  chex.assert_rank(prompt, 2, custom_message='prompts.tokens must be [B, P]')
  chex.assert_shape(prompt_length, prompt.shape[:1], custom_message='prompts.length must be [B]')
  shape = (prompt.shape[0], samples)
  keys = _row_keys(key, jnp.arange(shape[0]) if row_ids is None else row_ids, samples)
  ends = jnp.asarray(decoding.end_ids, jnp.int32).reshape(1, 1, -1)
  head, weights = model.head(params), model.lay_out(params)
  state = _State(
    cache=model.prefill(weights, prompt, prompt_length, samples=samples, max_new_tokens=max_new_tokens),
    index=jnp.zeros((), jnp.int32),
    token=jnp.broadcast_to(jnp.take_along_axis(prompt, prompt_length[:, None] - 1, axis=1), shape).astype(jnp.int32),
    samples=Samples(
      response=jnp.zeros((*shape, max_new_tokens), jnp.int32),
      response_length=jnp.zeros(shape, jnp.int32),
      finished=jnp.zeros(shape, bool),
      logp=jnp.zeros((*shape, max_new_tokens)),
      strategy_logp=jnp.zeros((*shape, max_new_tokens)),
    ),
  )
  head = _laid_out(head, jax.eval_shape(model.decode, weights, state.cache, state.token)[1].dtype)

  def unfinished(state: _State) -> Array:
    return (state.index < max_new_tokens) & ~jnp.all(state.samples.finished)

  def step(state: _State) -> _State:
    cache, hidden = model.decode(weights, state.cache, state.token)
    # The product leaves the vocabulary split like the head. Drawing needs whole rows, so each logit moves once.
    logits = decoding.constrain(stats.logits(stats.HiddenStates(hidden, head)), ('batch', None, 'vocab'))
    logits = decoding.constrain(logits, ('row', None, None))
    drawn_from = strategy(logits)
    token, strategy_logp = strategies.draw(drawn_from, _uniform(keys, state.index))
    # If the strategy returns the logits unchanged, skip two passes over the vocabulary.
    logp = strategy_logp if drawn_from is logits else numerics.select(jax.nn.log_softmax(logits), token)
    drawn = state.samples
    live = ~drawn.finished

    def put(values: Array, new: Array) -> Array:
      return jax.lax.dynamic_update_index_in_dim(values, jnp.where(live, new, 0), state.index, axis=2)

    drawn = Samples(
      response=put(drawn.response, token),
      response_length=drawn.response_length + live,
      finished=drawn.finished | jnp.any(token[..., None] == ends, axis=-1),
      logp=put(drawn.logp, logp),
      strategy_logp=put(drawn.strategy_logp, strategy_logp),
    )
    return _State(cache, state.index + 1, token, drawn)

  return jax.lax.while_loop(unfinished, step, state).samples


class _State(NamedTuple):
  cache: Any
  index: Array  # [] int32, number of tokens drawn so far
  token: Array  # [B, N] int32, the last token of each response
  samples: Samples


def _laid_out(head: Head, dtype: jnp.dtype) -> Head:
  """Casts and lays out the kernel once before the loop; otherwise every step would."""
  return dataclasses.replace(head, kernel=transposed.Transposed.of(head.kernel.astype(dtype), jnp.float32))


def _row_keys(key: Array, row_ids: Array, samples: int) -> Array:
  """[B, N] keys, one for each row id and sample index."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return jax.vmap(fold, in_axes=(0, None))(fold(key, jnp.asarray(row_ids)), jnp.arange(samples))


def _uniform(keys: Array, index: Array) -> Array:
  """[B, N, 2]: the uniform numbers of token `index`, which do not depend on `max_new_tokens`."""
  return jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, index), (2,))))(keys)
