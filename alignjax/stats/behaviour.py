"""Log-probabilities under the policy that wrote the responses of a batch, per token or per response."""

import jax
import jax.numpy as jnp

from alignjax import numerics
from alignjax.types import Array, PreferenceBatch

BEHAVIOUR_TOKEN_LOGP = 'behaviour_token_logp'  # a key of `PreferenceBatch.cached`: [B, N, R] nats


def behaviour_token_logp(batch: PreferenceBatch) -> Array | None:
  """[B, N, R] nats, 0 at padding, without gradient; None if the batch has no values per token."""
  if BEHAVIOUR_TOKEN_LOGP not in batch.cached:
    return None
  values = jax.lax.stop_gradient(jnp.asarray(batch.cached[BEHAVIOUR_TOKEN_LOGP], jnp.float32))
  return jnp.where(numerics.length_mask(batch.response_length, values.shape[-1]), values, 0.0)


def behaviour_logp(batch: PreferenceBatch) -> Array | None:
  """[B, N]: log pi_data(y|x) of each response, nats, without gradient; None if the batch does not have it.

  It is `batch.behaviour_logp`; if only `batch.cached['behaviour_token_logp']` is present, the sum of that over tokens.
  """
  if batch.behaviour_logp is not None:
    return jax.lax.stop_gradient(jnp.asarray(batch.behaviour_logp, jnp.float32))
  tokens = behaviour_token_logp(batch)
  return None if tokens is None else jnp.sum(tokens, axis=-1)
