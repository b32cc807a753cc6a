"""Draws responses from a language model, all samples of a prompt from one prefill."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax import numerics
from alignjax.models import base
from alignjax.sampling import strategies
from alignjax.types import Array, Head, Params


class Samples(NamedTuple):
  """Responses drawn from a model, right-padded with 0."""

  response: Array  # [B, N, R] int32, the end token included
  response_length: Array  # [B, N] int32
  finished: Array  # [B, N] bool, False where a response ran into R tokens without an end token
  logp: Array  # [B, N, R] float32, nats, under the model's own distribution: temperature 1, nothing excluded; 0 at padding
  strategy_logp: Array  # [B, N, R] float32, nats, under the distribution drawn from; 0 at padding


def sample(
  model: base.LanguageModel,
  params: Params,
  prompt: Array,
  prompt_length: Array,
  key: Array,
  *,
  samples: int,
  max_new_tokens: int,
  strategy: strategies.Strategy,
  end_ids: Sequence[int],
  row_ids: Array | None = None,
) -> Samples:
  rows, max_tokens = prompt.shape[0], max_new_tokens
  row_ids = jnp.arange(rows) if row_ids is None else row_ids
  keys = _row_keys(key, row_ids, samples)
  last = jnp.take_along_axis(prompt, prompt_length[:, None] - 1, axis=1)
  head = model.head(params)
  import dataclasses
  head = dataclasses.replace(head, kernel=head.kernel.astype(model.config.compute_dtype))
  state = _State(
    cache=model.prefill(params, prompt, prompt_length, samples=samples, max_new_tokens=max_new_tokens),
    index=jnp.zeros((), jnp.int32),
    token=jnp.broadcast_to(last, (rows, samples)),
    done=jnp.zeros((rows, samples), bool),
    length=jnp.zeros((rows, samples), jnp.int32),
    response=jnp.zeros((rows, samples, max_tokens), jnp.int32),
    logp=jnp.zeros((rows, samples, max_tokens)),
    strategy_logp=jnp.zeros((rows, samples, max_tokens)),
  )
  ends = jnp.asarray(end_ids, jnp.int32)

  def body(state):
    cache, hidden = model.decode(params, state.cache, state.token)
    logits = _logits(hidden, head)
    token, strategy_logp = strategies.draw(strategy(logits), _uniform(keys, state.index))
    logp = numerics.select(logits, token) - jax.nn.logsumexp(logits, axis=-1)
    live = ~state.done
    def put(x, y): return jax.lax.dynamic_update_index_in_dim(x, jnp.where(live, y, 0).astype(x.dtype), state.index, axis=2)
    return _State(cache, state.index + 1, token, state.done | jnp.any(token[..., None] == ends[None, None], axis=-1), state.length + live,
      put(state.response, token), put(state.logp, logp), put(state.strategy_logp, strategy_logp))
  state = jax.lax.while_loop(lambda s: (s.index < max_tokens) & ~jnp.all(s.done), body, state)
  return Samples(state.response, state.length, state.done, state.logp, state.strategy_logp)


class _State(NamedTuple):
  cache: object
  index: Array
  token: Array
  done: Array
  length: Array
  response: Array
  logp: Array
  strategy_logp: Array

def _logits(states, head):
  logits = numerics.project(states, head.kernel)
  if head.bias is not None:
    logits = logits + jnp.expand_dims(head.bias.astype(jnp.float32), range(logits.ndim - 1))
  if head.soft_cap is not None:
    logits = head.soft_cap * jnp.tanh(logits / head.soft_cap)
  return logits

def _row_keys(key, row_ids, samples):
  of_row = jax.vmap(lambda row: jax.random.fold_in(key, row))(row_ids)
  return jax.vmap(lambda k: jax.vmap(lambda s: jax.random.fold_in(k, s))(jnp.arange(samples)))(of_row)

def _uniform(keys, index):
  return jax.vmap(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, index), (2,))))(keys)
