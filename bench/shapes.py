"""Model configurations, without weights, and random batches for benchmarks."""

import jax.numpy as jnp
import numpy as np

from alignjax.models import transformer
from alignjax.types import PreferenceBatch

SMOLLM2_135M = transformer.TransformerConfig(
  vocab_size=49_152,
  width=576,
  layers=30,
  heads=9,
  kv_heads=3,
  head_width=64,
  mlp_width=1536,
  norm_epsilon=1e-5,
  rope_theta=1e5,
  tied_embeddings=True,
  max_positions=8192,
)

# A narrow model with a vocabulary of realistic size, so that the head takes about half of the time of a step.
NARROW = transformer.TransformerConfig(
  vocab_size=16_384,
  width=256,
  layers=4,
  heads=4,
  kv_heads=2,
  head_width=64,
  mlp_width=768,
  norm_epsilon=1e-5,
  rope_theta=1e5,
  tied_embeddings=True,
  max_positions=1024,
)


def random_pairs(vocabulary: int, prompts: int, prompt: int, response: int) -> PreferenceBatch:
  """A batch of random tokens and full-length responses, two per prompt, with scores."""
  rng, shape = np.random.default_rng(0), (prompts, 2, response)
  return PreferenceBatch(
    prompt=jnp.asarray(rng.integers(0, vocabulary, (prompts, prompt)), jnp.int32),
    prompt_length=jnp.full(prompts, prompt, jnp.int32),
    response=jnp.asarray(rng.integers(0, vocabulary, shape), jnp.int32),
    response_length=jnp.full(shape[:2], response, jnp.int32),
    label=jnp.ones(prompts),
    weight=jnp.ones(prompts),
    score=jnp.asarray(rng.standard_normal(shape[:2]), jnp.float32),
  )
