"""Random batches and logits that several test modules share."""

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import stats
from alignjax.types import PreferenceBatch


def preference_batch(
  seed: int = 0, prompts: int = 6, responses: int = 2, prompt_size: int = 5, response_size: int = 7, vocab: int = 11
) -> PreferenceBatch:
  """A batch with uneven lengths, soft and hard labels, uneven weights, scores and behaviour log-probabilities."""
  rng = np.random.default_rng(seed)
  return PreferenceBatch(
    prompt=_array(rng.integers(0, vocab, (prompts, prompt_size)), np.int32),
    prompt_length=_array(rng.integers(1, prompt_size + 1, prompts), np.int32),
    response=_array(rng.integers(0, vocab, (prompts, responses, response_size)), np.int32),
    response_length=_array(rng.integers(1, response_size + 1, (prompts, responses)), np.int32),
    label=_array(rng.choice([1.0, 1.0, 0.8, 0.3], prompts), np.float32),
    weight=_array(rng.choice([1.0, 0.5, 2.0], prompts), np.float32),
    score=_array(rng.normal(size=(prompts, responses)), np.float32),
    behaviour_logp=_array(-3.0 * rng.exponential(size=(prompts, responses)), np.float32),
  )


def logits(seed: int, batch: PreferenceBatch, vocab: int = 11, scale: float = 2.0) -> jax.Array:
  """[B, N, R, V] float32."""
  rng = np.random.default_rng(seed)
  return _array(scale * rng.standard_normal((*batch.response.shape, vocab)), np.float32)


def from_logits(needs, policy: jax.Array, reference: jax.Array | None, batch: PreferenceBatch) -> stats.StatTable:
  """`stats.from_logits` as one program, which all objectives with the same needs share: op by op it is slow."""
  return _from_logits(frozenset(needs), policy, reference, batch)


_from_logits = jax.jit(stats.from_logits, static_argnums=0)


def _array(values: np.ndarray, dtype: type) -> jax.Array:
  """Casts with numpy, since a cast with JAX compiles a program for each shape."""
  return jnp.asarray(values.astype(dtype))
