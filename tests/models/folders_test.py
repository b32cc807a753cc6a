"""Tests of weights in several files, and of folders that appear complete or not at all."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, folders, manifest, weight_files
from tests.models import model_folders


def test_sharded_weights_equal_those_in_one_file(tmp_path):
  folder = model_folders.write(tmp_path / 'model')
  expected = model_folders.load(folder)
  names = sorted(safetensors_numpy.load_file(folder / folders.WEIGHTS))
  model_folders.shard(
    folder, {name: f'model-0000{index % 3 + 1}-of-00003.safetensors' for index, name in enumerate(names)}
  )
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(folder), expected)


def test_an_index_must_agree_with_its_files(tmp_path):
  folder = model_folders.write(tmp_path / 'model')
  names = sorted(safetensors_numpy.load_file(folder / folders.WEIGHTS))
  weight_map = {name: f'{"ab"[index % 2]}.safetensors' for index, name in enumerate(names)}
  model_folders.shard(folder, weight_map)
  index = folder / folders.INDEX
  folders.write_json(index, {'weight_map': weight_map | {names[0]: 'b.safetensors'}})
  with pytest.raises(ValueError, match=rf'[ab]\.safetensors: tensors differ .*: {names[0]}'):
    model_folders.load(folder)
  folders.write_json(index, {'weight_map': weight_map | {names[0]: 'c.safetensors'}})
  with pytest.raises(ValueError, match=r'[ac]\.safetensors: '):
    model_folders.load(folder)
  (folder / folders.WEIGHTS).write_bytes(b'')
  with pytest.raises(ValueError, match=r'holds both model\.safetensors and model\.safetensors\.index\.json'):
    model_folders.load(folder)


@pytest.mark.parametrize(
  'file',
  [
    '../a.safetensors',
    '/a.safetensors',
    'b/../../a.safetensors',
    'b\\a.safetensors',
    '..',
    '.a.safetensors',
    'a.bin',
    3,
  ],
)
def test_index_entries_outside_the_folder_are_refused(tmp_path, file):
  folder = model_folders.write(tmp_path / 'model')
  names = sorted(safetensors_numpy.load_file(folder / folders.WEIGHTS))
  model_folders.shard(folder, dict.fromkeys(names, 'a.safetensors'))
  (folder / 'a.safetensors').rename(tmp_path / 'a.safetensors')  # so that only the refusal keeps it from being read
  folders.write_json(folder / folders.INDEX, {'weight_map': dict.fromkeys(names, file)})
  with pytest.raises(
    ValueError, match=r'index\.json: weight_map\[.* must name a \.safetensors file in the same folder'
  ):
    model_folders.load(folder)


@pytest.mark.parametrize('weight_map', [None, [], {}, 'a.safetensors'])
def test_malformed_indices_are_refused(tmp_path, weight_map):
  folder = model_folders.write(tmp_path / 'model')
  (folder / folders.WEIGHTS).unlink()
  folders.write_json(folder / folders.INDEX, {'weight_map': weight_map})
  with pytest.raises(ValueError, match=r'index\.json: weight_map must be an object'):
    model_folders.load(folder)


def test_large_weights_are_written_in_several_files(tmp_path):
  source = model_folders.write(tmp_path / 'source')
  weights = safetensors_numpy.load_file(source / folders.WEIGHTS)
  largest = max(value.nbytes for value in weights.values())
  target = model_folders.write(tmp_path / 'target')
  (target / folders.WEIGHTS).unlink()
  folders.write_weights(target, weights.items(), shard_bytes=largest)
  index = json.loads((target / folders.INDEX).read_text())
  files = sorted(path.name for path in target.glob('*.safetensors'))
  assert files == [f'model-{i + 1:05d}-of-{len(files):05d}.safetensors' for i in range(len(files))]
  assert sorted(set(index['weight_map'].values())) == files
  assert 2 <= len(files) < len(weights)
  assert index['metadata']['total_size'] == sum(value.nbytes for value in weights.values())
  for file in files:
    assert sum(value.nbytes for value in safetensors_numpy.load_file(target / file).values()) <= largest
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(target), model_folders.load(source))


def test_saving_replaces_an_earlier_model(tmp_path):
  first, second = model_folders.write(tmp_path / 'first', tied=False), model_folders.write(tmp_path / 'second', seed=1)
  (first / folders.SHARD.pattern.replace(r'\d{5}', '00001').replace('\\', '')).write_bytes(b'stale')
  config, params = checkpoint_io.load_config(second), model_folders.load(second)
  checkpoint_io.save(first, config, params)
  assert model_folders.files(first).keys() == {folders.CONFIG, folders.WEIGHTS, manifest.FILE}
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(first), params)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['first', 'second']
  checkpoint_io.save(second, config, params, assets_from=second)  # in place
  assert {'tokenizer.json', 'tokenizer_config.json'} <= model_folders.files(second).keys()


def test_foreign_files_are_never_removed(tmp_path):
  source = model_folders.write(tmp_path / 'source')
  config, params = checkpoint_io.load_config(source), model_folders.load(source)
  (source / 'thesis.tex').write_text('the only copy')
  before = model_folders.files(source)
  with pytest.raises(ValueError, match=r'source: holds files that are not part of a model \(thesis\.tex\)'):
    checkpoint_io.save(source, config, params)
  assert model_folders.files(source) == before
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='file: is a file'):
    checkpoint_io.save(tmp_path / 'file', config, params)


def test_named_chat_templates_are_kept_listed_and_checked(tmp_path):
  source, out = model_folders.write(tmp_path / 'model'), tmp_path / 'out'
  config, params = checkpoint_io.load_config(source), model_folders.load(source)
  templates = source / 'additional_chat_templates'
  templates.mkdir()
  (templates / 'tool_use.jinja').write_text('tools')
  (templates / 'notes.txt').write_text('not a template')
  for _ in range(2):  # the second time, they replace those of the first
    checkpoint_io.save(out, config, params, assets_from=source)
  assert (out / 'additional_chat_templates' / 'tool_use.jinja').read_text() == 'tools'
  assert [path.name for path in (out / 'additional_chat_templates').iterdir()] == ['tool_use.jinja']
  assert 'additional_chat_templates/tool_use.jinja' in folders.read_json(out / manifest.FILE)['sha256']
  checkpoint_io.load_config(out)
  (out / 'additional_chat_templates' / 'tool_use.jinja').write_text('changed')
  with pytest.raises(ValueError, match=r'tool_use\.jinja: has changed since it was written'):
    checkpoint_io.load_config(out)
  (out / 'additional_chat_templates' / 'own.txt').write_text('foreign')
  with pytest.raises(ValueError, match=r'not part of a model \(additional_chat_templates/own\.txt\)'):
    checkpoint_io.save(out, config, params, assets_from=source)


@pytest.mark.parametrize('moment', ['writing', 'copy_assets', 'rename'])
def test_a_failure_leaves_the_earlier_model_and_no_half_folder(tmp_path, monkeypatch, moment):
  source = model_folders.write(tmp_path / 'source')
  config, params = checkpoint_io.load_config(source), model_folders.load(source)
  checkpoint_io.save(tmp_path / 'saved', config, params)
  before = model_folders.files(tmp_path / 'saved')

  def fail(*args, **options):
    raise KeyboardInterrupt

  if moment == 'rename':
    rename = folders.pathlib.Path.rename
    monkeypatch.setattr(
      folders.pathlib.Path,
      'rename',
      lambda path, target: fail() if path.name.endswith('.partial') else rename(path, target),
    )
  else:
    monkeypatch.setattr(weight_files if moment == 'writing' else folders, moment, fail)
  for name in ('saved', 'fresh'):
    with pytest.raises(KeyboardInterrupt):
      checkpoint_io.save(tmp_path / name, config, params, assets_from=source)
  assert model_folders.files(tmp_path / 'saved') == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ['saved', 'source']
