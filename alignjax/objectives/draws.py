"""Random draws for objectives that are random by definition: functions of the pair itself and nothing else."""

import jax
import jax.numpy as jnp

from alignjax import numerics
from alignjax.types import Array, PreferenceBatch

READS = frozenset({'prompt', 'prompt_length', 'response', 'response_length'})  # what `row_keys` depends on
_IMPLEMENTATION = 'threefry2x32'  # fixed, so that the draws do not depend on JAX's configuration


def row_keys(batch: PreferenceBatch) -> Array:
  """One PRNG key for each row, derived from the tokens of prompt and responses, their positions and their number.

  The key of a row does not depend on the content or width of the padding, on its place in the batch, or on how the
  batch is sharded or split into microbatches. So no random state needs to be carried or checkpointed. The price is that
  a pair meets the same draws in every epoch.

  Args:
    batch: reads its prompts, its responses and their lengths.

  Returns:
    [B] keys.
  """
  root = jax.random.key(0, impl=_IMPLEMENTATION)
  prompt, response = jnp.asarray(batch.prompt)[:, None], jnp.asarray(batch.response)
  data = _digest(jax.random.fold_in(root, 0), prompt, jnp.asarray(batch.prompt_length)[:, None])
  data += _digest(jax.random.fold_in(root, 1), response, batch.response_length)
  return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def _digest(key: Array, tokens: Array, length: Array) -> Array:
  """[B, 2] uint32 of token ids [B, N, T]; reads the first `length` [B, N] tokens of each response."""
  places = _each(key, (tokens.shape[1], tokens.shape[2]))
  hashed = jax.random.key_data(jax.vmap(jax.vmap(jax.vmap(jax.random.fold_in)), in_axes=(None, 0))(places, tokens))
  mask = numerics.length_mask(length, tokens.shape[-1])
  # Sums of integers modulo 2^32 do not depend on their order; the position is part of each summand.
  return jnp.sum(jnp.where(mask[..., None], hashed, jnp.uint32(0)), axis=(1, 2), dtype=jnp.uint32)


def token_bits(keys: Array, responses: int, size: int) -> Array:
  """[B, N, R] uint32: random bits for each token of each response, independent of the padding width.

  Args:
    keys: [B], as from `row_keys`.
    responses: N.
    size: R.
  """
  bits = jax.vmap(jax.vmap(jax.vmap(jax.random.bits)))
  return bits(jax.vmap(lambda key: _each(key, (responses, size)))(keys))


def _each(key: Array, shape: tuple[int, int]) -> Array:
  """Keys of the given shape; the key at an index does not depend on the shape."""
  rows, columns = (jnp.arange(size, dtype=jnp.uint32) for size in shape)
  of_row = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(of_row, (0, None))(of_row(key, rows), columns)
