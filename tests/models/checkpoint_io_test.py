"""Tests of reading and writing Hugging Face folders."""

import json
import os

import jax
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, families, folders, manifest, tied_heads, transformer
from tests import assets
from tests.models import model_folders

QUERY = 'model.layers.1.self_attn.q_proj.weight'


@pytest.mark.parametrize('tied', [True, False])
def test_every_tensor_arrives_at_its_place(tmp_path, tied):
  folder = model_folders.write(tmp_path / 'model', tied=tied)
  stored = safetensors_numpy.load_file(folder / folders.WEIGHTS)
  leaves = model_folders.flat(model_folders.load(folder))
  seen = set()
  for leaf, value in leaves.items():
    tensor = families.LLAMA.tensor(leaf)
    for layer, name in enumerate(tensor.names(value.shape)):
      row = value[layer] if tensor.depth else value
      np.testing.assert_array_equal(row.T if tensor.transposed else row, stored[name])
      assert row.dtype == np.float32
      seen.add(name)
  assert seen == stored.keys()
  assert ('unembed/kernel' in leaves) is not tied


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_the_delta_is_taken_in_float32_and_lies_as_the_parameters_do(tmp_path, dtype):
  small = np.float32(2.0**-12)
  model, base = model_folders.write(tmp_path / 'model'), model_folders.write(tmp_path / 'base')
  weights = safetensors_numpy.load_file(base / folders.WEIGHTS)
  weights[QUERY] = weights[QUERY] - small  # a bfloat16 weight would not notice
  weights['model.norm.weight'] = weights['model.norm.weight'] * 3
  safetensors_numpy.save_file(weights, base / folders.WEIGHTS)
  config = checkpoint_io.load_config(model)
  shapes, treedef = checkpoint_io.parameter_shapes(config)
  mesh = jax.make_mesh((2,), ('x',), devices=jax.devices()[:2])
  specs = [PartitionSpec(None, 'x') if leaf.endswith('query/kernel') else PartitionSpec() for leaf in shapes]
  shardings = jax.tree.unflatten(treedef, [NamedSharding(mesh, spec) for spec in specs])
  delta = checkpoint_io.delta_from(model, base, config, shardings, dtype)
  assert jax.tree.map(lambda leaf: leaf.sharding, delta) == shardings
  leaves, of_model, of_base = (
    model_folders.flat(delta),
    model_folders.flat(model_folders.load(model)),
    model_folders.flat(model_folders.load(base)),
  )
  for leaf, value in leaves.items():
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, (of_model[leaf] - of_base[leaf]).astype(dtype))
  np.testing.assert_allclose(leaves['layers/attention/query/kernel'][1].astype(np.float32), small, rtol=1e-2)
  assert not leaves['layers/attention/query/kernel'][0].any()


def test_models_without_a_difference_are_refused_by_folder(tmp_path):
  model = model_folders.write(tmp_path / 'model')
  config = checkpoint_io.load_config(model)

  def refused(base, message, **options):
    with pytest.raises(ValueError, match=message):
      checkpoint_io.delta_from(model, base, config, **options)

  refused(model, r'model: has the same weights as .*model, so their difference is 0 everywhere')
  refused(model_folders.write(tmp_path / 'copy'), 'copy: has the same weights as')
  refused(
    model_folders.write(tmp_path / 'words', vocab_size=260),
    r'words/config\.json: vocab_size is 260, and in .*model it is 259: choose the model that .*model was fine-tuned',
  )
  refused(model_folders.write(tmp_path / 'lacks', _without), f'lacks/model.safetensors: tensors missing: {QUERY}')
  refused(
    model_folders.write(tmp_path / 'wide', width=16),
    r'wide/config\.json: hidden_size is 16, and in .*model it is 8: choose',
  )
  refused(tmp_path / 'nowhere', 'nowhere/config.json')
  refused(
    model_folders.write(tmp_path / 'other', seed=1), "dtype='float16': must be bfloat16 or float32", dtype='float16'
  )


def test_overrides_change_the_configuration(tmp_path):
  folder = model_folders.write(tmp_path / 'model')
  config = checkpoint_io.load_config(folder, compute_dtype='bfloat16', max_positions=64)
  assert (config.compute_dtype, config.max_positions, config.width) == ('bfloat16', 64, 8)
  with pytest.raises(ValueError, match=r'unknown fields of TransformerConfig: widht; known: .*width'):
    checkpoint_io.load_config(folder, widht=3)
  with pytest.raises(ValueError, match=r'^heads=2 is not a multiple of kv_heads=3'):
    checkpoint_io.load_config(folder, kv_heads=3)


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '"llama"', '{"model_type": "gpt9"}', '{}', '[' * 10**5])
def test_malformed_configurations_are_refused_by_file(tmp_path, text):
  folder = model_folders.write(tmp_path / 'model')
  config = checkpoint_io.load_config(folder)
  (folder / folders.CONFIG).write_text(text)
  for read in (checkpoint_io.load_config, lambda folder: checkpoint_io.load_params(folder, config)):
    with pytest.raises(ValueError, match=str(folder / folders.CONFIG)):
      read(folder)


def test_json_that_is_not_an_object_is_called_so(tmp_path):
  folder = model_folders.write(tmp_path / 'model')
  (folder / folders.CONFIG).write_text('[]')
  with pytest.raises(ValueError, match=r'config\.json: must hold a JSON object'):
    checkpoint_io.load_config(folder)


def test_absent_folders_and_weights_are_refused_by_name(tmp_path):
  with pytest.raises(ValueError, match=r'nowhere/config\.json'):
    checkpoint_io.load_config(tmp_path / 'nowhere')
  folder = model_folders.write(tmp_path / 'model')
  (folder / folders.WEIGHTS).unlink()
  with pytest.raises(ValueError, match=r'model: holds neither model\.safetensors nor'):
    model_folders.load(folder)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(tmp_path, dtype):
  folder = model_folders.write(
    tmp_path / 'model', lambda weights: {name: value.astype(dtype) for name, value in weights.items()}
  )
  stored = safetensors_numpy.load_file(model_folders.write(tmp_path / 'full') / folders.WEIGHTS)
  query = model_folders.flat(model_folders.load(folder))['layers/attention/query/kernel']
  assert query.dtype == np.float32
  np.testing.assert_array_equal(query[1].T, stored[QUERY].astype(dtype).astype(np.float32))


def _without(weights):
  return {name: value for name, value in weights.items() if name != QUERY}


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    (_without, f'tensors missing: {QUERY}'),
    (lambda weights: weights | {'lm_head.weight': np.ones((2, 2), np.float32)}, 'tensors unexpected: lm_head.weight'),
    (lambda weights: weights | {QUERY: np.ones((8, 6), np.float32)}, rf'{QUERY} \(expected \(8, 8\), found \(8, 6\)\)'),
    (lambda weights: weights | {QUERY: np.ones((8, 8), np.int32)}, f'{QUERY}: type I32 is not one of F32, F16, BF16'),
    (
      lambda weights: weights | {QUERY: np.full((8, 8), np.nan, np.float32)},
      f'{QUERY} .float32. holds values that are',
    ),
    (lambda weights: {}, '0 tensors are too few for 3 layers'),
    (
      lambda weights: {f'x.{name}': value for name, value in weights.items()},
      'tensors missing: model.embed_tokens.weight, .* and 21 more; tensors unexpected: x.model.embed_tokens.weight, ',
    ),
  ],
)
def test_unfit_tensors_are_refused_by_name_and_file(tmp_path, weights, message):
  folder = model_folders.write(tmp_path / 'model', weights)
  with pytest.raises(ValueError, match=rf'model\.safetensors: .*{message}'):
    model_folders.load(folder)


def test_a_stored_tied_head_is_accepted_where_it_is_the_embedding(tmp_path, monkeypatch):
  monkeypatch.setattr(tied_heads, '_BLOCK', 40)
  plain = model_folders.load(model_folders.write(tmp_path / 'plain'))

  def stored(name, change):
    def add(weights):
      return weights | {'lm_head.weight': change(weights['model.embed_tokens.weight'])}

    return model_folders.write(tmp_path / name, add)

  folder = stored('equal', np.copy)
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(folder), plain)
  config = checkpoint_io.load_config(folder)
  checkpoint_io.load_head(folder, config)
  with pytest.raises(ValueError, match='equal: has the same weights as'):
    checkpoint_io.delta_from(tmp_path / 'plain', folder, config)

  def last_differs(embedding):
    return np.concatenate([embedding[:-1], embedding[-1:] + 1])

  with pytest.raises(ValueError, match=r'model\.safetensors: tensor lm_head\.weight differs from model\.embed_tokens'):
    model_folders.load(stored('different', last_differs))


def test_the_delta_compares_what_configurations_mean(tmp_path):
  model, base = model_folders.write(tmp_path / 'model'), model_folders.write(tmp_path / 'base')
  entries = folders.read_json(base / folders.CONFIG)
  theta = {'rope_parameters': {'rope_theta': 500.0, 'rope_type': 'default'}}
  kept = {key: value for key, value in entries.items() if not key.startswith('rope')}
  folders.write_json(base / folders.CONFIG, kept | theta)
  config = checkpoint_io.load_config(model, compute_dtype='bfloat16')
  with pytest.raises(ValueError, match=r'base/config\.json: rope_theta is 500.0, and in .*model it is 10000.0: choose'):
    checkpoint_io.delta_from(model, base, config)


def test_rotary_frequencies_of_old_exports_are_passed_over(tmp_path):
  extra = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(2, np.float32)}
  folder = model_folders.write(tmp_path / 'model', lambda weights: weights | extra)
  jax.tree.map(
    np.testing.assert_array_equal,
    model_folders.load(folder),
    model_folders.load(model_folders.write(tmp_path / 'plain')),
  )


def test_leaves_are_placed_on_the_given_shardings(tmp_path):
  folder = model_folders.write(tmp_path / 'model')
  expected = model_folders.load(folder)
  mesh = jax.make_mesh((2, 4), ('fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  specs = {1: PartitionSpec(), 2: PartitionSpec(None, 'fsdp'), 3: PartitionSpec(None, 'fsdp', 'tensor')}
  shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, specs[leaf.ndim]), expected)
  placed = model_folders.load(folder, shardings=shardings)
  jax.tree.map(np.testing.assert_array_equal, placed, expected)
  assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, placed, shardings))
  checkpoint_io.save(tmp_path / 'saved', checkpoint_io.load_config(folder), placed)
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(tmp_path / 'saved'), expected)
  del shardings['embed']
  with pytest.raises(ValueError, match='embed'):
    model_folders.load(folder, shardings=shardings)


def test_the_host_holds_one_leaf_and_one_tensor_at_a_time(tmp_path, monkeypatch):
  folder = model_folders.write(tmp_path / 'model')
  events = []
  read, load = folders.StoredTensor.read, checkpoint_io._load
  monkeypatch.setattr(
    folders.StoredTensor, 'read', lambda self, *block: (events.append(self.name), read(self, *block))[1]
  )
  monkeypatch.setattr(checkpoint_io, '_load', lambda *args: (load(*args), events.append('place'))[0])
  model_folders.load(folder)
  up = [f'model.layers.{layer}.mlp.up_proj.weight' for layer in range(3)]
  start = events.index(up[0])
  assert events[start : start + 4] == [*up, 'place']
  assert events.count('place') == 11


def test_what_is_saved_is_loaded(tmp_path):
  source = model_folders.write(tmp_path / 'source')
  (source / 'chat_template.jinja').write_text('{{ messages }}')
  (source / 'notes.txt').write_text('not part of a model')
  config, params = checkpoint_io.load_config(source), model_folders.load(source)
  checkpoint_io.save(tmp_path / 'deep' / 'saved', config, params, assets_from=source)
  saved = tmp_path / 'deep' / 'saved'
  assert checkpoint_io.load_config(saved) == config
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(saved), params)
  before, after = model_folders.files(source), model_folders.files(saved)
  assert before.keys() - after.keys() == {'notes.txt'}
  for name in after.keys() - {folders.CONFIG, manifest.FILE}:
    assert after[name] == before[name]
  entries = json.loads(after[folders.CONFIG])
  assert (entries['bos_token_id'], entries['eos_token_id'], entries['torch_dtype']) == (1, 2, 'float32')
  assert [path.name for path in saved.parent.iterdir()] == ['saved']


def test_saved_files_may_be_read_by_whom_the_umask_allows(tmp_path):
  source = model_folders.write(tmp_path / 'source')
  previous = os.umask(0o022)
  try:
    checkpoint_io.save(
      tmp_path / 'saved', checkpoint_io.load_config(source), model_folders.load(source), assets_from=source
    )
  finally:
    os.umask(previous)
  assert (tmp_path / 'saved').stat().st_mode & 0o777 == 0o755
  assert {path.stat().st_mode & 0o777 for path in (tmp_path / 'saved').iterdir()} == {0o644}


@pytest.mark.parametrize(('dtype', 'stored'), [('bfloat16', ml_dtypes.bfloat16), ('float16', np.float16)])
def test_half_precision_is_written(tmp_path, dtype, stored):
  source = model_folders.write(tmp_path / 'source')
  params = model_folders.load(source)
  checkpoint_io.save(tmp_path / 'saved', checkpoint_io.load_config(source), params, dtype=dtype)
  assert json.loads((tmp_path / 'saved' / folders.CONFIG).read_text())['torch_dtype'] == dtype
  half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(stored).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, model_folders.load(tmp_path / 'saved'), half)
  size = (tmp_path / 'saved' / folders.WEIGHTS).stat().st_size
  assert size < 0.75 * (source / folders.WEIGHTS).stat().st_size


def test_unfit_parameters_are_refused_by_name(tmp_path):
  source = model_folders.write(tmp_path / 'source')
  config, params = checkpoint_io.load_config(source), model_folders.load(source)
  scale = params['final_norm']['scale']

  def refused(message, params, **options):
    with pytest.raises(ValueError, match=message):
      checkpoint_io.save(tmp_path / 'saved', config, params, **options)
    assert not (tmp_path / 'saved').exists()

  refused('missing or unexpected final_norm/scale', {key: params[key] for key in params if key != 'final_norm'})
  refused('missing or unexpected unembed/kernel', params | {'unembed': {'kernel': scale}})
  refused(r'final_norm/scale: expected shape \(8,\), found \(4,\)', params | {'final_norm': {'scale': scale[:4]}})
  refused(r'model\.norm\.weight .*not finite', params | {'final_norm': {'scale': scale.at[0].set(np.inf)}})
  refused(
    r'model\.norm\.weight \(float16\) .*not finite', params | {'final_norm': {'scale': scale + 1e5}}, dtype='float16'
  )
  refused("dtype='int8': must be one of float32, float16, bfloat16", params, dtype='int8')
  refused(r'nowhere/config\.json', params, assets_from=tmp_path / 'nowhere')


def test_a_padded_vocabulary_is_kept(tmp_path):
  """Embeddings often have more rows than the tokenizer has tokens."""
  source = model_folders.write(tmp_path / 'source', vocab_size=264, tied=False)
  assets.write_tiny_tokenizer(source, 259)
  config, params = checkpoint_io.load_config(source), model_folders.load(source)
  assert params['embed']['embedding'].shape == (264, 8)
  assert transformer.build(config).head(params).kernel.shape == (8, 264)
  checkpoint_io.save(tmp_path / 'saved', config, params, assets_from=source)
  before, after = model_folders.files(source), model_folders.files(tmp_path / 'saved')
  assert (after[folders.WEIGHTS], after['tokenizer.json']) == (before[folders.WEIGHTS], before['tokenizer.json'])
