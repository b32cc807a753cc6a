"""Small batches of token ids, small decoders, and parameters at which nothing is degenerate."""

import dataclasses

import jax
import numpy as np

from alignjax.models import layers, transformer
from alignjax.types import PreferenceBatch

CONFIG = transformer.TransformerConfig(
  vocab_size=31,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_width=6,
  mlp_width=24,
  norm_epsilon=0.01,
  rope_theta=100.0,
  tied_embeddings=True,
  max_positions=128,
)
FAMILY = {  # what families of the kind of Llama add, all at once
  'qkv_bias': True,
  'output_bias': True,
  'mlp_bias': True,
  'qk_norm': True,
  'local_rope_theta': 30.0,
  'rotary_fraction': 0.7,
  'rope_scaling': layers.Llama3Scaling(8.0, 1.0, 4.0, 40),
  'sliding_window': 4,
  'full_attention_every': 2,
  'activation': 'gelu_tanh',
  'zero_centred_norms': True,
  'output_norms': True,
  'scaled_embeddings': True,
  'score_width': 9,
  'score_cap': 1.5,
  'logit_cap': 2.0,
}
GPT = {  # what replaces a part of Llama in families of another kind, with norms over all heads
  'rope_theta': None,
  'qkv_bias': True,
  'joint_qk_norm': True,
  'activation': 'gelu',
  'gated_mlp': False,
  'norm': 'layer',
  'input_norms': False,
  'output_norms': True,
  'parallel_residual': True,
}


def params(model, seed=11):
  """Random parameters of the shapes of `model`, made by numpy: compiling `init` takes longer than most tests.

  Norm scales are away from the neutral one, so that none of them can be forgotten.
  """
  offset = float(model.config.zero_centred_norms)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return (rng.uniform(0.7, 1.4, leaf.shape) - offset).astype(np.float32)
    if path[-1].key == 'bias':
      return rng.standard_normal(leaf.shape).astype(np.float32)
    fan_in = leaf.shape[-1] if path[-1].key == 'embedding' else leaf.shape[-2]
    return (rng.standard_normal(leaf.shape) * fan_in**-0.5).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def batch(seed, prompt, samples, response, prompts=4):
  """Uneven lengths, among them a prompt of one token, a full prompt and a full response."""
  rng = np.random.default_rng(seed)
  prompt_length = rng.integers(2, prompt, prompts)
  response_length = rng.integers(1, response, (prompts, samples))
  prompt_length[0], prompt_length[1], response_length[1, 0] = 1, prompt, response
  return PreferenceBatch(
    prompt=rng.integers(0, CONFIG.vocab_size, (prompts, prompt)).astype(np.int32),
    prompt_length=prompt_length.astype(np.int32),
    response=rng.integers(0, CONFIG.vocab_size, (prompts, samples, response)).astype(np.int32),
    response_length=response_length.astype(np.int32),
    label=np.ones(prompts, np.float32),
    weight=np.ones(prompts, np.float32),
  )


def valid(batch):
  """[B, N, R] bool, False at padding."""
  return np.arange(batch.response.shape[2]) < batch.response_length[..., None]


def distinct(prompts, prompt, samples, response):
  """No token occurs twice in a row; the prompts of odd rows are one token shorter."""
  rng, size = np.random.default_rng(0), prompt + samples * response
  ids = np.stack([rng.permutation(CONFIG.vocab_size)[:size] for _ in range(prompts)]).astype(np.int32)
  return dataclasses.replace(
    batch(0, prompt, samples, response, prompts),
    prompt=ids[:, :prompt],
    prompt_length=(prompt - np.arange(prompts) % 2).astype(np.int32),
    response=ids[:, prompt:].reshape(prompts, samples, response),
    response_length=np.full((prompts, samples), response, np.int32),
  )


def with_other_padding(original):
  """Changes every token that stands at padding, and no other."""
  prompt_padding = np.arange(original.prompt.shape[1]) >= original.prompt_length[:, None]
  response_padding = ~valid(original)
  return dataclasses.replace(
    original,
    prompt=np.where(prompt_padding, (original.prompt + 7) % CONFIG.vocab_size, original.prompt),
    response=np.where(response_padding, (original.response + 9) % CONFIG.vocab_size, original.response),
  )


def concatenated(original):
  """The same sequences without sharing: the first token as the prompt, all others as its one response.

  Returns:
    The batch, and the index into its [B * N, 1, T] entries of the original's valid response entries, in their order.
  """
  sequences, where = [], ([], [], [])
  for b, prompt_length in enumerate(original.prompt_length):
    for n, length in enumerate(original.response_length[b]):
      for t in range(length):
        for axis, position in zip(where, (len(sequences), 0, prompt_length - 1 + t), strict=True):
          axis.append(position)
      sequences.append(np.concatenate([original.prompt[b, :prompt_length], original.response[b, n, :length]]))
  size = max(map(len, sequences)) - 1
  rows = len(sequences)
  plain = PreferenceBatch(
    prompt=np.array([[sequence[0]] for sequence in sequences], np.int32),
    prompt_length=np.ones(rows, np.int32),
    response=np.array([[np.pad(sequence[1:], (0, size + 1 - len(sequence)))] for sequence in sequences], np.int32),
    response_length=np.array([[len(sequence) - 1] for sequence in sequences], np.int32),
    label=np.ones(rows, np.float32),
    weight=np.ones(rows, np.float32),
  )
  return plain, tuple(map(np.array, where))
