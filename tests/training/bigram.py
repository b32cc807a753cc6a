"""A language model of a few operations, for tests of what is around a model: it compiles much faster than a decoder."""

import jax.numpy as jnp
import numpy as np

from alignjax.models import base
from alignjax.types import Array, Head, PackedRows, Params

VOCAB, WIDTH = 24, 8


def params(seed: int, vocab: int = VOCAB) -> Params:
  """Under names that have a place on a mesh."""
  rng = np.random.default_rng(seed)
  embedding, kernel = (jnp.asarray(rng.standard_normal((rows, WIDTH)), jnp.float32) for rows in (vocab, WIDTH))
  return {'embed': {'embedding': embedding}, 'up': {'kernel': kernel}}


def _hidden(params: Params, prompt: Array, prompt_length: Array, response: Array, response_length: Array) -> Array:
  """The state of a position is a function of the token before it."""
  del response_length
  last = jnp.take_along_axis(jnp.asarray(prompt), jnp.asarray(prompt_length)[:, None] - 1, axis=1)
  response = jnp.asarray(response)
  first = jnp.broadcast_to(last[:, None], (*response.shape[:2], 1))
  before = jnp.concatenate([first, response[:, :, :-1]], axis=2)
  return jnp.tanh(params['embed']['embedding'][before] @ params['up']['kernel'])


def _packed(params: Params, rows: PackedRows, read: Array) -> Array:
  """The same of packed rows."""
  before = jnp.take_along_axis(jnp.asarray(rows.tokens), jnp.asarray(read), axis=1)
  return jnp.tanh(params['embed']['embedding'][before] @ params['up']['kernel'])


# Embeddings are tied: their gradient comes from the head and through the states.
MODEL = base.LanguageModel(
  config=None,
  init=lambda key: params(0),
  hidden=_hidden,
  head=lambda params: Head(params['embed']['embedding'].T),
  prefill=None,
  decode=None,
  packed=_packed,
)
