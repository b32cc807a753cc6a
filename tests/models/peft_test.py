"""PEFT folders: one that PEFT has made, with its logits (tests/golden/make_lora.py), and what is refused."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, families, lora, peft, transformer
from alignjax.stats import head

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
BASE, ADAPTER = GOLDEN / 'llama_tied', GOLDEN / 'peft_llama_tied'
CONFIG = checkpoint_io.load_config(BASE)
TOLERANCE = 1e-4  # of logits up to 9, float32


def _factors(path=ADAPTER):
  return safetensors_numpy.load_file(path / peft.WEIGHTS)


@pytest.fixture
def copy(tmp_path):
  return pathlib.Path(shutil.copytree(ADAPTER, tmp_path / 'copy'))


def test_logits_are_those_of_peft():
  golden = safetensors_numpy.load_file(BASE / 'golden.safetensors')
  expected = safetensors_numpy.load_file(ADAPTER / 'logits.safetensors')['logits']
  fields = [golden[name] for name in ('prompt', 'prompt_length', 'response', 'response_length')]
  model, base = transformer.build(CONFIG), checkpoint_io.load_params(BASE, CONFIG)
  settings, adapters = peft.load(ADAPTER, CONFIG)
  assert (settings.rank, settings.alpha) == (3, 5)
  policy = lora.bind(model, base, settings)

  def logits(adapters):
    return head.logits(head.HiddenStates(policy.hidden(adapters, *fields), policy.head(adapters)))

  found = np.asarray(jax.jit(logits)(adapters))
  valid = np.arange(found.shape[2]) < golden['response_length'][..., None]
  assert np.abs(found - expected)[valid].max() < TOLERANCE
  assert np.abs(golden['logits'] - expected)[valid].max() > 3


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
    ({'rank_pattern': {'q_proj': 8}}, 'rank_pattern='),
    ({'bias': 'all'}, "bias='all'"),
    ({'peft_type': 'ADALORA'}, "peft_type='ADALORA'"),
    ({'r': 0}, 'rank=0'),
    ({'r': 4}, r'lora_A.weight: expected shape \(4, 32\), found \(3, 32\)'),
  ],
)
def test_entries_that_are_not_supported_are_refused(copy, entries, message):
  (copy / peft.CONFIG).write_text(json.dumps(json.loads((copy / peft.CONFIG).read_text()) | entries))
  with pytest.raises(ValueError, match=message):
    peft.load(copy, CONFIG)


QUERY = 'base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda tensors: tensors.pop(QUERY), f'tensor missing: {QUERY}'),
    (lambda tensors: tensors.update(other=np.zeros(2, np.float32)), 'tensors unexpected: other'),
    (lambda tensors: tensors[QUERY].fill(np.nan), f'tensor {QUERY} .* not finite'),
    (lambda tensors: tensors.clear(), 'adapts no kernel'),
  ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(copy, change, message):
  tensors = _factors()
  change(tensors)
  safetensors_numpy.save_file(tensors, copy / peft.WEIGHTS)
  with pytest.raises(ValueError, match=message):
    peft.load(copy, CONFIG)


def test_a_kernel_that_is_stored_with_others_cannot_be_written(monkeypatch, tmp_path):
  llama = families.FAMILIES['llama']
  together = {f'layers/attention/{name}/kernel': 'model.layers.{layer}.qk.weight' for name in ('query', 'key')}
  tensors = tuple(tensor._replace(name=together.get(tensor.leaf, tensor.name)) for tensor in llama.tensors)
  settings, adapters = peft.load(ADAPTER, CONFIG)
  monkeypatch.setitem(families.FAMILIES, 'llama', dataclasses.replace(llama, tensors=tensors))
  with pytest.raises(ValueError, match=r'stores .*query/kernel.* in one tensor'):
    peft.save(tmp_path / 'out', CONFIG, settings, adapters, 'base')


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  settings, adapters = peft.load(ADAPTER, CONFIG)
  with pytest.raises(ValueError, match=r'notes\.txt'):
    peft.save(tmp_path, CONFIG, settings, adapters, 'base')
