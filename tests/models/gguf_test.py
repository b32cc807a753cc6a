"""Tests of the conversion of GGUF files, on files that the `gguf` package writes."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import tokenizers

from alignjax.models import checkpoint_io, gguf, transformer
from tests import assets
from tests.models import gguf_files

TEXTS = (
  'The film was wonderful',
  '  two spaces, 1234 digits and 5.6',
  "don't\n\n\tindent   ",
  'naïve 漢字 🎉👩‍👧 مرحبا e\u0301',
  '<|im_start|>user\nhi<|im_end|>\n',
  'a<|endoftext|>b <|im_end',
  '\x00\x7f\u200b',
)


@pytest.mark.parametrize('tied', [True, False])
def test_tensors_are_dequantised_and_laid_out_as_in_a_hugging_face_folder(tmp_path, tied):
  gguf.convert(gguf_files.write(tmp_path / 'a.gguf', tied=tied), tmp_path / 'out')
  found = safetensors_numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  _, expected, pairs = gguf_files.tensors_of(tied)
  assert found.keys() == set(pairs.values())
  for name, stored in pairs.items():
    assert found[stored].dtype == np.float32
    if name not in gguf_files.QUANTISED:
      np.testing.assert_array_equal(found[stored], expected[name])
      continue
    # Rounding errors: half a step of 1 / 127 of the largest of 32 neighbours, with a scale in half precision; 2^-11.
    blocks = np.abs(expected[name]).reshape(expected[name].shape[0], -1, 32).max(axis=-1, keepdims=True)
    bound = {'Q8_0': 0.51 / 127 + 2**-11, 'F16': 2**-11}[gguf_files.QUANTISED[name]] * np.repeat(blocks, 32, axis=-1)
    error = np.abs(found[stored] - expected[name]).reshape(bound.shape)
    assert (error <= bound).all()
    assert error.max() > 0


def test_the_folder_is_one_that_everything_else_reads(tmp_path):
  gguf.convert(gguf_files.write(tmp_path / 'a.gguf'), tmp_path / 'out')
  expected = assets.write_tiny_model(tmp_path / 'expected')
  config = checkpoint_io.load_config(tmp_path / 'out')
  assert config == checkpoint_io.load_config(expected)
  assert config.norm_epsilon == 1e-5  # not the nearest single-precision number
  params = checkpoint_io.load_params(tmp_path / 'out', config)
  model = transformer.build(config)
  prompt, response = np.array([[1, 70, 80]], np.int32), np.array([[[90, 100, 2]]], np.int32)
  batch = prompt, np.array([3]), response, np.array([[3]])
  close = checkpoint_io.load_params(expected, config)
  actual, wanted = (jax.jit(model.hidden)(p, *batch) for p in (params, close))
  assert np.abs(actual - wanted).max() < 0.05  # of order 1; what is left is the quantisation of three tensors


def test_the_tokenizer_encodes_as_the_original(tmp_path):
  gguf.convert(gguf_files.write(tmp_path / 'a.gguf'), tmp_path / 'out')
  found = tokenizers.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  original = assets.build_tokenizer()
  assert found.get_vocab() == original.get_vocab()
  for text in TEXTS:
    ids = found.encode(text).ids
    assert ids == original.encode(text).ids
    assert found.decode(ids, skip_special_tokens=False) == text
  assert found.encode('<|im_start|>user').ids[0] == 1
  assert found.encode('The film').tokens == ['The', 'Ġfilm']
  assert found.decode(found.encode('a<|im_end|>').ids, skip_special_tokens=True) == 'a'


def test_digits_stay_apart_even_where_a_merge_would_join_them(tmp_path):
  metadata = gguf_files.default_metadata()
  tokens = [*metadata['tokenizer.ggml.tokens'][:-1], '20']
  merges = [*metadata['tokenizer.ggml.merges'][:-1], '2 0']
  changes = {'tokenizer.ggml.tokens': tokens, 'tokenizer.ggml.merges': merges}
  gguf.convert(gguf_files.write(tmp_path / 'a.gguf', metadata=changes), tmp_path / 'out')
  found = tokenizers.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  assert found.encode('x2020').tokens == ['x', '2', '0', '2', '0']


def test_template_and_special_tokens_travel_along(tmp_path):
  gguf.convert(gguf_files.write(tmp_path / 'a.gguf', metadata={'tokenizer.ggml.add_bos_token': True}), tmp_path / 'out')
  settings = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
  expected = {
    'bos_token': '<|im_start|>',
    'eos_token': '<|im_end|>',
    'pad_token': '<|im_end|>',
    'unk_token': '<|endoftext|>',
    'add_bos_token': True,
    'chat_template': assets.CHAT_TEMPLATE,
  }
  assert settings | expected == settings
  ids = {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 2}
  assert json.loads((tmp_path / 'out' / 'generation_config.json').read_text()) == ids
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config | ids == config


def test_optional_entries_may_be_absent(tmp_path):
  optional = dict.fromkeys(
    ['llama.vocab_size', 'llama.rope.freq_base', 'llama.rope.dimension_count', 'tokenizer.chat_template']
    + ['tokenizer.ggml.padding_token_id', 'tokenizer.ggml.unknown_token_id', 'tokenizer.ggml.add_bos_token']
  )
  gguf.convert(gguf_files.write(tmp_path / 'a.gguf', metadata=optional), tmp_path / 'out')
  expected = assets.write_tiny_model(tmp_path / 'expected')
  assert checkpoint_io.load_config(tmp_path / 'out') == checkpoint_io.load_config(expected)
  settings = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
  assert not {'chat_template', 'pad_token', 'unk_token'} & settings.keys()
  assert settings['add_bos_token'] is False


@pytest.mark.parametrize(
  ('metadata', 'message'),
  [
    ({'general.architecture': 'gpt2'}, r"general\.architecture='gpt2': only 'llama'"),
    ({'llama.block_count': None}, r'llama\.block_count is missing'),
    ({'llama.expert_count': 8}, r'llama\.expert_count=8 \(unknown\)'),
    ({'llama.rope.scaling.type': 'linear'}, r"llama\.rope\.scaling\.type='linear'"),
    ({'llama.rope.dimension_count': 4}, r'blk\.0\.attn_k\.weight \(expected'),
    ({'llama.attention.key_length': 16}, 'contradict each other.*key_length=16'),
    ({'llama.vocab_size': 383}, r'llama\.vocab_size=383, but the tokenizer has 384 tokens'),
    ({'tokenizer.ggml.model': 'llama'}, r"tokenizer\.ggml\.model='llama': only 'gpt2'"),
    ({'tokenizer.ggml.pre': 'llama-bpe'}, r"tokenizer\.ggml\.pre='llama-bpe' is not supported; known: smollm"),
    ({'tokenizer.ggml.pre': None}, r'tokenizer\.ggml\.pre is missing'),
    ({'tokenizer.ggml.merges': None}, r'tokenizer\.ggml\.merges is missing'),
    ({'tokenizer.ggml.add_space_prefix': True}, r'tokenizer\.ggml\.add_space_prefix=True'),
    ({'tokenizer.ggml.token_type': [3, 3, 3, 4] + [1] * 380}, r"token '!' has type 4"),
    ({'tokenizer.ggml.token_type': [3, 3, 3]}, r'token_type has 3 entries for 384 tokens'),
    ({'tokenizer.ggml.tokens': ['same'] * 384}, 'repeats a token'),
    ({'tokenizer.ggml.merges': ['no token']}, r'a\.gguf: .*[Tt]oken'),
    ({'tokenizer.ggml.eos_token_id': 384}, r'token ids out of range for 384 tokens: tokenizer\.ggml\.eos_token_id=384'),
  ],
)
def test_unsupported_metadata_is_refused_by_name(tmp_path, metadata, message):
  path = gguf_files.write(tmp_path / 'a.gguf', metadata=metadata)
  with pytest.raises(ValueError, match=message) as caught:
    gguf.convert(path, tmp_path / 'out')
  assert str(path) in str(caught.value)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('tensors', 'message'),
  [
    ({'rope_freqs.weight': np.ones(4, np.float32)}, r'tensors unexpected: rope_freqs\.weight'),
    ({'blk.1.attn_v.weight': None}, r'tensors missing: blk\.1\.attn_v\.weight'),
    ({'output_norm.weight': np.ones(31, np.float32)}, r'output_norm\.weight \(expected \(32,\), found \(31,\)\)'),
    ({'output_norm.weight': np.full(32, np.inf, np.float32)}, r'a\.gguf: tensor output_norm\.weight .*not finite'),
  ],
)
def test_unfit_tensors_are_refused_by_name(tmp_path, tensors, message):
  with pytest.raises(ValueError, match=message):
    gguf.convert(gguf_files.write(tmp_path / 'a.gguf', tensors=tensors), tmp_path / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['a.gguf']


def test_malformed_files_are_refused_by_name(tmp_path):
  intact = gguf_files.write(tmp_path / 'a.gguf').read_bytes()
  path = tmp_path / 'broken.gguf'
  for content in (b'', b'not a model', intact[:3], intact[:40], intact[: len(intact) // 2], intact[:-400]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'broken\.gguf'):
      gguf.convert(path, tmp_path / 'out')
  with pytest.raises(ValueError, match=r'nowhere\.gguf'):
    gguf.convert(tmp_path / 'nowhere.gguf', tmp_path / 'out')


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with pytest.raises(ImportError, match=r"extra 'demo': pip install 'alignjax\[demo\]'"):
    gguf.convert(tmp_path / 'a.gguf', tmp_path / 'out')
