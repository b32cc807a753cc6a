"""Reward models in the format of Hugging Face sequence classifiers, against rewards that transformers computed."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax import stats
from alignjax.models import checkpoint_io, classifiers, families, layers, transformer
from alignjax.training import forward
from alignjax.types import PreferenceBatch

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NAMES = sorted(path.stem for path in (GOLDEN / 'classifiers').glob('*.json'))
QUICK = {
  'gemma2',
  'gpt2',
}  # without and with biases, with each kind of norm; golden_test has the other parts of families
TOLERANCE = 2e-4


def contents(name):
  return json.loads((GOLDEN / 'classifiers' / f'{name}.json').read_text())


def golden(name):
  return safetensors_numpy.load_file(GOLDEN / 'classifiers' / f'{name}.safetensors')


def write(folder, name, config=None, keep_head=False):
  """The reward model as transformers saves it; with `keep_head`, with the head of the language model besides."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(contents(name)['config'] if config is None else config))
  stored = safetensors_numpy.load_file(GOLDEN / name / 'model.safetensors')
  names = set(contents(name)['tensors'])
  kept = {key: value for key, value in stored.items() if key in names or keep_head}
  safetensors_numpy.save_file(kept | {'score.weight': golden(name)['score.weight']}, folder / 'model.safetensors')
  return folder


def load(folder, output='score'):
  config = checkpoint_io.load_config(folder, output=output)
  return transformer.build(config), checkpoint_io.load_params(folder, config)


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_rewards_equal_those_of_transformers_and_the_model_is_written_as_it_was_read(tmp_path, name):
  folder = write(tmp_path / 'model', name)
  model, params = load(folder)
  batch = safetensors_numpy.load_file(GOLDEN / name / 'golden.safetensors')
  prompts = len(batch['prompt_length'])
  batch = PreferenceBatch(
    **{key: value for key, value in batch.items() if key != 'logits'},
    label=np.ones(prompts, np.float32),
    weight=np.ones(prompts, np.float32),
  )

  def rewards(params):
    hidden = forward.hidden_states(model, params, batch, {stats.reward})
    return stats.statistics({stats.reward}, hidden, None, batch, chunk=64)[stats.reward]

  expected = golden(name)['rewards']
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(jax.jit(rewards)(params), expected, rtol=0, atol=TOLERANCE)
  checkpoint_io.save(tmp_path / 'saved', model.config, params, assets_from=folder)
  again, loaded = load(tmp_path / 'saved')
  assert again.config == model.config
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  with (tmp_path / 'saved' / 'model.safetensors').open('rb') as stream:
    header = json.loads(stream.read(int.from_bytes(stream.read(8), 'little')))
  assert sorted(header.keys() - {'__metadata__'}) == contents(name)['tensors']
  written = json.loads((tmp_path / 'saved' / 'config.json').read_text())
  assert written['architectures'] == contents(name)['config']['architectures']
  assert (written['num_labels'], len(written['id2label']), written['pad_token_id']) == (1, 1, None)


def test_every_family_with_a_classifier_has_a_golden_one():
  types = {contents(name)['config']['model_type'] for name in NAMES}
  assert types == {name for name, family in families.FAMILIES.items() if family.classifier}


def test_the_head_of_the_language_model_is_ignored_unless_it_is_asked_for(tmp_path):
  folder = write(tmp_path / 'model', 'llama_untied', keep_head=True)
  _, params = load(folder)
  assert 'unembed' not in params
  model, params = load(folder, output='both')
  assert model.head(params).kernel.shape == (32, 96)
  checkpoint_io.save(tmp_path / 'saved', model.config, params)
  _, again = load(tmp_path / 'saved', output='both')
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_new_reward_model_draws_its_score_and_a_stored_one_does_not(tmp_path):
  config = checkpoint_io.load_config(GOLDEN / 'llama_untied', output='score')
  with pytest.raises(ValueError, match=r'tensor score\.weight is missing'):
    checkpoint_io.load_params(GOLDEN / 'llama_untied', config)
  loading = checkpoint_io.Loading(score=lambda: np.full((32, 1), 7.0, np.float32))
  assert np.all(checkpoint_io.load_params(GOLDEN / 'llama_untied', config, None, loading)['score']['kernel'] == 7)
  folder = write(tmp_path / 'model', 'llama_untied')
  kernel = golden('llama_untied')['score.weight'].T
  np.testing.assert_array_equal(checkpoint_io.load_params(folder, config, None, loading)['score']['kernel'], kernel)


def test_nothing_takes_a_reward_model_for_a_language_model(tmp_path):
  folder = write(tmp_path / 'model', 'qwen3')
  with pytest.raises(ValueError, match=r'holds a reward model \(Qwen3ForSequenceClassification\)'):
    checkpoint_io.load_config(folder)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'id2label': {'0': 'a', '1': 'b', '2': 'c'}}, r'has 3 labels by id2label, and a reward model has one'),
    ({'id2label': None, 'num_labels': 5}, 'has 5 labels by num_labels'),
    ({'id2label': None}, 'has 2 labels by id2label'),  # what transformers leaves out
    (
      {'architectures': ['LlamaForRewardModelWithGating']},
      r"LlamaForRewardModelWithGating'\] \(of reward models, only \['LlamaForSequenceClassification'\], one linear",
    ),
  ],
)
def test_models_with_another_head_are_refused_by_name(tmp_path, changes, message):
  entries = contents('llama_tied')['config'] | changes
  folder = write(tmp_path / 'model', 'llama_tied', {key: value for key, value in entries.items() if value is not None})
  with pytest.raises(ValueError, match=message):
    checkpoint_io.load_config(folder, output='score')


def test_a_family_without_a_classifier_is_refused():
  with pytest.raises(ValueError, match=r"transformers has no sequence classifier of model_type 'olmo2'"):
    checkpoint_io.load_config(GOLDEN / 'olmo2', output='score')


def test_padding_that_ends_a_response_is_not_stored(tmp_path):
  """transformers would take the end token for padding, and score the token before it."""
  assert classifiers.pad_token_id({'pad_token_id': 3, 'eos_token_id': 2}, None) == 3
  assert classifiers.pad_token_id({'pad_token_id': 2, 'eos_token_id': 2}, None) is None
  assert classifiers.pad_token_id({'pad_token_id': 2, 'eos_token_id': [1, 2]}, None) is None
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'pad_token': {'content': '<pad>'}}))
  (tmp_path / 'tokenizer.json').write_text(json.dumps({'added_tokens': [{'id': 9, 'content': '<pad>'}]}))
  assert classifiers.pad_token_id({'eos_token_id': 2}, tmp_path) == 9
  assert classifiers.pad_token_id({'eos_token_id': 9}, tmp_path) is None


def test_the_score_kernel_is_float32_with_the_documented_variance():
  kernel = layers.score_kernel(jax.random.key(0), 2048)
  assert (kernel.shape, kernel.dtype) == ((2048, 1), np.float32)
  assert np.var(kernel) == pytest.approx(1 / 2049, rel=0.1)
