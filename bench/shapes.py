"""Model configurations for benchmarks, without weights."""

from alignjax.models import transformer

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
