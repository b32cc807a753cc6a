"""The decoder against logits and states that Hugging Face transformers computed (tests/golden/make.py)."""

import pathlib

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.stats import head

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
TOLERANCE = 1e-4  # of logits up to 11, float32; measured: 2.7e-5, where transformers is 2.6e-5 off its own float64
FILES = ('golden.safetensors', 'hidden.safetensors')


def _load(name):
  config = checkpoint_io.load_config(GOLDEN / name)
  golden = {}
  for file in FILES:
    golden |= safetensors_numpy.load_file(GOLDEN / name / file)
  return transformer.build(config), checkpoint_io.load_params(GOLDEN / name, config), golden


def _predict(model, params, *batch):
  """Logits and the hidden states that they come from."""

  def apply(params, *batch):
    hidden = model.hidden(params, *batch)
    return head.logits(head.HiddenStates(hidden, model.head(params))), hidden

  return jax.device_get(jax.jit(apply)(params, *batch))


def _error(actual, golden, name='logits'):
  """Largest difference over response tokens; what is at padding is undefined."""
  length = golden['response_length'][..., None]
  mask = np.arange(golden[name].shape[2]) < length
  return np.abs(actual[:, :, : mask.shape[-1]] - golden[name])[mask].max()


FAMILIES = sorted(path.parent.name for path in GOLDEN.glob('*/golden.safetensors'))
# Every part of the decoder is in one of the other families; these are compared with --slow.
ALIKE = {
  'gemma': 'gemma2',
  'gemma3_images': 'gemma3',
  'gpt_neox_sequential': 'gpt_neox',
  'granite': 'llama_31',
  'llama_tied': 'llama_31',
  'llama_untied': 'mistral',
  'olmo2': 'olmo3',
  'phi3': 'phi3_longrope',
  'phi3_longrope_short': 'phi3_longrope',
  'qwen2': 'llama_biased',
  'qwen3': 'qwen3_yarn',
  'qwen3_moe': 'mixtral',
}
# What depends on the cache: windows, positions, layers without rotation, a factor chosen by the length. The other parts
# decode as they read whole responses, whose logits and states are always compared.
DECODED = {'gemma3', 'gpt2', 'phi3_longrope', 'smollm3'}


def families(decoded=FAMILIES):
  return [
    pytest.param(name, marks=() if name in decoded and name not in ALIKE else pytest.mark.slow) for name in FAMILIES
  ]


@pytest.fixture(scope='module', params=families())
def loaded(request):
  return _load(request.param)


def test_the_golden_logits_are_far_from_constant(loaded):
  golden = loaded[-1]['logits']
  assert golden[0].std() > 0.5
  assert np.abs(golden[0, 0] - golden[0, 1])[:5].max() > 1


def test_logits_and_states_equal_those_of_transformers_whatever_the_padding(loaded):
  """Here responses share their prompt; transformers has read each pair as one sequence without padding."""
  model, params, golden = loaded
  prompt = np.pad(golden['prompt'], ((0, 0), (0, 5)), constant_values=7)
  response = np.pad(golden['response'], ((0, 0), (0, 0), (0, 3)), constant_values=7)
  logits, hidden = _predict(model, params, prompt, golden['prompt_length'], response, golden['response_length'])
  assert _error(logits, golden) < TOLERANCE
  assert _error(hidden, golden, 'hidden') < TOLERANCE


@pytest.mark.parametrize('loaded', families(DECODED), indirect=True)
def test_decoding_equals_transformers(loaded):
  model, params, golden = loaded
  response = golden['response']
  steps = response.shape[-1]
  prefill = jax.jit(model.prefill, static_argnames=('samples', 'max_new_tokens'))
  cache = prefill(params, golden['prompt'], golden['prompt_length'], samples=2, max_new_tokens=steps)
  last = np.take_along_axis(golden['prompt'], golden['prompt_length'][:, None] - 1, axis=1)
  tokens = np.concatenate([np.repeat(last, 2, 1)[..., None], response[..., :-1]], axis=-1)
  decode, hidden = jax.jit(model.decode), []
  for step in range(steps):
    cache, state = decode(params, cache, tokens[..., step])
    hidden.append(np.asarray(state))
  actual = np.asarray(head.logits(head.HiddenStates(np.stack(hidden, axis=2), model.head(params))))
  assert _error(actual, golden) < TOLERANCE


def test_exported_weights_are_those_of_transformers(loaded, tmp_path, request):
  model, params, _ = loaded
  checkpoint_io.save(tmp_path / 'out', model.config, params)
  assert checkpoint_io.load_config(tmp_path / 'out') == model.config
  golden = GOLDEN / request.node.callspec.params['loaded']
  ours = safetensors_numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  theirs = safetensors_numpy.load_file(golden / 'model.safetensors')
  theirs = checkpoint_io.family_of(golden).prefixed(theirs)  # of a model that reads images, those of its text model
  assert ours.keys() == theirs.keys()
  for tensor in ours:
    np.testing.assert_array_equal(ours[tensor], theirs[tensor])


def test_what_is_left_out_of_a_model_that_reads_images_is_counted(caplog):
  folder = GOLDEN / 'gemma3_images'
  checkpoint_io.load_params(folder, checkpoint_io.load_config(folder))
  stored = safetensors_numpy.load_file(folder / 'model.safetensors')
  count = sum(not name.startswith('language_model.') for name in stored)
  assert count > 0
  assert f'{count} tensors of vision_tower and multi_modal_projector are left out' in caplog.text


def test_every_parameter_has_a_place_on_a_mesh(loaded):
  _, params, _ = loaded
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  for path, sharding in jax.tree_util.tree_leaves_with_path(rules.param_shardings(mesh, params)):
    assert ('tensor' in sharding.spec) is (path[-1].key == 'kernel' or path[0].key == 'embed' or _split(path, params))


def _split(path, params):
  """Whether these are the biases of outputs that are split, or experts of an even number."""
  if path[-1].key in ('gate', 'up', 'down'):
    return params['layers']['mlp'][path[-1].key].shape[1] % 2 == 0
  return path[-1].key == 'bias' and path[-2].key in ('query', 'key', 'value', 'gate', 'up')
