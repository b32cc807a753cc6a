"""Tiny GGUF files, as the `gguf` package writes them."""

import json

import gguf as gguf_format
import numpy as np

from tests import assets

HEADS, KV_HEADS, HEAD_WIDTH, LAYERS = 4, 2, 8, 2
NAMES = {  # GGUF: Hugging Face, of one layer
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
QUANTISED = {'token_embd.weight': 'Q8_0', 'blk.0.attn_q.weight': 'Q8_0', 'blk.1.ffn_down.weight': 'F16'}


def _interleave(rows, heads):
  """llama.cpp keeps row i of the first half of a head at 2 i, and row i of the second half at 2 i + 1."""
  half = rows.shape[0] // heads // 2
  result = np.empty_like(rows)
  for head in range(heads):
    for index in range(half):
      for side in range(2):
        result[head * 2 * half + 2 * index + side] = rows[head * 2 * half + side * half + index]
  return result


def tensors_of(tied):
  """The tensors of a tiny Llama as GGUF names and lays them out, and as Hugging Face does."""
  weights = assets.tiny_llama_weights(assets.tiny_llama_config(tied=tied))
  pairs = {'token_embd.weight': 'model.embed_tokens.weight', 'output_norm.weight': 'model.norm.weight'}
  if not tied:
    pairs['output.weight'] = 'lm_head.weight'
  for layer in range(LAYERS):
    pairs |= {f'blk.{layer}.{ours}.weight': f'model.layers.{layer}.{theirs}.weight' for ours, theirs in NAMES.items()}
  assert sorted(pairs.values()) == sorted(weights)
  tensors = {}
  for name, stored in pairs.items():
    heads = {'attn_q': HEADS, 'attn_k': KV_HEADS}.get(name.split('.')[-2])
    tensors[name] = _interleave(weights[stored], heads) if heads else weights[stored]
  return tensors, {name: weights[stored] for name, stored in pairs.items()}, pairs


def default_metadata():
  """The entries of a tiny Llama with its tokenizer."""
  vocabulary = json.loads(assets.build_tokenizer().to_str())['model']
  tokens = sorted(vocabulary['vocab'], key=vocabulary['vocab'].get)
  return {
    'general.architecture': 'llama',
    'llama.block_count': LAYERS,
    'llama.context_length': 512,
    'llama.embedding_length': 32,
    'llama.feed_forward_length': 64,
    'llama.attention.head_count': HEADS,
    'llama.attention.head_count_kv': KV_HEADS,
    'llama.rope.freq_base': 10000.0,
    'llama.rope.dimension_count': HEAD_WIDTH,
    'llama.attention.layer_norm_rms_epsilon': 1e-5,
    'llama.vocab_size': 384,
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'smollm',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': [3, 3, 3] + [1] * 381,
    'tokenizer.ggml.merges': [' '.join(pair) for pair in vocabulary['merges']],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.unknown_token_id': 0,
    'tokenizer.ggml.padding_token_id': 2,
    'tokenizer.ggml.add_bos_token': False,
    'tokenizer.chat_template': assets.CHAT_TEMPLATE,
  }


def _add(writer, key, value):
  if isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  elif isinstance(value, str):
    writer.add_string(key, value)
  else:
    writer.add_array(key, value)


def write(path, *, tied=True, metadata=None, tensors=None):
  """Writes a tiny GGUF file; in `metadata` and `tensors`, None removes."""
  metadata = default_metadata() | (metadata or {})
  writer = gguf_format.GGUFWriter(path, metadata.pop('general.architecture'))
  for key, value in metadata.items():
    if value is not None:
      _add(writer, key, value)
  for name, value in (tensors_of(tied)[0] | (tensors or {})).items():
    if value is not None:
      kind = gguf_format.GGMLQuantizationType[QUANTISED.get(name, 'F32')]
      writer.add_tensor(name, gguf_format.quants.quantize(value, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
