"""Tests of what a declaration reads and refuses, by the example of Llama."""

import numpy as np
import pytest

from alignjax.models import declaration, families, inert, layers, transformer
from tests.models import entries


def test_reads_the_entries_of_transformers_4():
  assert families.LLAMA.parse(entries.OLD) == entries.LLAMA_FIELDS


def test_reads_the_entries_of_transformers_5():
  rope = {'rope_theta': 100000.0, 'rope_type': 'default'}
  new = entries.changed(
    rope_theta=entries.REMOVED,
    rope_scaling=entries.REMOVED,
    torch_dtype=entries.REMOVED,
    rope_parameters=rope,
    dtype='bfloat16',
    head_dim=64,
  )
  assert families.LLAMA.parse(new) == entries.LLAMA_FIELDS


def test_absent_and_null_entries_take_the_defaults_of_the_family():
  keys = ('num_key_value_heads', 'rms_norm_eps', 'rope_theta', 'tie_word_embeddings', 'max_position_embeddings')
  expected = entries.LLAMA_FIELDS | {
    'kv_heads': 9, 'norm_epsilon': 1e-6, 'rope_theta': 10000.0, 'tied_embeddings': False, 'max_positions': 2048
  }  # fmt: skip
  assert families.LLAMA.parse(entries.changed(**dict.fromkeys(keys, entries.REMOVED))) == expected
  assert families.LLAMA.parse(entries.changed(**dict.fromkeys(keys), head_dim=None)) == expected


def test_head_width_may_differ_from_width_over_heads():
  assert families.LLAMA.parse(entries.changed(head_dim=128))['head_width'] == 128


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, "rope_scaling.type='dynamic' (only 'default', 'linear', "),
    ({'rope_scaling': {'rope_type': 'yarn', 'beta_fast': 2}}, 'rope_scaling.factor is missing'),
    ({'rope_scaling': {'rope_type': 'yarn', 'beta': 2}}, 'rope_scaling.beta=2 (unknown)'),
    ({'rope_scaling': {'rope_type': 'ntk', 'alpha': 2}}, "rope_scaling.rope_type='ntk' (only "),
    ({'rope_scaling': {'rope_type': ['llama3']}}, "rope_scaling.rope_type=['llama3']"),
    ({'rope_scaling': {'rope_type': 'linear', 'type': 'llama3'}}, "rope_type='linear', rope_scaling.type='llama3'"),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'rope_scaling.low_freq_factor is missing'),
    ({'rope_scaling': {'rope_type': 'linear', 'factor': 0.0}}, 'rope_scaling.factor=0.0'),
    ({'rope_scaling': {'rope_type': 'linear'} | entries.LLAMA3}, 'rope_scaling.low_freq_factor=1.0 (unknown)'),
    ({'rope_scaling': {'factor': 8.0}}, 'rope_scaling.factor=8.0 (unknown)'),
    ({'rope_scaling': {'rope_type': 'llama3', **entries.LLAMA3, 'high_freq_factor': 1.0}}, 'high_frequency_factor=1.0'),
    (
      {
        'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
        'rope_parameters': {'rope_type': 'linear', 'factor': 4.0},
      },
      'rope_scaling.factor=2.0, rope_parameters.factor=4.0',
    ),
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
    ({'quantization_config': False}, 'quantization_config=False (only {} and None are supported)'),
    ({'is_decoder': True}, 'is_decoder=True (only False and None are supported)'),
    ({'add_cross_attention': 0}, 'add_cross_attention=0 (only False'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5 (only 1.0'),
    ({'activation': 'relu'}, "activation='relu' (only 'swiglu'"),
    ({'strange': list(range(100))}, 'strange=[0, 1, 2'),
    ({'sliding_window': 4096}, 'sliding_window=4096'),
    ({'hidden_size': entries.REMOVED}, 'hidden_size is missing'),
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
    families.LLAMA.parse(entries.changed(**changes))
  assert named in str(caught.value)


@pytest.mark.parametrize('place', ['rope_scaling', 'rope_parameters'])
def test_reads_scaled_rotary_positions_of_both_layouts(place):
  linear = families.LLAMA.parse(entries.changed(**{place: {'type': 'linear', 'factor': 2}}))
  assert linear['rope_scaling'] == layers.LinearScaling(2.0)
  llama3 = families.LLAMA.parse(entries.changed(**{place: {'rope_type': 'llama3'} | entries.LLAMA3}))
  assert llama3['rope_scaling'] == layers.Llama3Scaling(8.0, 1.0, 4.0, 8192)
  assert families.LLAMA.parse(entries.changed(**{place: {'rope_type': 'default'}})) == entries.LLAMA_FIELDS


@pytest.mark.parametrize('place', ['rope_scaling', 'rope_parameters'])
def test_reads_yarn(place):
  yarn = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 2048}
  plain = families.LLAMA.parse(entries.changed(**{place: yarn}))
  assert plain['rope_scaling'] == layers.YarnScaling(4.0, 2048)
  ignored = {'attn_factor': 2.0, 'finetuned': True, 'attention_factor': None}
  assert families.LLAMA.parse(entries.changed(**{place: yarn | ignored})) == plain
  given = {'beta_fast': 24, 'beta_slow': 2.0, 'truncate': False, 'attention_factor': 1.5, 'mscale': 1.0}
  found = families.LLAMA.parse(entries.changed(**{place: yarn | given}))['rope_scaling']
  assert found == layers.YarnScaling(4.0, 2048, 24.0, 2.0, False, 1.5, 1.0)


def test_every_unsupported_entry_is_named_at_once():
  with pytest.raises(ValueError, match=r'hidden_act=.relu.*rope_interleaved=True.*strange=1'):
    families.LLAMA.parse(entries.changed(rope_interleaved=True, hidden_act='relu', strange=1))


def test_ignored_entries_change_nothing():
  for key in inert.IGNORED:
    assert families.LLAMA.parse(entries.changed(**{key: 'anything'})) == entries.LLAMA_FIELDS


def test_entries_without_effect_are_accepted_with_the_values_of_the_table_alone():
  for family in families.FAMILIES.values():
    plain = family.render(transformer.TransformerConfig(**(entries.of(family.model_type) | {'rope_scaling': None})))
    expected, set_by = family.parse(plain), {key for setting in family.settings for key in setting.keys}
    for key, values in (inert.VALUES | family.inert).items():
      if key in set_by | family.ignored or '.' in key:
        continue
      for value in values:
        assert family.parse(plain | {key: value}) == expected
      with pytest.raises(ValueError, match=f'{key}='):
        family.parse(plain | {key: 'another'})


def test_a_long_value_is_cut_and_the_rotary_type_is_the_first_reason():
  longrope = {'type': 'longrope', 'short_factor': [1.0] * 48, 'long_factor': [2.0] * 48}
  with pytest.raises(ValueError, match=r"'llama': rope_scaling.type='longrope' \(only ") as caught:
    families.LLAMA.parse(entries.changed(rope_scaling=longrope, architectures=['Other']))
  assert len(str(caught.value)) < 300
  assert 'architectures' in str(caught.value)


def test_names_number_the_layers_of_a_stacked_leaf():
  assert families.LLAMA.tensor('layers/mlp/up/kernel').names((3, 2, 2)) == [
    f'model.layers.{layer}.mlp.up_proj.weight' for layer in range(3)
  ]
  assert families.LLAMA.tensor('embed/embedding').names((3, 2)) == ['model.embed_tokens.weight']
  with pytest.raises(ValueError, match='declares no tensor for the parameter layers/bias'):
    families.LLAMA.tensor('layers/bias')


@pytest.mark.parametrize(('transposed', 'groups'), [(False, 1), (True, 1), (False, 2), (True, 2)])
def test_leaves_stored_as_one_lie_side_by_side_in_each_group(transposed, groups):
  query, key = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[10, 20], [30, 40]])
  tensor = declaration.Tensor('query', 'qk', transposed, fused=('key',))
  stored = tensor.join([query, key], groups)
  together = {1: [1, 2, 3, 4, 10, 20], 2: [1, 2, 10, 3, 4, 20]}[groups]
  np.testing.assert_array_equal((stored.T if transposed else stored)[0], together)
  for leaf, value in (('query', query), ('key', key)):
    np.testing.assert_array_equal(tensor.part(stored, leaf, [4, 2], groups), value)
  np.testing.assert_array_equal(tensor.join([query[0], key[0]], groups), together)  # biases


def test_the_shape_of_what_is_stored_as_one_is_checked():
  shapes = {'layers/attention/query/kernel': (2, 4, 6), 'layers/attention/key/kernel': (2, 4, 3)}
  shapes['layers/attention/value/kernel'] = (2, 4, 3)
  names = [f'model.layers.{layer}.self_attn.qkv_proj.weight' for layer in range(2)]
  families.PHI3.check(shapes, dict.fromkeys(names, (12, 4)))
  with pytest.raises(ValueError, match=r'with the wrong shape: .*\.1\..* \(expected \(12, 4\), found \(13, 4\)\)'):
    families.PHI3.check(shapes, {names[0]: (12, 4), names[1]: (13, 4)})
