"""Random batches and logits that several test modules share."""

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.types import PreferenceBatch


def preference_batch(
  seed: int = 0, prompts: int = 6, responses: int = 2, prompt_size: int = 5, response_size: int = 7, vocab: int = 11
) -> PreferenceBatch:
  """A batch with uneven lengths, soft and hard labels, uneven weights, scores and behaviour log-probabilities."""
  rng = np.random.default_rng(seed)
  return PreferenceBatch(
    prompt=jnp.asarray(rng.integers(0, vocab, (prompts, prompt_size)), jnp.int32),
    prompt_length=jnp.asarray(rng.integers(1, prompt_size + 1, prompts), jnp.int32),
    response=jnp.asarray(rng.integers(0, vocab, (prompts, responses, response_size)), jnp.int32),
    response_length=jnp.asarray(rng.integers(1, response_size + 1, (prompts, responses)), jnp.int32),
    label=jnp.asarray(rng.choice([1.0, 1.0, 0.8, 0.3], prompts), jnp.float32),
    weight=jnp.asarray(rng.choice([1.0, 0.5, 2.0], prompts), jnp.float32),
    score=jnp.asarray(rng.normal(size=(prompts, responses)), jnp.float32),
    behaviour_logp=jnp.asarray(-3.0 * rng.exponential(size=(prompts, responses)), jnp.float32),
  )


def logits(seed: int, batch: PreferenceBatch, vocab: int = 11, scale: float = 2.0) -> jax.Array:
  """[B, N, R, V] float32."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(scale * rng.standard_normal((*batch.response.shape, vocab)), jnp.float32)
