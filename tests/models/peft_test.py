"""PEFT folders: one that PEFT has made, with its logits (tests/golden/make_lora.py), and what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, lora, peft, transformer
from alignjax.stats import head

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
BASE, ADAPTER = GOLDEN / 'llama_tied', GOLDEN / 'peft_llama_tied'
CONFIG = checkpoint_io.load_config(BASE)
FIRST = 'model.layers.0.self_attn.q_proj'
TOLERANCE = 1e-4  # of logits up to 9, float32


def _factors(path=ADAPTER):
  return safetensors_numpy.load_file(path / peft.WEIGHTS)


@pytest.fixture
def copy(tmp_path):
  return pathlib.Path(shutil.copytree(ADAPTER, tmp_path / 'copy'))


@pytest.mark.parametrize(
  'name',
  [
    'llama_tied',
    pytest.param('phi3', marks=pytest.mark.slow),
    pytest.param('gpt_neox', marks=pytest.mark.slow),
    pytest.param('gpt2', marks=pytest.mark.slow),
  ],
)
def test_logits_are_those_of_peft(name, tmp_path):
  """What PEFT wrote is read, and what is written is read: also where kernels are stored together."""
  golden = safetensors_numpy.load_file(GOLDEN / name / 'golden.safetensors')
  expected = safetensors_numpy.load_file(GOLDEN / f'peft_{name}' / 'logits.safetensors')['logits']
  fields = [golden[field] for field in ('prompt', 'prompt_length', 'response', 'response_length')]
  config = checkpoint_io.load_config(GOLDEN / name)
  model, base = transformer.build(config), checkpoint_io.load_params(GOLDEN / name, config)
  settings, adapters = peft.load(GOLDEN / f'peft_{name}', config)
  assert (settings.rank, settings.alpha) == (3, 5)
  peft.save(tmp_path / 'out', config, settings, adapters, name)
  hidden = jax.jit(model.hidden)
  valid = np.arange(expected.shape[2]) < golden['response_length'][..., None]
  for factors in (adapters, peft.load(tmp_path / 'out', config)[1]):
    merged = lora.merge(base, factors, settings)
    found = np.asarray(head.logits(head.HiddenStates(hidden(merged, *fields), model.head(merged))))
    assert np.abs(found - expected)[valid].max() < TOLERANCE
  assert np.abs(golden['logits'] - expected)[valid].max() > 1


@pytest.mark.parametrize('name', ['llama_tied', 'gpt_neox'])
def test_merging_while_reading_gives_the_merged_model(name):
  config = checkpoint_io.load_config(GOLDEN / name)
  settings, adapters = peft.load(GOLDEN / f'peft_{name}', config)
  expected = lora.merge(checkpoint_io.load_params(GOLDEN / name, config), adapters, settings)
  loading = checkpoint_io.Loading(None, peft.merging(GOLDEN / f'peft_{name}', config))
  found = checkpoint_io.load_params(GOLDEN / name, config, loading=loading)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)


def test_kernels_that_are_stored_together_are_joined_in_blocks(tmp_path):
  config = checkpoint_io.load_config(GOLDEN / 'phi3')
  base = checkpoint_io.load_params(GOLDEN / 'phi3', config)
  settings = lora.LoRA(rank=2, alpha=3.0, targets='query+value+down')
  rng = np.random.default_rng(0)
  adapters = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), lora.init(jax.random.key(0), base, settings))
  peft.save(tmp_path / 'out', config, settings, adapters, 'phi3')
  entries = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
  assert (entries['r'], entries['lora_alpha']) == (2, 3)
  assert entries['rank_pattern'] == {'self_attn.qkv_proj': 4}
  assert entries['alpha_pattern'] == {'self_attn.qkv_proj': 6}
  found, expected = (
    lora.merge(base, *pair) for pair in (peft.load(tmp_path / 'out', config)[::-1], (adapters, settings))
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)


def test_what_is_written_is_what_peft_had_written(tmp_path):
  settings, adapters = peft.load(ADAPTER, CONFIG)
  peft.save(tmp_path / 'out', CONFIG, settings, adapters, 'a/base')
  peft.save(tmp_path / 'out', CONFIG, settings, adapters, 'llama_tied')  # in place of the first
  ours, theirs = _factors(tmp_path / 'out'), _factors()
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name])
  found, expected = (json.loads((path / peft.CONFIG).read_text()) for path in (tmp_path / 'out', ADAPTER))
  assert {name.split('.')[-1] for name in found.pop('target_modules')} == set(expected.pop('target_modules'))
  assert found | {'lora_dropout': 0.1} == {name: expected[name] for name in found}
  assert peft.load(tmp_path / 'out', CONFIG)[0] == settings


@pytest.mark.parametrize(
  ('entries', 'message'),
  [
    ({'use_dora': True}, 'use_dora=True'),
    ({'rank_pattern': {'q_proj': 8}}, r'self_attn.q_proj: rank 8 and alpha 5 \(only a scale of 1.66667'),
    ({'alpha_pattern': {'.*q_proj': 5}}, r"alpha_pattern={'\.\*q_proj': 5}"),
    ({'bias': 'all'}, "bias='all'"),
    ({'init_lora_weights': 'pissa_niter_4'}, "init_lora_weights='pissa_niter_4' .it changes the weights of the base"),
    ({'init_lora_weights': 'olora'}, "init_lora_weights='olora'"),
    ({'layers_to_transform': 0}, 'layers_to_transform=0'),
    ({'layers_to_transform': [0]}, r'layers_to_transform=\[0\]'),
    ({'use_rslora': 'yes'}, "use_rslora='yes'"),
    ({'use_rslora': True, 'rank_pattern': {'q_proj': 8}, 'alpha_pattern': {'q_proj': 5 * 8 / 3}}, 'only a scale of'),
    ({'alora_invocation_tokens': [3]}, r'alora_invocation_tokens=\[3\]'),
    ({'modules_to_save': ['lm_head']}, 'modules_to_save='),
    ({'some_new_entry': 0}, 'some_new_entry=0'),
    ({'alpha_pattern': {FIRST: 50}}, 'alpha_pattern=.*only one value for all layers of self_attn.q_proj'),
    ({'rank_pattern': {FIRST: 8}}, 'rank_pattern=.*only one value for all layers of self_attn.q_proj'),
    ({'alpha_pattern': {'q_proj': 50}}, r'self_attn.q_proj: rank 3 and alpha 50 \(only a scale of'),
    ({'rank_pattern': {'q_proj': '3'}}, "self_attn.q_proj: rank '3'"),
    ({'target_modules': ['q_proj']}, r"target_modules=\['q_proj'\] \(it leaves out model.layers.0.self_attn.o_proj"),
    ({'target_modules': None}, 'target_modules=None'),
    ({'target_modules': '.*layers.0.*'}, "target_modules='.*layers.0.*' .it leaves out model.layers.1"),
    ({'target_modules': '('}, "target_modules='\\('"),
    ({'exclude_modules': ['v_proj']}, r"exclude_modules=\['v_proj'\] .it leaves out model.layers.0.self_attn.v_proj"),
    ({'exclude_modules': '.*v_proj'}, "exclude_modules='.*v_proj'"),
    ({'peft_type': 'ADALORA'}, "peft_type='ADALORA'"),
    ({'r': 0}, 'rank=0'),
    ({'r': 4}, r'lora_A.weight: expected shape \(4, 32\), found \(3, 32\)'),
  ],
)
def test_entries_that_are_not_supported_are_refused(copy, entries, message):
  (copy / peft.CONFIG).write_text(json.dumps(json.loads((copy / peft.CONFIG).read_text()) | entries))
  with pytest.raises(ValueError, match=message):
    peft.load(copy, CONFIG)


@pytest.mark.parametrize(
  'entries',
  [
    {'init_lora_weights': 'eva', 'eva_config': {'rho': 2.0}},
    {'init_lora_weights': 'gaussian', 'lora_dropout': 0.5, 'inference_mode': False, 'fan_in_fan_out': True},
    {'task_type': None, 'revision': 'abc', 'base_model_name_or_path': 'nowhere', 'auto_mapping': {'a': 'b'}},
    {'target_modules': 'all-linear', 'exclude_modules': ['k_proj']},
    {'target_modules': r'model\.layers\.\d+\..*_proj', 'layers_to_transform': [], 'some_new_entry': False},
    {'alpha_pattern': {'q_pro': 50, 'proj': 50, 'self_attn': 50}, 'rank_pattern': {'k_proj': 8}},  # these match nothing
    {'alpha_pattern': {f'layers.{layer}.mlp.up_proj': 5 for layer in range(2)}},
  ],
)
def test_entries_without_effect_on_a_loaded_adapter_are_accepted(copy, entries):
  """Each of these changes the logits that PEFT computes by 0."""
  expected = peft.load(ADAPTER, CONFIG)
  (copy / peft.CONFIG).write_text(json.dumps(json.loads((copy / peft.CONFIG).read_text()) | entries))
  settings, adapters = peft.load(copy, CONFIG)
  assert settings == expected[0]
  jax.tree.map(np.testing.assert_array_equal, adapters, expected[1])


QUERY = 'base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda tensors: tensors.pop(QUERY), f'tensor missing: {QUERY}'),
    (lambda tensors: tensors.update(other=np.zeros(2, np.float32)), 'tensors unexpected: other'),
    (lambda tensors: tensors[QUERY].fill(np.nan), f'tensor {QUERY} .* not finite'),
    (lambda tensors: tensors.clear(), 'no tensor adapts a kernel'),
  ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(copy, change, message):
  tensors = _factors()
  change(tensors)
  safetensors_numpy.save_file(tensors, copy / peft.WEIGHTS)
  with pytest.raises(ValueError, match=message):
    peft.load(copy, CONFIG)


def test_rslora_divides_by_the_root_of_the_rank(copy):
  plain, factors = peft.load(ADAPTER, CONFIG)
  (copy / peft.CONFIG).write_text(json.dumps(json.loads((copy / peft.CONFIG).read_text()) | {'use_rslora': True}))
  settings, same = peft.load(copy, CONFIG)
  assert settings.scale == pytest.approx(plain.alpha / np.sqrt(plain.rank))
  jax.tree.map(np.testing.assert_array_equal, factors, same)


def test_an_adapter_of_another_kind_is_refused_for_its_kind_and_not_for_its_tensors(copy):
  safetensors_numpy.save_file({'base_model.model.model.layers.0.mlp.down_proj.ia3_l': np.ones(3)}, copy / peft.WEIGHTS)
  (copy / peft.CONFIG).write_text(json.dumps(json.loads((copy / peft.CONFIG).read_text()) | {'peft_type': 'IA3'}))
  with pytest.raises(ValueError, match=r"adapter_config\.json: peft_type='IA3' \(only 'LORA'\): merge the adapter"):
    peft.load(copy, CONFIG)


def test_an_adapter_of_some_layers_is_refused_for_the_layers_that_it_leaves_out(copy):
  kept = {name: value for name, value in _factors().items() if 'layers.1.self_attn.q_proj' in name}
  safetensors_numpy.save_file(kept, copy / peft.WEIGHTS)
  targets = {'target_modules': ['layers.1.self_attn.q_proj']}
  (copy / peft.CONFIG).write_text(json.dumps(json.loads((copy / peft.CONFIG).read_text()) | targets))
  with pytest.raises(
    ValueError, match=r'leaves out model\.layers\.0\.self_attn\.q_proj, but a module must be adapted in'
  ):
    peft.load(copy, CONFIG)


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  settings, adapters = peft.load(ADAPTER, CONFIG)
  with pytest.raises(ValueError, match=r'notes\.txt'):
    peft.save(tmp_path, CONFIG, settings, adapters, 'base')
