"""Makes the files that all contenders of bench.peers.training read: a policy, a reference that differs, and pairs."""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors

from bench.peers import protocol

LIMIT = 512  # tokens of a ragged prompt, and of a ragged response
SPECIAL = 3  # ids below are those of padding, start and end, and are not drawn

# config.json of a Llama of 27 million parameters.
LLAMA = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 32_000,
  'hidden_size': 384,
  'num_hidden_layers': 8,
  'num_attention_heads': 6,
  'num_key_value_heads': 6,
  'head_dim': 64,
  'intermediate_size': 1024,
  'max_position_embeddings': 2048,
  'rms_norm_eps': 1e-5,
  'rope_theta': 1e6,
  'tie_word_embeddings': True,
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'torch_dtype': 'float32',
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
QUICK_LLAMA = LLAMA | {
  'vocab_size': 1024,
  'hidden_size': 128,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'intermediate_size': 256,
}
DIFFERENCE = 0.5  # of the reference's matrices from the policy's, relative to their size


def write_models(folder: pathlib.Path, entries: dict) -> None:
  """Writes the policy and the reference as Hugging Face folders with random weights in float32."""
  rng = np.random.default_rng(0)
  policy = {name: _drawn(rng, shape) for name, shape in shapes(entries).items()}
  write_model(folder / protocol.POLICY, entries, policy)
  reference = {
    name: value + DIFFERENCE * _drawn(rng, value.shape) if value.ndim == 2 else value for name, value in policy.items()
  }
  write_model(folder / protocol.REFERENCE, entries, reference)


def shapes(entries: dict) -> dict[str, tuple[int, ...]]:
  """The tensors of a Llama with tied embeddings, by name."""
  width, mlp = entries['hidden_size'], entries['intermediate_size']
  queries, keys = (entries['head_dim'] * entries[f'num_{which}_heads'] for which in ('attention', 'key_value'))
  layer = {
    'self_attn.q_proj': (queries, width),
    'self_attn.k_proj': (keys, width),
    'self_attn.v_proj': (keys, width),
    'self_attn.o_proj': (width, queries),
    'mlp.gate_proj': (mlp, width),
    'mlp.up_proj': (mlp, width),
    'mlp.down_proj': (width, mlp),
    'input_layernorm': (width,),
    'post_attention_layernorm': (width,),
  }
  found = {'model.embed_tokens.weight': (entries['vocab_size'], width), 'model.norm.weight': (width,)}
  for index in range(entries['num_hidden_layers']):
    found |= {f'model.layers.{index}.{name}.weight': shape for name, shape in layer.items()}
  return found


def _drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return np.ones(shape, np.float32) if len(shape) == 1 else 0.02 * rng.standard_normal(shape, np.float32)


def write_model(folder: pathlib.Path, entries: dict, tensors: dict[str, np.ndarray]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(entries, indent=2), encoding='utf-8')
  safetensors.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})


def uniform_pairs(vocabulary: int, count: int, prompt: int, response: int) -> list[protocol.Pair]:
  """Random pairs whose prompts and responses all have these lengths."""
  rng = np.random.default_rng(1)
  return [_pair(rng, vocabulary, (prompt, response, response)) for _ in range(count)]


def ragged_pairs(vocabulary: int, count: int, scale: float = 1.0) -> list[protocol.Pair]:
  """Random pairs with log-normal lengths like those of HH, all multiplied by `scale`."""
  rng = np.random.default_rng(2)
  median, spread = np.array([122, 31, 31]), np.array([0.7, 0.9, 0.9])
  lengths = np.clip(median * np.exp(spread * rng.standard_normal((count, 3))), 4, LIMIT)
  return [_pair(rng, vocabulary, np.ceil(scale * row).astype(int)) for row in lengths]


def _pair(rng: np.random.Generator, vocabulary: int, lengths: tuple[int, int, int] | np.ndarray) -> protocol.Pair:
  return protocol.Pair(*(rng.integers(SPECIAL, vocabulary, length, dtype=np.int32) for length in lengths))
