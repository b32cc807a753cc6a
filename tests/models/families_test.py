"""Tests of the declared families: config.json in, config.json out, and names."""

import dataclasses
import json

import pytest

from alignjax.models import families, gpt_families, layers, transformer
from tests import assets
from tests.models import entries


@pytest.mark.parametrize(
  ('written', 'changes', 'named'),
  [
    (entries.QWEN2, {'use_sliding_window': True}, 'use_sliding_window=True'),
    (
      entries.QWEN2,
      {'layer_types': ['full_attention', 'sliding_attention']},
      "layer_types=['full_attention', 'sliding_",
    ),
    (entries.QWEN2, {'layer_types': 'full_attention'}, "layer_types='full_attention'"),
    (entries.QWEN2, {'num_key_value_heads': entries.REMOVED}, 'num_key_value_heads is missing'),
    (entries.QWEN2, {'use_mrope': True}, 'use_mrope=True'),
    (entries.QWEN2, {'rope_scaling': {'type': 'dynamic', 'factor': 4.0}}, "rope_scaling.type='dynamic'"),
    (entries.GEMMA, {'hidden_act': 'relu'}, "hidden_act='relu'"),
    (entries.GEMMA, {'hidden_activation': 'gelu'}, "hidden_activation='gelu' (only 'gelu_pytorch_tanh' and None"),
    (entries.OLMO3, {'layer_types': ['full_attention']}, "layer_types=['full_attention']"),
    (
      entries.OLMO3,
      {'rope_parameters': {'sliding_attention': {'rope_type': 'default', 'rope_theta': 20.0}}},
      'rope_theta=100000, rope_parameters.sliding_attention.rope_theta=20.0',
    ),
    (entries.STABLELM, {'qk_layernorm': True}, 'qk_layernorm=True'),
    (entries.STABLELM, {'use_parallel_residual': True}, 'use_parallel_residual=True'),
    (entries.GRANITE, {'residual_multiplier': 0}, 'residual_multiplier=0'),
    (entries.QWEN3, {'use_sliding_window': True}, 'use_sliding_window=True'),
    (entries.QWEN3, {'attention_bias': True}, 'attention_bias=True'),
    (entries.MISTRAL, {'sliding_window': 0}, 'sliding_window=0'),
    (entries.MISTRAL, {'sliding_window': 4096.0}, 'sliding_window=4096.0'),
    (entries.MISTRAL, {'layer_types': ['full_attention']}, "layer_types=['full_attention']"),
    (
      entries.GEMMA2,
      {'layer_types': ['full_attention', 'sliding_attention']},
      "layer_types=['full_attention', 'sliding_",
    ),
    (entries.GEMMA2, {'hidden_activation': 'gelu'}, "hidden_activation='gelu'"),
    (entries.GEMMA2, {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
    (entries.GEMMA2, {'attn_logit_softcapping': -1.0}, 'attn_logit_softcapping=-1.0'),
    (
      entries.GEMMA2,
      {'sliding_window_size': 4096},
      'sliding_window=2048, sliding_window_size=4096',
    ),
    (entries.GEMMA3, {'sliding_window_pattern': 4}, 'sliding_window_pattern=4'),
    (entries.GEMMA3, {'layer_types': ['full_attention']}, "layer_types=['full_attention']"),
    (entries.GEMMA3, {'rope_parameters': {'rope_type': 'linear'}}, "rope_parameters.rope_type='linear' (unknown)"),
    (
      entries.GEMMA3,
      {'rope_parameters': {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}},
      "rope_parameters.sliding_attention.rope_type='linear'",
    ),
    (entries.OLMO2, {'attention_bias': True}, 'attention_bias=True'),
    (entries.OLMO2, {'sliding_window': 8}, 'sliding_window=8 (unknown)'),
    (entries.PHI3, {'rope_scaling': {'type': 'linear', 'factor': 2.0}}, "(only 'default', 'longrope', 'su' are"),
    (entries.QWEN3, {'rope_scaling': {'type': 'longrope'}}, "rope_scaling.type='longrope' (only 'default', 'linear', "),
    (entries.PHI4_MINI, {'rope_scaling': {'type': 'longrope', 'long_factor': [1.0]}}, 'rope_scaling.short_factor is m'),
    (
      entries.PHI4_MINI,
      {'rope_scaling': entries.PHI4_MINI['rope_scaling'] | {'long_factor': [1.0, -1.0]}},
      'rope_scaling.long_factor=[1.0, -1.0] must be a list of positive numbers',
    ),
    (
      entries.PHI4_MINI,
      {'rope_scaling': entries.PHI4_MINI['rope_scaling'] | {'original_max_position_embeddings': 8192}},
      'original_max_position_embeddings=8192, original_max_position_embeddings=4096',
    ),
    (entries.PHI4_MINI, {'full_attn_mod': 2}, 'full_attn_mod=2 (only 1 are supported)'),
    (entries.SMOLLM3, {'no_rope_layers': [1, 0, 0, 1]}, 'no_rope_layers=[1, 0, 0, 1]'),
    (entries.MIXTRAL, {'router_jitter_noise': 0.1}, 'router_jitter_noise=0.1 (only 0.0 and 0 are supported)'),
    (entries.MIXTRAL, {'num_local_experts': entries.REMOVED}, 'field num_local_experts is missing'),
    (entries.QWEN3_MOE, {'decoder_sparse_step': 2}, 'decoder_sparse_step=2 (only 1 is supported)'),
    (entries.QWEN3_MOE, {'mlp_only_layers': [0]}, 'mlp_only_layers=[0]'),
    (entries.SMOLLM3, {'use_sliding_window': True}, 'use_sliding_window=True'),
    (entries.PHI3, {'head_dim': 64}, 'head_dim=64 (unknown)'),
    (entries.PHI3, {'partial_rotary_factor': 0}, 'partial_rotary_factor=0'),
  ],
)
def test_each_family_refuses_what_it_does_not_support(written, changes, named):
  with pytest.raises(ValueError) as caught:  # noqa: PT011, the name is compared below
    entries.parse(written, **changes)
  assert named in str(caught.value)


def test_each_family_reads_its_own_fields():
  assert entries.parse(entries.QWEN2) == entries.FIELDS | {'model_type': 'qwen2', 'qkv_bias': True}
  assert entries.parse(entries.QWEN3) == entries.FIELDS | {'model_type': 'qwen3', 'qk_norm': True, 'head_width': 128}
  assert entries.parse(entries.MISTRAL) == entries.FIELDS | {'model_type': 'mistral', 'sliding_window': 4096}
  assert entries.parse(entries.GEMMA2) == entries.FIELDS | entries.GEMMA2_FIELDS
  assert entries.parse(entries.GEMMA3) == entries.FIELDS | entries.GEMMA3_FIELDS
  assert entries.parse(entries.GEMMA) == entries.FIELDS | entries.GEMMA_FIELDS
  assert entries.parse(entries.GEMMA, hidden_act='gelu', hidden_activation=None) == entries.parse(entries.GEMMA)
  assert entries.parse(entries.OLMO3) == entries.FIELDS | entries.OLMO3_FIELDS
  assert entries.parse(entries.GRANITE) == entries.FIELDS | entries.GRANITE_FIELDS
  assert entries.parse(entries.STABLELM) == entries.FIELDS | entries.STABLELM_FIELDS
  assert entries.parse(entries.OLMO2) == entries.FIELDS | entries.OLMO2_FIELDS
  assert entries.parse(entries.PHI3) == entries.FIELDS | entries.PHI3_FIELDS
  assert entries.parse(entries.MIXTRAL) == entries.FIELDS | entries.MIXTRAL_FIELDS
  assert entries.parse(entries.QWEN3_MOE) == entries.FIELDS | entries.QWEN3_MOE_FIELDS
  assert entries.parse(entries.PHI4_MINI) == entries.FIELDS | entries.PHI4_MINI_FIELDS
  assert entries.parse(entries.SMOLLM3, attention_bias=False) == entries.FIELDS | entries.SMOLLM3_FIELDS
  biases = {'qkv_bias': True, 'output_bias': True, 'mlp_bias': True}
  assert families.LLAMA.parse(entries.changed(attention_bias=True, mlp_bias=True)) == entries.FIELDS | biases


def test_gemma2_as_published_names_its_window_twice():
  assert entries.parse(entries.GEMMA2, sliding_window_size=2048) == entries.FIELDS | entries.GEMMA2_FIELDS


@pytest.mark.parametrize(
  ('written', 'changes'),
  [
    (entries.OLD, {'unsloth_fixed': True, 'unsloth_version': '2026.4.5', 'quantization_config': None}),
    (entries.OLD, {'activation': 'swiglu', 'mlp_bias': False, 'rope_scaling': {}, 'architectures': None}),  # Falcon 3
    (entries.MISTRAL, {'is_decoder': False, 'add_cross_attention': False, 'attention_bias': False}),
    (entries.QWEN3, {'_attn_implementation_autoset': True, 'gradient_checkpointing': False, 'torchscript': False}),
    (entries.PHI3, {'tokenizer_class': 'LlamaTokenizer', 'temperature': 1.0, 'top_p': 1.0, 'num_labels': 2}),
    (entries.OLMO2, {'_commit_hash': 'abc', 'attn_implementation': 'sdpa', 'id2label': {'0': 'LABEL_0'}}),
  ],
)
def test_marks_of_tools_without_effect_are_accepted(written, changes):
  assert entries.parse(written, **changes) == entries.parse(written)


def test_gemma3_reads_the_rotary_positions_of_both_layouts():
  old = entries.parse(entries.GEMMA3, rope_theta=20.0, rope_local_base_freq=200.0)
  parameters = {
    'full_attention': {'rope_type': 'linear', 'rope_theta': 20.0, 'factor': 8.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 200.0},
  }
  removed = dict.fromkeys(('rope_theta', 'rope_local_base_freq', 'rope_scaling'), entries.REMOVED)
  assert entries.parse(entries.GEMMA3, **removed, rope_parameters=parameters) == old
  assert (old['rope_theta'], old['local_rope_theta'], old['rope_scaling'].factor) == (20.0, 200.0, 8.0)


def test_the_list_of_rotated_layers_takes_precedence_over_its_interval():
  of_interval = {'no_rope_layers': entries.REMOVED, 'no_rope_layer_interval': 3}
  assert entries.parse(entries.SMOLLM3, **of_interval)['unrotated_every'] == 3
  assert entries.parse(entries.SMOLLM3, no_rope_layers=[1, 0, 1, 0, 1])['unrotated_every'] == 2
  every = entries.parse(entries.SMOLLM3, no_rope_layers=[1] * 36)
  assert transformer.TransformerConfig(**every).rotated == (True,) * 30
  assert transformer.TransformerConfig(**entries.parse(entries.SMOLLM3)).rotated == ((True,) * 3 + (False,)) * 7 + (
    True,
    True,
  )


def test_longrope_reads_its_extension_and_the_name_of_its_first_release():
  scaling = {'type': 'su', 'long_factor': [2.0] * 24, 'short_factor': [1] * 24}
  read = entries.parse(entries.PHI4_MINI, rope_scaling=scaling)['rope_scaling']
  assert read == layers.LongRopeScaling((1.0,) * 24, (2.0,) * 24, 4096, 32.0)
  assert entries.parse(entries.PHI4_MINI, rope_scaling=scaling | {'factor': 16.0})['rope_scaling'].extension == 16.0
  parameters = scaling | {'rope_type': 'longrope', 'type': entries.REMOVED, 'original_max_position_embeddings': 4096}
  parameters = {key: value for key, value in parameters.items() if value is not entries.REMOVED}
  new = entries.parse(entries.PHI4_MINI, rope_scaling=entries.REMOVED, rope_parameters=parameters)
  assert new['rope_scaling'] == read


def test_gemma3_that_reads_images_is_read_as_its_text_model():
  family = families.by_type('gemma3')
  fields = family.parse(entries.GEMMA3_4B)
  sizes = {'vocab_size': 262208, 'width': 2560, 'layers': 34, 'heads': 8, 'kv_heads': 4, 'head_width': 256}
  assert (sizes | {'mlp_width': 10240, 'sliding_window': 1024, 'max_positions': 131072}).items() <= fields.items()
  assert fields['rope_scaling'] == layers.LinearScaling(8.0)
  config = transformer.TransformerConfig(**fields)
  assert config.model_type == 'gemma3_text'
  assert config.tied_embeddings
  assert families.of(config) is families.FAMILIES['gemma3_text']
  names = ['model.norm.weight', 'model.layers.0.mlp.up_proj.weight', 'lm_head.weight']
  prefixes = ['language_model.', 'language_model.', 'language_model.']
  published = {prefix + name: i for i, (prefix, name) in enumerate(zip(prefixes, names, strict=True))}
  in_memory = {name.replace('model.', 'model.language_model.', 1): i for i, name in enumerate(names)}
  images = {'vision_tower.a.weight': 7, 'multi_modal_projector.b': 8, 'model.vision_tower.a.weight': 9}
  for stored in (published, in_memory):
    assert family.prefixed(stored | images) == {name: i for i, name in enumerate(names)}


@pytest.mark.parametrize(
  ('changes', 'of_text', 'named'),
  [
    ({'text_config': None}, {}, 'field text_config must be an object'),
    ({'architectures': ['Gemma3ForCausalLM']}, {}, "must be ['Gemma3ForConditionalGeneration']"),
    ({'audio_config': {'a': 1}}, {}, 'audio_config.a=1 (unknown)'),
    ({'tie_word_embeddings': True}, {'tie_word_embeddings': False}, 'text_config.tie_word_embeddings=False, tie_word'),
    ({}, {'model_type': 'gemma3n_text'}, "text_config.model_type='gemma3n_text'"),
    ({}, {'final_logit_softcapping': 30.0}, 'text_config.final_logit_softcapping=30.0 must be null'),
    ({}, {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
    ({}, {'router': 1}, 'router=1 (unknown)'),
  ],
)
def test_what_the_text_model_of_gemma3_cannot_honour_is_refused(changes, of_text, named):
  given = entries.GEMMA3_4B | {'text_config': entries.GEMMA3_4B['text_config'] | of_text} | changes
  with pytest.raises(ValueError) as caught:  # noqa: PT011, the name is compared below
    families.by_type('gemma3').parse(given)
  assert named in str(caught.value)


def test_absent_entries_take_the_numbers_of_each_family():
  assert entries.parse(entries.QWEN2, max_position_embeddings=entries.REMOVED)['max_positions'] == 32768
  assert entries.parse(entries.QWEN3, head_dim=entries.REMOVED)['head_width'] == 128
  assert entries.parse(entries.MISTRAL, sliding_window=entries.REMOVED)['sliding_window'] == 4096
  assert entries.parse(entries.MISTRAL, sliding_window=None)['sliding_window'] is None
  absent = ('sliding_window', 'query_pre_attn_scalar', 'attn_logit_softcapping', 'final_logit_softcapping', 'head_dim')
  expected = {'sliding_window': 4096, 'score_width': 256, 'score_cap': 50.0, 'logit_cap': 30.0, 'head_width': 256}
  assert expected.items() <= entries.parse(entries.GEMMA2, **dict.fromkeys(absent, entries.REMOVED)).items()
  assert entries.parse(entries.GEMMA2, tie_word_embeddings=entries.REMOVED)['tied_embeddings'] is True
  absent = ('sliding_window', 'query_pre_attn_scalar', 'attn_logit_softcapping', 'rope_local_base_freq', 'rope_theta')
  expected = {'sliding_window': 4096, 'score_width': 256, 'score_cap': None, 'rope_theta': 1e6, 'local_rope_theta': 1e4}
  assert expected.items() <= entries.parse(entries.GEMMA3, **dict.fromkeys(absent, entries.REMOVED)).items()
  assert entries.parse(entries.PHI3, sliding_window=entries.REMOVED)['sliding_window'] is None
  assert entries.parse(entries.PHI3, partial_rotary_factor=0.75)['rotary_fraction'] == 0.75
  uncapped = entries.parse(entries.GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None)
  assert uncapped['score_cap'] is uncapped['logit_cap'] is None


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
    entries.GEMMA2_FIELDS,
    entries.GEMMA2_FIELDS | {'score_cap': None, 'logit_cap': None},
    entries.GEMMA3_FIELDS,
    entries.OLMO2_FIELDS,
    {'rope_scaling': layers.YarnScaling(4.0, 2048)},
    {'rope_scaling': layers.YarnScaling(4.0, 2048, 24.0, 2.0, False, 1.5, 1.0, 2.0)},
    entries.GEMMA_FIELDS,
    entries.OLMO3_FIELDS | {'rope_scaling': layers.YarnScaling(4.0, 2048)},
    entries.GRANITE_FIELDS,
    entries.STABLELM_FIELDS,
    entries.PHI3_FIELDS,
    entries.PHI3_FIELDS | {'rotary_fraction': 0.75, 'sliding_window': None},
    entries.PHI4_MINI_FIELDS,
    entries.PHI4_MINI_FIELDS | {'max_positions': 8192},
    entries.PHI4_MINI_FIELDS | {'rope_scaling': layers.LongRopeScaling((1.0,) * 24, (2.0,) * 24, 2048, 16.0, 1.5)},
    entries.SMOLLM3_FIELDS,
    entries.MIXTRAL_FIELDS,
    entries.QWEN3_MOE_FIELDS | {'normalised_experts': False},
    {'qkv_bias': True, 'output_bias': True, 'mlp_bias': True},
    entries.GPT2_FIELDS,
    entries.NEOX_FIELDS,
    entries.NEOX_FIELDS | {'parallel_residual': False, 'rope_scaling': layers.LinearScaling(2.0)},
  ],
)
def test_what_is_written_is_read_back(changes):
  config = transformer.TransformerConfig(**(entries.FIELDS | changes))
  family = families.of(config)
  assert family is families.FAMILIES[config.model_type]
  written = json.loads(json.dumps(family.render(config)))
  assert transformer.TransformerConfig(**family.parse(written)) == config


def test_written_entries_say_what_other_tools_need():
  written = families.LLAMA.render(transformer.TransformerConfig(**entries.FIELDS))
  expected = {key: entries.OLD[key] for key in written if key in entries.OLD}
  assert {key: written[key] for key in expected} == expected
  assert written.keys() - entries.OLD.keys() == {'head_dim'}
  assert written['head_dim'] == 64


def test_the_theta_of_layers_with_windows_is_written_where_transformers_5_looks_for_it():
  scaling = layers.YarnScaling(4.0, 32, fast_turns=4.0, attention_factor=1.3)
  config = transformer.TransformerConfig(**(entries.FIELDS | entries.OLMO3_FIELDS | {'rope_theta': 5e4}))
  for each in (config, dataclasses.replace(config, rope_scaling=scaling)):
    each = dataclasses.replace(each, local_rope_theta=each.rope_theta)
    family = families.of(each)
    written = json.loads(json.dumps(family.render(each)))
    assert written['rope_parameters']['sliding_attention'] == {'rope_type': 'default', 'rope_theta': each.rope_theta}
    assert written['rope_parameters']['full_attention']['rope_theta'] == each.rope_theta
    assert transformer.TransformerConfig(**family.parse(written)) == each


def test_the_family_of_a_configuration_does_not_depend_on_how_it_is_computed():
  config = transformer.TransformerConfig(**entries.FIELDS, compute_dtype='bfloat16', remat='none', scan_layers=False)
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
    ({'sliding_window': 8}, "'llama' cannot store sliding_window=8"),
    ({'qkv_bias': True, 'qk_norm': True}, "'llama' cannot store qkv_bias=True, qk_norm=True"),
    ({'output_bias': True}, "'llama' cannot store "),
    ({'model_type': 'qwen2'}, "'qwen2' cannot store qkv_bias=False"),
    ({'model_type': 'gpt9'}, "model_type 'gpt9' is not supported"),
  ],
)
def test_a_configuration_that_its_family_cannot_store_is_refused(changes, named):
  with pytest.raises(ValueError, match=named):
    families.of(transformer.TransformerConfig(**(entries.FIELDS | changes)))


@pytest.mark.parametrize('model_type', ['gpt9', None, ['llama']])
def test_unknown_model_types_are_refused_with_the_known_ones(model_type):
  with pytest.raises(ValueError, match=r'model_type .* is not supported; known: gemma, gemma2, gemma3, gemma3_text, '):
    families.by_type(model_type)


def test_declared_tensors_are_those_of_a_checkpoint():
  for tied in (True, False):
    config = assets.tiny_llama_config(tied=tied, layers=1)
    weights = assets.tiny_llama_weights(config)
    names = {tensor.name.format(layer=0) for tensor in families.LLAMA.tensors if not tensor.name.endswith('bias')}
    assert names - weights.keys() == ({'lm_head.weight'} if tied else set())
    assert weights.keys() <= names


def test_kernels_are_stored_transposed_except_by_gpt2_and_nothing_else_is():
  for family in families.FAMILIES.values():
    kernels, matrices = family is not gpt_families.GPT2, ('kernel', 'mlp/router', 'mlp/gate', 'mlp/up', 'mlp/down')
    for tensor in family.tensors:
      assert tensor.transposed is (tensor.leaf == 'unembed/kernel' or (kernels and tensor.leaf.endswith(matrices)))


def test_a_family_declares_each_parameter_and_each_stored_tensor_once():
  for family in families.FAMILIES.values():
    leaves = [leaf for tensor in family.tensors for leaf in tensor.leaves]
    assert len(set(leaves)) == len(leaves)
    assert len({tensor.name for tensor in family.tensors}) == len(family.tensors)
