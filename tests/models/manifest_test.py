"""Manifests: what they list, and what they find."""

import hashlib
import json

import jax
import numpy as np
import pytest

from alignjax.models import checkpoint_io, folders, lora, manifest, peft
from alignjax.run import merge_folders
from tests.models import model_folders


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A folder that `checkpoint_io.save` wrote, its configuration and its parameters."""
  source = model_folders.write(tmp_path_factory.mktemp('source') / 'model')
  folder = source.with_name('written')
  config, params = checkpoint_io.load_config(source), model_folders.load(source)
  checkpoint_io.save(folder, config, params, assets_from=source, about=folders.About({'step': 8}))
  return folder, config, params


@pytest.fixture
def copy(written, tmp_path):
  """A copy of that folder, to damage."""
  folder = tmp_path / 'copy'
  folder.mkdir()
  for name, data in model_folders.files(written[0]).items():
    (folder / name).write_bytes(data)
  return folder


DAMAGES = {
  'flip': model_folders.flip_bit,
  'truncate': lambda path: path.write_bytes(path.read_bytes()[:-1]),
  'append': lambda path: path.write_bytes(path.read_bytes() + b' '),
  'delete': lambda path: path.unlink(),
}


def test_it_lists_the_sha256_of_every_other_file_and_the_source(written):
  files = model_folders.files(written[0])
  entries = json.loads(files.pop(manifest.FILE))
  assert entries == {
    'source': {'step': 8},
    'sha256': {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
  }
  assert {'config.json', 'model.safetensors', 'tokenizer.json', 'generation_config.json'} <= files.keys()


def test_an_intact_folder_loads(written, copy):
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(copy), written[2])
  (copy / 'README.md').write_text('files that are not listed are not checked')
  model_folders.load(copy)


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_to_any_file_is_refused_by_name(copy, damage):
  for name in json.loads((copy / manifest.FILE).read_text())['sha256']:
    before = (copy / name).read_bytes()
    DAMAGES[damage](copy / name)
    what = 'is missing' if damage == 'delete' else 'has changed since it was written'
    with pytest.raises(ValueError, match=f'^{copy / name}: {what}.*delete {copy / manifest.FILE}$'):
      model_folders.load(copy)
    (copy / name).write_bytes(before)
  model_folders.load(copy)


def test_a_damaged_manifest_is_refused_and_no_manifest_is_no_check(written, copy):
  for text in ('{', '[]', '{"sha256": {}}', '{"source": {}, "sha256": {"../a": "0"}}', '[' * 10**5):
    (copy / manifest.FILE).write_text(text)
    with pytest.raises(ValueError, match=f'^{copy / manifest.FILE}: is damaged'):
      model_folders.load(copy)
  (copy / manifest.FILE).unlink()
  model_folders.flip_bit(copy / folders.WEIGHTS)
  loaded = model_folders.load(copy)
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(written[2]), strict=True))


def test_heads_deltas_and_merges_check_their_folders_too(written, copy):
  intact, config, _ = written
  model_folders.flip_bit(copy / folders.WEIGHTS)
  message = f'{copy / folders.WEIGHTS}: has changed'
  with pytest.raises(ValueError, match=message):
    checkpoint_io.load_head(copy, config)
  with pytest.raises(ValueError, match=message):
    checkpoint_io.delta_from(intact, copy, config)
  linear = merge_folders.parse_method('linear()')
  with pytest.raises(ValueError, match=message):
    merge_folders.merge(copy.with_name('out'), linear, merge_folders.Inputs([intact, copy]))
  model_folders.flip_bit(copy / 'tokenizer.json')
  with pytest.raises(ValueError, match=f'{copy / "tokenizer.json"}: has changed'):
    merge_folders.merge(copy.with_name('out'), linear, merge_folders.Inputs([intact, copy]))


def test_adapters_are_checked(written, tmp_path):
  _, config, params = written
  settings = lora.LoRA(rank=2, alpha=3.0, targets='query')
  peft.save(tmp_path / 'adapter', config, settings, lora.init(jax.random.key(0), params, settings), 'base')
  peft.load(tmp_path / 'adapter', config)
  model_folders.flip_bit(tmp_path / 'adapter' / peft.WEIGHTS)
  with pytest.raises(ValueError, match=f'{tmp_path / "adapter" / peft.WEIGHTS}: has changed'):
    peft.load(tmp_path / 'adapter', config)
