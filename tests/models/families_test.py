"""Tests of the declared families: config.json in, config.json out, and names."""

import dataclasses
import json

import pytest

from alignjax.models import declaration, families, layers, transformer
from tests import assets

REMOVED = object()
OLD = {  # as transformers 4 writes it, with entries of well-known checkpoints
  '_name_or_path': 'someone/model',
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 1,
  'eos_token_id': [2, 3],
  'hidden_act': 'silu',
  'hidden_size': 576,
  'initializer_range': 0.04,
  'intermediate_size': 1536,
  'is_llama_config': True,
  'max_position_embeddings': 8192,
  'mlp_bias': False,
  'model_type': 'llama',
  'num_attention_heads': 9,
  'num_hidden_layers': 30,
  'num_key_value_heads': 3,
  'pad_token_id': 2,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_interleaved': False,
  'rope_scaling': None,
  'rope_theta': 100000,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
  'transformers_version': '4.42.3',
  'use_cache': True,
  'vocab_size': 49152,
}
FIELDS = {
  'model_type': 'llama',
  'vocab_size': 49152,
  'width': 576,
  'layers': 30,
  'heads': 9,
  'kv_heads': 3,
  'head_width': 64,
  'mlp_width': 1536,
  'norm_epsilon': 1e-5,
  'rope_theta': 100000.0,
  'tied_embeddings': True,
  'max_positions': 8192,
  'rope_scaling': None,
}
LLAMA_FIELDS = FIELDS | {'qkv_bias': False, 'output_bias': False, 'mlp_bias': False}
LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
MISTRAL = {'model_type': 'mistral', 'architectures': ['MistralForCausalLM'], 'sliding_window': 4096}
QWEN2 = {
  'model_type': 'qwen2',
  'architectures': ['Qwen2ForCausalLM'],
  'use_sliding_window': False,
  'sliding_window': 32768,
  'max_window_layers': 21,
  'layer_types': ['full_attention'] * 30,
}
QWEN3 = QWEN2 | {'model_type': 'qwen3', 'architectures': ['Qwen3ForCausalLM'], 'attention_bias': False, 'head_dim': 128}
GEMMA2 = {
  'model_type': 'gemma2',
  'architectures': ['Gemma2ForCausalLM'],
  'attention_bias': False,
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_activation': 'gelu_pytorch_tanh',
  'cache_implementation': 'hybrid',
  'head_dim': 128,
  'query_pre_attn_scalar': 144,
  'sliding_window': 2048,
  'attn_logit_softcapping': 40.0,
  'final_logit_softcapping': 20,
  'layer_types': ['sliding_attention', 'full_attention'] * 15,
}
GEMMA3 = {
  'model_type': 'gemma3_text',
  'architectures': ['Gemma3ForCausalLM'],
  'attention_bias': False,
  'hidden_act': REMOVED,
  'hidden_activation': 'gelu_pytorch_tanh',
  'cache_implementation': 'hybrid',
  'head_dim': 128,
  'query_pre_attn_scalar': 144,
  'rope_local_base_freq': 10000.0,
  'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
}
OLMO2 = {'model_type': 'olmo2', 'architectures': ['Olmo2ForCausalLM'], 'attention_bias': False}
PHI3 = {
  'model_type': 'phi3',
  'architectures': ['Phi3ForCausalLM'],
  'attention_bias': False,
  'auto_map': {'AutoConfig': 'configuration_phi3.Phi3Config'},
  'embd_pdrop': 0.0,
  'original_max_position_embeddings': 4096,
  'resid_pdrop': 0.0,
  'sliding_window': 2047,
}
GEMMA2_FIELDS = {
  'model_type': 'gemma2',
  'activation': 'gelu_tanh',
  'full_attention_every': 2,
  'output_norms': True,
  'scaled_embeddings': True,
  'zero_centred_norms': True,
  'head_width': 128,
  'score_width': 144,
  'sliding_window': 2048,
  'score_cap': 40.0,
  'logit_cap': 20.0,
}
GEMMA3_FIELDS = GEMMA2_FIELDS | {
  'model_type': 'gemma3_text',
  'full_attention_every': 6,
  'qk_norm': True,
  'local_rope_theta': 10000.0,
  'rope_scaling': layers.LinearScaling(8.0),
  'sliding_window': 512,
  'score_cap': None,
  'logit_cap': None,
}
OLMO2_FIELDS = {'model_type': 'olmo2', 'input_norms': False, 'joint_qk_norm': True, 'output_norms': True}
PHI3_FIELDS = {'model_type': 'phi3', 'rotary_fraction': 1.0, 'sliding_window': 2047}


def _changed(**changes):
  return {key: value for key, value in (OLD | changes).items() if value is not REMOVED}


def _parse(entries, **changes):
  """Parses the entries of another family, with those of OLD that it has too."""
  llama = dict.fromkeys(('attention_bias', 'mlp_bias', 'rope_interleaved'), REMOVED)
  return families.by_type(entries['model_type']).parse(_changed(**llama | entries | changes))


def test_reads_the_entries_of_transformers_4():
  assert families.LLAMA.parse(OLD) == LLAMA_FIELDS


def test_reads_the_entries_of_transformers_5():
  rope = {'rope_theta': 100000.0, 'rope_type': 'default'}
  new = _changed(
    rope_theta=REMOVED, rope_scaling=REMOVED, torch_dtype=REMOVED, rope_parameters=rope, dtype='bfloat16', head_dim=64
  )
  assert families.LLAMA.parse(new) == LLAMA_FIELDS


def test_absent_and_null_entries_take_the_defaults_of_the_family():
  keys = ('num_key_value_heads', 'rms_norm_eps', 'rope_theta', 'tie_word_embeddings', 'max_position_embeddings')
  expected = LLAMA_FIELDS | {
    'kv_heads': 9, 'norm_epsilon': 1e-6, 'rope_theta': 10000.0, 'tied_embeddings': False, 'max_positions': 2048
  }  # fmt: skip
  assert families.LLAMA.parse(_changed(**dict.fromkeys(keys, REMOVED))) == expected
  assert families.LLAMA.parse(_changed(**dict.fromkeys(keys), head_dim=None)) == expected


def test_head_width_may_differ_from_width_over_heads():
  assert families.LLAMA.parse(_changed(head_dim=128))['head_width'] == 128


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, "rope_scaling.type='dynamic' (only 'default', 'linear', "),
    ({'rope_scaling': {'rope_type': 'yarn', 'beta_fast': 2}}, 'rope_scaling.beta_fast=2'),
    ({'rope_scaling': {'rope_type': ['llama3']}}, "rope_scaling.rope_type=['llama3']"),
    ({'rope_scaling': {'rope_type': 'linear', 'type': 'llama3'}}, "rope_type='linear', rope_scaling.type='llama3'"),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'rope_scaling.low_freq_factor is missing'),
    ({'rope_scaling': {'rope_type': 'linear', 'factor': 0.0}}, 'rope_scaling.factor=0.0'),
    ({'rope_scaling': {'rope_type': 'linear'} | LLAMA3}, 'rope_scaling.low_freq_factor=1.0 (unknown)'),
    ({'rope_scaling': {'factor': 8.0}}, 'rope_scaling.factor=8.0 (unknown)'),
    ({'rope_scaling': {'rope_type': 'llama3', **LLAMA3, 'high_freq_factor': 1.0}}, 'high_frequency_factor=1.0'),
    (
      {
        'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
        'rope_parameters': {'rope_type': 'linear', 'factor': 4.0},
      },
      'rope_scaling.factor=2.0, rope_parameters.factor=4.0',
    ),
    ({'rope_scaling': {}}, 'rope_scaling={}'),
    ({'rope_scaling': 'llama3'}, "rope_scaling='llama3'"),
    ({'rope_parameters': {'rope_type': 'longrope', 'rope_theta': 1e5}}, "rope_parameters.rope_type='longrope'"),
    ({'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}}, 'rope_theta=100000, rope_parameters.rope_theta'),
    ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'rope_parameters.partial_rotary_factor=0.5'),
    ({'rope_interleaved': True}, 'rope_interleaved=True'),
    ({'attention_bias': 1}, 'attention_bias=1'),
    ({'mlp_bias': 'yes'}, "mlp_bias='yes'"),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu'"),
    ({'architectures': ['LlamaForSequenceClassification']}, 'LlamaForSequenceClassification'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config.bits=4'),
    ({'sliding_window': 4096}, 'sliding_window=4096'),
    ({'hidden_size': REMOVED}, 'hidden_size is missing'),
    ({'vocab_size': None}, 'vocab_size is missing'),
    ({'hidden_size': '576'}, "hidden_size='576'"),
    ({'hidden_size': 576.0}, 'hidden_size=576.0'),
    ({'hidden_size': True}, 'hidden_size=True'),
    ({'num_hidden_layers': 0}, 'num_hidden_layers=0'),
    ({'num_hidden_layers': 10**400}, 'num_hidden_layers=1000'),
    ({'rms_norm_eps': -1e-5}, 'rms_norm_eps=-1e-05'),
    ({'rms_norm_eps': float('nan')}, 'rms_norm_eps=nan'),
    ({'rope_theta': float('inf')}, 'rope_theta=inf'),
    ({'tie_word_embeddings': 1}, 'tie_word_embeddings=1'),
    ({'tie_word_embeddings': 'true'}, "tie_word_embeddings='true'"),
  ],
)
def test_what_is_not_supported_is_refused_by_name(changes, named):
  with pytest.raises(ValueError) as caught:  # noqa: PT011, the name is compared below
    families.LLAMA.parse(_changed(**changes))
  assert named in str(caught.value)


@pytest.mark.parametrize('place', ['rope_scaling', 'rope_parameters'])
def test_reads_scaled_rotary_positions_of_both_layouts(place):
  linear = families.LLAMA.parse(_changed(**{place: {'type': 'linear', 'factor': 2}}))
  assert linear['rope_scaling'] == layers.LinearScaling(2.0)
  llama3 = families.LLAMA.parse(_changed(**{place: {'rope_type': 'llama3'} | LLAMA3}))
  assert llama3['rope_scaling'] == layers.Llama3Scaling(8.0, 1.0, 4.0, 8192)
  assert families.LLAMA.parse(_changed(**{place: {'rope_type': 'default'}})) == LLAMA_FIELDS


@pytest.mark.parametrize(
  ('entries', 'changes', 'named'),
  [
    (QWEN2, {'use_sliding_window': True}, 'use_sliding_window=True'),
    (QWEN2, {'layer_types': ['full_attention', 'sliding_attention']}, "layer_types=['full_attention', 'sliding_"),
    (QWEN2, {'layer_types': 'full_attention'}, "layer_types='full_attention'"),
    (QWEN2, {'num_key_value_heads': REMOVED}, 'num_key_value_heads is missing'),
    (QWEN2, {'use_mrope': True}, 'use_mrope=True'),
    (QWEN2, {'rope_scaling': {'type': 'yarn', 'factor': 4.0}}, "rope_scaling.type='yarn'"),
    (QWEN3, {'use_sliding_window': True}, 'use_sliding_window=True'),
    (QWEN3, {'attention_bias': True}, 'attention_bias=True'),
    (MISTRAL, {'sliding_window': 0}, 'sliding_window=0'),
    (MISTRAL, {'sliding_window': 4096.0}, 'sliding_window=4096.0'),
    (MISTRAL, {'layer_types': ['full_attention']}, "layer_types=['full_attention']"),
    (GEMMA2, {'layer_types': ['full_attention', 'sliding_attention']}, "layer_types=['full_attention', 'sliding_"),
    (GEMMA2, {'hidden_activation': 'gelu'}, "hidden_activation='gelu'"),
    (GEMMA2, {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
    (GEMMA2, {'attn_logit_softcapping': -1.0}, 'attn_logit_softcapping=-1.0'),
    (GEMMA3, {'sliding_window_pattern': 4}, 'sliding_window_pattern=4'),
    (GEMMA3, {'layer_types': ['full_attention']}, "layer_types=['full_attention']"),
    (GEMMA3, {'rope_parameters': {'rope_type': 'linear'}}, "rope_parameters.rope_type='linear' (unknown)"),
    (
      GEMMA3,
      {'rope_parameters': {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}},
      "rope_parameters.sliding_attention.rope_type='linear'",
    ),
    (OLMO2, {'attention_bias': True}, 'attention_bias=True'),
    (OLMO2, {'sliding_window': 8}, 'sliding_window=8 (unknown)'),
    (PHI3, {'rope_scaling': {'type': 'longrope', 'short_factor': [1.0]}}, "rope_scaling.type='longrope'"),
    (PHI3, {'head_dim': 64}, 'head_dim=64 (unknown)'),
    (PHI3, {'partial_rotary_factor': 0}, 'partial_rotary_factor=0'),
  ],
)
def test_each_family_refuses_what_it_does_not_support(entries, changes, named):
  with pytest.raises(ValueError) as caught:  # noqa: PT011, the name is compared below
    _parse(entries, **changes)
  assert named in str(caught.value)


def test_each_family_reads_its_own_fields():
  assert _parse(QWEN2) == FIELDS | {'model_type': 'qwen2', 'qkv_bias': True}
  assert _parse(QWEN3) == FIELDS | {'model_type': 'qwen3', 'qk_norm': True, 'head_width': 128}
  assert _parse(MISTRAL) == FIELDS | {'model_type': 'mistral', 'sliding_window': 4096}
  assert _parse(GEMMA2) == FIELDS | GEMMA2_FIELDS
  assert _parse(GEMMA3) == FIELDS | GEMMA3_FIELDS
  assert _parse(OLMO2) == FIELDS | OLMO2_FIELDS
  assert _parse(PHI3) == FIELDS | PHI3_FIELDS
  biases = {'qkv_bias': True, 'output_bias': True, 'mlp_bias': True}
  assert families.LLAMA.parse(_changed(attention_bias=True, mlp_bias=True)) == FIELDS | biases


def test_gemma3_reads_the_rotary_positions_of_both_layouts():
  old = _parse(GEMMA3, rope_theta=20.0, rope_local_base_freq=200.0)
  parameters = {
    'full_attention': {'rope_type': 'linear', 'rope_theta': 20.0, 'factor': 8.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 200.0},
  }
  removed = dict.fromkeys(('rope_theta', 'rope_local_base_freq', 'rope_scaling'), REMOVED)
  assert _parse(GEMMA3, **removed, rope_parameters=parameters) == old
  assert (old['rope_theta'], old['local_rope_theta'], old['rope_scaling'].factor) == (20.0, 200.0, 8.0)


def test_absent_entries_take_the_numbers_of_each_family():
  assert _parse(QWEN2, max_position_embeddings=REMOVED)['max_positions'] == 32768
  assert _parse(QWEN3, head_dim=REMOVED)['head_width'] == 128
  assert _parse(MISTRAL, sliding_window=REMOVED)['sliding_window'] == 4096
  assert _parse(MISTRAL, sliding_window=None)['sliding_window'] is None
  absent = ('sliding_window', 'query_pre_attn_scalar', 'attn_logit_softcapping', 'final_logit_softcapping', 'head_dim')
  expected = {'sliding_window': 4096, 'score_width': 256, 'score_cap': 50.0, 'logit_cap': 30.0, 'head_width': 256}
  assert expected.items() <= _parse(GEMMA2, **dict.fromkeys(absent, REMOVED)).items()
  assert _parse(GEMMA2, tie_word_embeddings=REMOVED)['tied_embeddings'] is True
  absent = ('sliding_window', 'query_pre_attn_scalar', 'attn_logit_softcapping', 'rope_local_base_freq', 'rope_theta')
  expected = {'sliding_window': 4096, 'score_width': 256, 'score_cap': None, 'rope_theta': 1e6, 'local_rope_theta': 1e4}
  assert expected.items() <= _parse(GEMMA3, **dict.fromkeys(absent, REMOVED)).items()
  assert _parse(PHI3, sliding_window=REMOVED)['sliding_window'] is None
  assert _parse(PHI3, partial_rotary_factor=0.75)['rotary_fraction'] == 0.75
  uncapped = _parse(GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None)
  assert uncapped['score_cap'] is uncapped['logit_cap'] is None


def test_every_unsupported_entry_is_named_at_once():
  with pytest.raises(ValueError, match=r'hidden_act=.relu.*rope_interleaved=True.*strange=1'):
    families.LLAMA.parse(_changed(rope_interleaved=True, hidden_act='relu', strange=1))


def test_ignored_entries_change_nothing():
  for key in declaration.IGNORED:
    assert families.LLAMA.parse(_changed(**{key: 'anything'})) == LLAMA_FIELDS


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'tied_embeddings': False, 'head_width': 32, 'norm_epsilon': 0.1 + 0.2},
    {'rope_scaling': layers.LinearScaling(2.5)},
    {'rope_scaling': layers.Llama3Scaling(8.0, 1.0, 4.0, 4096)},
    {'model_type': 'mistral', 'sliding_window': 7},
    {'model_type': 'mistral'},
    {'model_type': 'qwen2', 'qkv_bias': True},
    {'model_type': 'qwen3', 'qk_norm': True},
    GEMMA2_FIELDS,
    GEMMA2_FIELDS | {'score_cap': None, 'logit_cap': None},
    GEMMA3_FIELDS,
    OLMO2_FIELDS,
    PHI3_FIELDS,
    PHI3_FIELDS | {'rotary_fraction': 0.75, 'sliding_window': None},
    {'qkv_bias': True, 'output_bias': True, 'mlp_bias': True},
  ],
)
def test_what_is_written_is_read_back(changes):
  config = transformer.TransformerConfig(**(FIELDS | changes))
  family = families.of(config)
  assert family is families.FAMILIES[config.model_type]
  entries = json.loads(json.dumps(family.render(config)))
  assert transformer.TransformerConfig(**family.parse(entries)) == config


def test_written_entries_say_what_other_tools_need():
  entries = families.LLAMA.render(transformer.TransformerConfig(**FIELDS))
  expected = {key: OLD[key] for key in entries if key in OLD}
  assert {key: entries[key] for key in expected} == expected
  assert entries.keys() - OLD.keys() == {'head_dim'}
  assert entries['head_dim'] == 64


def test_the_family_of_a_configuration_does_not_depend_on_how_it_is_computed():
  config = transformer.TransformerConfig(**FIELDS, compute_dtype='bfloat16', remat='none', scan_layers=False)
  assert families.of(config) is families.LLAMA


def test_a_family_declares_each_field_once_and_leaves_only_neutral_ones_out():
  fields = {field.name: field.default for field in dataclasses.fields(transformer.TransformerConfig)}
  required = {name for name, default in fields.items() if default is dataclasses.MISSING}
  for family in families.FAMILIES.values():
    declared = [*(setting.field for setting in family.settings), *family.fields]
    assert len(set(declared)) == len(declared)
    assert required <= set(declared) <= fields.keys() - set(families.EXECUTION)


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'sliding_window': 8}, "'llama' can not store sliding_window=8"),
    ({'qkv_bias': True, 'qk_norm': True}, "'llama' can not store qkv_bias=True, qk_norm=True"),
    ({'output_bias': True}, "'llama' can not store "),
    ({'model_type': 'qwen2'}, "'qwen2' can not store qkv_bias=False"),
    ({'model_type': 'gpt9'}, "model_type 'gpt9' is not supported"),
  ],
)
def test_a_configuration_that_its_family_cannot_store_is_refused(changes, named):
  with pytest.raises(ValueError, match=named):
    families.of(transformer.TransformerConfig(**(FIELDS | changes)))


@pytest.mark.parametrize('model_type', ['gpt9', None, ['llama']])
def test_unknown_model_types_are_refused_with_the_known_ones(model_type):
  with pytest.raises(ValueError, match=r'model_type .* is not supported; known: gemma2, gemma3_text, '):
    families.by_type(model_type)


def test_names_number_the_layers_of_a_stacked_leaf():
  assert families.LLAMA.tensor('layers/mlp/up/kernel').names((3, 2, 2)) == [
    f'model.layers.{layer}.mlp.up_proj.weight' for layer in range(3)
  ]
  assert families.LLAMA.tensor('embed/embedding').names((3, 2)) == ['model.embed_tokens.weight']
  with pytest.raises(ValueError, match='declares no tensor for the parameter layers/bias'):
    families.LLAMA.tensor('layers/bias')


def test_declared_tensors_are_those_of_a_checkpoint():
  for tied in (True, False):
    config = assets.tiny_llama_config(tied=tied, layers=1)
    weights = assets.tiny_llama_weights(config)
    names = {tensor.name.format(layer=0) for tensor in families.LLAMA.tensors if not tensor.name.endswith('bias')}
    assert names - weights.keys() == ({'lm_head.weight'} if tied else set())
    assert weights.keys() <= names


def test_kernels_are_stored_transposed_and_nothing_else_is():
  for family in families.FAMILIES.values():
    assert all(tensor.transposed is tensor.leaf.endswith('kernel') for tensor in family.tensors)
