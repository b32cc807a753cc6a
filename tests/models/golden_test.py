"""The decoder against logits and states that Hugging Face transformers computed (tests/golden/make.py)."""

import pathlib

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, transformer
from alignjax.stats import head

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
TOLERANCE = 1e-4  # of logits up to 6.7, float32; measured: 1.3e-5
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


@pytest.fixture(scope='module', params=sorted(path.parent.name for path in GOLDEN.glob('*/golden.safetensors')))
def loaded(request):
  return _load(request.param)


def test_the_golden_logits_are_far_from_constant(loaded):
  golden = loaded[-1]['logits']
  assert golden[0].std() > 0.5
  assert np.abs(golden[0, 0] - golden[0, 1])[:5].max() > 1


def test_logits_and_states_equal_those_of_transformers_whatever_the_padding(loaded):
  model, params, golden = loaded
  prompt = np.pad(golden['prompt'], ((0, 0), (0, 5)), constant_values=7)
  response = np.pad(golden['response'], ((0, 0), (0, 0), (0, 3)), constant_values=7)
  logits, hidden = _predict(model, params, prompt, golden['prompt_length'], response, golden['response_length'])
  assert _error(logits, golden) < TOLERANCE
  assert _error(hidden, golden, 'hidden') < TOLERANCE


def test_a_shared_prompt_equals_concatenation(loaded):
  """Each whole sequence as the only response to its first token: nothing is shared, and all is one causal forward."""
  model, params, golden = loaded
  prompts, lengths, responses = golden['prompt'], golden['prompt_length'], golden['response']
  steps = responses.shape[-1]
  rest = np.zeros((*responses.shape[:2], prompts.shape[1] - 1 + steps), np.int32)
  for row, length in enumerate(lengths):
    rest[row, :, : length - 1] = prompts[row, 1:length]
    rest[row, :, length - 1 : length - 1 + steps] = responses[row]
  rest = rest.reshape(-1, 1, rest.shape[-1])
  ones = np.ones(len(rest), np.int32)
  flat, _ = _predict(model, params, np.repeat(prompts[:, :1], 2, 0), ones, rest, ones[:, None] * rest.shape[-1])
  flat = flat.reshape(*responses.shape[:2], *flat.shape[2:])
  actual = np.stack([flat[row, :, length - 1 : length - 1 + steps] for row, length in enumerate(lengths)])
  assert _error(actual, golden) < TOLERANCE


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
  ours = safetensors_numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  theirs = safetensors_numpy.load_file(GOLDEN / request.node.callspec.params['loaded'] / 'model.safetensors')
  assert ours.keys() == theirs.keys()
  for tensor in ours:
    np.testing.assert_array_equal(ours[tensor], theirs[tensor])
