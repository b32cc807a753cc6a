"""GPT-2 and GPT-NeoX as they were published: their entries, and checkpoints with names and masks of their own."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, folders, gpt_families
from tests.models import entries

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def test_published_entries_are_read():
  assert gpt_families.GPT2.parse(entries.GPT2) == entries.GPT2_FIELDS
  assert gpt_families.GPT_NEOX.parse(entries.NEOX) == entries.NEOX_FIELDS
  larger = {'n_special': 0, 'output_past': True, 'predict_special_tokens': True}  # and distilled ones
  labels = {'_num_labels': 1, 'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
  assert gpt_families.GPT2.parse(entries.GPT2 | larger | labels) == entries.GPT2_FIELDS


def test_second_names_of_a_setting_may_agree():
  second = {'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12, 'max_position_embeddings': 1024}
  assert gpt_families.GPT2.parse(entries.GPT2 | second) == entries.GPT2_FIELDS
  saved_by_transformers_4 = {  # of a Pythia that transformers 4.57 has saved
    'attention_bias': True,
    'attention_dropout': 0.0,
    'classifier_dropout': 0.1,
    'hidden_dropout': 0.0,
    'partial_rotary_factor': 0.25,
    'rope_scaling': None,
    'rope_theta': 10000,
  }
  assert gpt_families.GPT_NEOX.parse(entries.NEOX | saved_by_transformers_4) == entries.NEOX_FIELDS


def test_absent_entries_take_the_numbers_of_each_family():
  keys = ('layer_norm_epsilon', 'n_ctx', 'n_positions')
  fewer = {key: value for key, value in entries.GPT2.items() if key not in keys}
  assert gpt_families.GPT2.parse(fewer) == entries.GPT2_FIELDS
  assert gpt_families.GPT2.parse(entries.GPT2 | {'n_inner': 100})['mlp_width'] == 100
  keys = ('layer_norm_eps', 'max_position_embeddings', 'rotary_emb_base', 'rotary_pct', 'use_parallel_residual')
  fewer = {key: value for key, value in entries.NEOX.items() if key not in keys}
  assert gpt_families.GPT_NEOX.parse(fewer) == entries.NEOX_FIELDS


def test_gpt_neox_reads_the_rotary_positions_of_both_layouts():
  rope = {'rope_type': 'default', 'rope_theta': 20.0, 'partial_rotary_factor': 0.5}
  new = {key: value for key, value in entries.NEOX.items() if not key.startswith('rotary')} | {'rope_parameters': rope}
  expected = entries.NEOX_FIELDS | {'rope_theta': 20.0, 'rotary_fraction': 0.5}
  assert gpt_families.GPT_NEOX.parse(new) == expected
  assert gpt_families.GPT_NEOX.parse(entries.NEOX | {'rotary_emb_base': 20, 'rotary_pct': 0.5}) == expected


@pytest.mark.parametrize(
  ('written', 'changes', 'named'),
  [
    (entries.GPT2, {'activation_function': 'relu'}, "activation_function='relu'"),
    (entries.GPT2, {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True'),
    (entries.GPT2, {'scale_attn_weights': False}, 'scale_attn_weights=False'),
    (entries.GPT2, {'add_cross_attention': True}, 'add_cross_attention=True'),
    (entries.GPT2, {'architectures': ['GPT2Model']}, "architectures=['GPT2Model']"),
    (entries.GPT2, {'rope_theta': 10000.0}, 'rope_theta=10000.0 (unknown)'),
    (entries.GPT2, {'rope_scaling': {'factor': 2.0}}, 'rope_scaling.factor=2.0 (unknown)'),
    (entries.GPT2, {'n_ctx': 512}, 'n_positions=1024, n_ctx=512'),
    (entries.NEOX, {'hidden_act': 'gelu_fast'}, "hidden_act='gelu_fast'"),
    (entries.GPT2, {'hidden_size': 512}, 'contradict each other: n_embd=768, hidden_size=512'),
    (entries.NEOX, {'rope_theta': 20000}, 'contradict each other: rotary_emb_base=10000, rope_theta=20000'),
    (entries.NEOX, {'partial_rotary_factor': 0.5}, 'contradict each other: rotary_pct=0.25, partial_rotary_factor=0.5'),
    (entries.NEOX, {'rotary_pct': 1.5, 'rotary_dim': 3}, 'rotary_dim=3 (unknown)'),
    (entries.NEOX, {'num_key_value_heads': 2}, 'num_key_value_heads=2 (unknown)'),
  ],
)
def test_what_is_not_supported_is_refused_by_name(written, changes, named):
  family = gpt_families.GPT2 if written is entries.GPT2 else gpt_families.GPT_NEOX
  with pytest.raises(ValueError) as caught:  # noqa: PT011, the name is compared below
    family.parse(written | changes)
  assert named in str(caught.value)


def _copy(name, folder, weights):
  """A golden model, with its weights as `weights` makes them."""
  shutil.copytree(GOLDEN / name, folder)
  path = folder / folders.WEIGHTS
  safetensors_numpy.save_file(weights(safetensors_numpy.load_file(path)), path)
  return folder


@pytest.mark.parametrize('name', ['gpt2', 'gpt_neox'])
def test_published_checkpoints_have_masks_and_gpt2_no_prefix(name, tmp_path):
  def published(weights):
    mask = np.ones((1, 1, 64, 64), bool)
    if name == 'gpt2':
      plain = {tensor.removeprefix('transformer.'): value for tensor, value in weights.items()}
      return plain | {f'h.{layer}.attn.bias': mask.astype(np.float32) for layer in range(2)}
    masks = {f'gpt_neox.layers.{layer}.attention.bias': mask for layer in range(2)}
    return weights | masks | {f'gpt_neox.layers.{layer}.attention.masked_bias': np.array(-1e9) for layer in range(2)}

  folder = _copy(name, tmp_path / 'published', published)
  config = checkpoint_io.load_config(folder)
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint_io.load_params(folder, config),
    checkpoint_io.load_params(GOLDEN / name, config),
  )


def test_learnt_positions_are_neither_cut_nor_made_up(tmp_path):
  config = checkpoint_io.load_config(GOLDEN / 'gpt2', max_positions=32)
  with pytest.raises(ValueError, match=r'transformer\.wpe\.weight \(expected \(32, 24\), found \(64, 24\)\)'):
    checkpoint_io.load_params(GOLDEN / 'gpt2', config)


def test_one_misplaced_tensor_is_named(tmp_path):
  folder = _copy(
    'gpt2', tmp_path / 'model', lambda weights: {name.replace('h.1.', 'h.7.'): weights[name] for name in weights}
  )
  with pytest.raises(ValueError, match=r'tensors missing: transformer\.h\.1\..*unexpected: transformer\.h\.7\.'):
    checkpoint_io.load_params(folder, checkpoint_io.load_config(folder))
