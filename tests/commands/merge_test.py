"""Merging of folders: the result, the record of it, and what is refused, with nothing left behind."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

from alignjax import merging
from alignjax.commands import merge, program
from alignjax.models import checkpoint_io, folders, manifest
from alignjax.run import folder_tensors, merge_folders
from tests import assets

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
SIZES = {'vocab_size': 259, 'width': 8, 'heads': 2, 'kv_heads': 1, 'mlp_width': 8, 'layers': 2}  # blocks of few shapes
QUERY = 'model.layers.1.self_attn.q_proj.weight'
EMBEDDING = 'model.embed_tokens.weight'


LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """So that tiny tensors, too, are read in several blocks."""
  monkeypatch.setattr(folder_tensors, 'BLOCK_ENTRIES', 40)


@pytest.fixture
def models(tmp_path):
  """Folders base, first and second."""
  for seed, name in enumerate(('base', 'first', 'second')):
    assets.write_tiny_model(tmp_path / name, seed, **SIZES)
  return tmp_path


def load(folder):
  return safetensors_numpy.load_file(folder / folders.WEIGHTS)


def edit(folder, change):
  """Rewrites the weights of a folder."""
  safetensors_numpy.save_file(change(load(folder)), folder / folders.WEIGHTS)


def edit_json(folder, name, **entries):
  path = folder / name
  folders.write_json(path, folders.read_json(path) | entries)


def spell_anew(folder, theta=10000.0, scaling=None):
  """Writes the rotary entries of a folder as transformers 5 does."""
  entries = folders.read_json(folder / folders.CONFIG)
  kept = {key: value for key, value in entries.items() if key not in ('rope_theta', 'rope_scaling', 'torch_dtype')}
  rotary = {'rope_parameters': {'rope_type': 'default', 'rope_theta': theta} | (scaling or {})}
  folders.write_json(folder / folders.CONFIG, kept | rotary | {'dtype': 'float32'})


def run(models, text='linear()', *, base=None, **options):
  """Merges first and second into merged."""
  advance = {'advance': options.pop('advance')} if 'advance' in options else {}
  merge_folders.merge(
    models / 'merged',
    merge_folders.parse_method(text),
    merge_folders.Inputs([models / 'first', models / 'second'], base and models / base, options.pop('weights', None)),
    merge_folders.Output(**options),
    **advance,
  )
  return models / 'merged'


@pytest.mark.parametrize(
  ('text', 'weights'),
  [
    ('linear()', '0.3,0.7'),
    ("slerp(t='*mlp*=0.2; *=0.6')", None),
    pytest.param('task_arithmetic(scale=0.5)', None, marks=pytest.mark.slow),
    pytest.param('ties(density=0.3)', '*.mlp.*=0.3,0.7; *=0.5', marks=pytest.mark.slow),
    pytest.param("dare(density='0.4,0.6', consensus='ties', rescale='l1', seed=5)", [1.0, 2.0], marks=pytest.mark.slow),
    pytest.param('breadcrumbs(density=0.7, gamma=0.1)', '*.mlp.*=0.3,0.7; *=0.5', marks=pytest.mark.slow),
    pytest.param('della(density=0.5, epsilon=0.2)', None, marks=pytest.mark.slow),
    pytest.param('model_stock()', None, marks=pytest.mark.slow),
  ],
)
def test_folders_give_what_trees_give(models, text, weights):
  method = merge_folders.parse_method(text)
  base = 'base' if method.needs_base else None
  if text == 'model_stock()':  # random models point nowhere together
    edit(models / 'first', lambda tensors: {k: v + load(models / 'second')[k] for k, v in tensors.items()})
  merged = load(run(models, text, base=base, weights=weights))
  trees = [load(models / name) for name in ('first', 'second')]
  expected = merging.merge(method, trees, base and load(models / base), weights=weights)
  assert merged.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(merged[name], value, rtol=1e-5, atol=5e-6, err_msg=name)
  assert all(np.any(merged[name] != tree[name]) for tree in trees for name in merged)


def test_the_result_loads_as_a_model(models):
  merged = run(models, weights=[1.0, 3.0])
  config = checkpoint_io.load_config(merged)
  params = checkpoint_io.load_params(merged, config)
  parts = [checkpoint_io.load_params(models / name, config) for name in ('first', 'second')]
  expected = jax.tree.map(lambda a, b: 0.25 * np.asarray(a) + 0.75 * np.asarray(b), *parts)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), params, expected)
  names = {path.name for path in merged.iterdir()}
  assert names == {path.name for path in (models / 'first').iterdir()} | {'merge.json', manifest.FILE}


def test_one_meaning_in_two_spellings_and_a_stored_tied_head_merge(models):
  """A fine-tune that transformers 5 or another tool has saved, against the original."""
  expected = load(run(models))
  (models / 'merged').rename(models / 'plain')
  edit_json(models / 'first', folders.CONFIG, rope_scaling=LLAMA3)
  spell_anew(models / 'second', scaling=LLAMA3)
  edit(models / 'second', lambda tensors: tensors | {'lm_head.weight': tensors[EMBEDDING]})
  merged = run(models)
  assert load(merged).keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(load(merged)[name], value)
  assert checkpoint_io.load_config(merged).rope_scaling.factor == 8.0


def test_folders_in_several_files_are_read_and_written(models):
  whole = load(run(models))
  tensors = load(models / 'first')
  names = sorted(tensors)
  (models / 'first' / folders.WEIGHTS).unlink()
  folders.write_weights(models / 'first', [(name, tensors[name]) for name in reversed(names)], shard_bytes=3000)
  assert (models / 'first' / folders.INDEX).exists()
  (models / 'merged').rename(models / 'whole')
  merged = run(models, shard_bytes=1500)
  index = folders.read_json(merged / folders.INDEX)
  assert len(set(index['weight_map'].values())) > 3
  assert index['metadata']['total_size'] == sum(value.nbytes for value in whole.values())
  together = {}
  for file in sorted(set(index['weight_map'].values())):
    part = safetensors_numpy.load_file(merged / file)
    assert sum(value.nbytes for value in part.values()) <= 1500 or len(part) == 1
    assert {name for name, place in index['weight_map'].items() if place == file} == part.keys()
    together |= part
  assert together.keys() == whole.keys()
  for name, value in whole.items():
    np.testing.assert_array_equal(together[name], value)
  checkpoint_io.load_params(merged, checkpoint_io.load_config(merged))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_the_result_is_rounded_once(models, dtype):
  exact = load(run(models))
  (models / 'merged').rename(models / 'exact')
  merged = run(models, dtype=dtype)
  for name, value in load(merged).items():
    assert value.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(value, exact[name].astype(dtype))
  assert folders.read_json(merged / folders.CONFIG)['torch_dtype'] == dtype
  checkpoint_io.load_params(merged, checkpoint_io.load_config(merged))


def test_types_are_those_of_the_first_model(models):
  def halve(tensors):
    return {name: value.astype(ml_dtypes.bfloat16 if name == QUERY else np.float32) for name, value in tensors.items()}

  edit(models / 'first', halve)
  merged = load(run(models))
  assert {name for name, value in merged.items() if value.dtype == ml_dtypes.bfloat16} == {QUERY}


def test_the_record_says_what_was_merged(models):
  merged = run(models, 'ties(0.5)', base='base', weights='0.3,0.7', dtype='bfloat16')
  record = json.loads((merged / 'merge.json').read_text())
  assert record == {
    'method': 'ties(density=0.5, normalize=True, scale=1.0)',
    'models': [str(models / 'first'), str(models / 'second')],
    'base': str(models / 'base'),
    'weights': '0.3,0.7',
    'dtype': 'bfloat16',
  }
  with safetensors.safe_open(merged / folders.WEIGHTS, framework='np') as file:
    assert file.metadata()['format'] == 'pt'
    assert json.loads(file.metadata()['alignjax_merge']) == record


def test_tokenizer_and_configuration_come_from_the_first_model_or_as_told(models):
  edit_json(models / 'first', folders.CONFIG, eos_token_id=0)
  edit_json(models / 'second', 'generation_config.json', temperature=0.5)
  merged = run(models)
  assert folders.read_json(merged / folders.CONFIG)['eos_token_id'] == 0
  assert 'temperature' not in folders.read_json(merged / 'generation_config.json')
  merged.rename(models / 'other')
  merged = run(models, assets_from=models / 'second')
  assert folders.read_json(merged / folders.CONFIG)['eos_token_id'] == 2
  assert folders.read_json(merged / 'generation_config.json')['temperature'] == 0.5


def without(name):
  return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def replaced(name, value):
  return lambda tensors: {**tensors, name: value}


@pytest.mark.parametrize(
  ('spoil', 'options', 'says'),
  [
    (lambda m: (m / 'merged').mkdir(), {}, r'--out=.*merged: the folder exists; choose another one'),
    (lambda m: None, {'dtype': 'int8'}, '--dtype=int8: must be one of float32, float16, bfloat16'),
    (lambda m: None, {'text': 'ties()'}, r'ties\(.*\) merges differences from a base model: .*--base'),
    (lambda m: None, {'base': 'base'}, r'linear\(.*\) takes no base model'),
    (lambda m: None, {'weights': '1,2,3'}, r'weights: 3 values for 2 models'),
    (lambda m: None, {'weights': '*.mpl.*=1; *=2'}, r"weights: no tensor is left for the pattern '\*.mpl.\*'"),
    (lambda m: (m / 'second' / folders.CONFIG).unlink(), {}, r'second/config\.json'),
    (lambda m: (m / 'second' / folders.WEIGHTS).unlink(), {}, 'second: holds neither model.safetensors nor'),
    (
      lambda m: edit(m / 'second', without(QUERY)),
      {},
      rf'second: cannot be merged with .*first: tensors missing: {QUERY}',
    ),
    (
      lambda m: edit(m / 'base', replaced('lm_head.weight', np.ones((2, 2), np.float32))),
      {'text': 'ties()', 'base': 'base'},
      r'base: cannot be merged with .*first: tensors additional: lm_head.weight',
    ),
    (
      lambda m: edit(m / 'second', replaced(QUERY, np.ones((8, 9), np.float32))),
      {},
      rf'second: .*tensors with another shape: {QUERY} \[8, 9\] instead of \[8, 8\]',
    ),
    (
      lambda m: edit_json(m / 'second', folders.CONFIG, vocab_size=300),
      {},
      r'second/config\.json: vocab_size is 300, and in .*first it is 259: these models cannot be merged',
    ),
    (
      lambda m: edit_json(m / 'second', folders.CONFIG, rope_theta=500000.0),
      {},
      r'second/config\.json: rope_theta is 500000.0, and in .*first it is 10000.0',
    ),
    (
      lambda m: edit_json(m / 'second', folders.CONFIG, rope_scaling={'rope_type': 'linear', 'factor': 2.0}),
      {},
      r'second/config\.json: rope_scaling is LinearScaling\(factor=2.0\), and in .*first it is None',
    ),
    (
      lambda m: spell_anew(m / 'second', theta=20.0),
      {},
      r'second/config\.json: rope_theta is 20.0, and in .*first it is 10000.0',
    ),
    (
      lambda m: spell_anew(m / 'second', scaling=LLAMA3),
      {},
      r'second/config\.json: rope_scaling is Llama3Scaling\(.*first it is None',
    ),
    (
      lambda m: edit_json(m / 'second', folders.CONFIG, num_key_value_heads=None),
      {},
      r'second/config\.json: num_key_value_heads is 2, and in .*first it is 1',
    ),
    (
      lambda m: [
        edit_json(m / name, folders.CONFIG, model_type='gpt9', rope_parameters={'rope_theta': theta})
        for name, theta in (('first', 1.0), ('second', 2.0))
      ],
      {},
      r"second/config\.json: rope_parameters is \{'rope_theta': 2.0\}, and in .*first it is",
    ),
    (
      lambda m: edit(m / 'second', lambda t: t | {'lm_head.weight': t[EMBEDDING] + 1}),
      {},
      rf'second: tensor lm_head.weight differs from {EMBEDDING}, but tie_word_embeddings of config.json is true',
    ),
    (
      lambda m: assets.write_tiny_tokenizer(m / 'second', 280),
      {},
      r'second: the tokenizer differs from that of .*first \(tokenizer.json\).*--allow_different_tokenizers',
    ),
    (
      lambda m: (m / 'second' / 'tokenizer.json').unlink(),
      {},
      r'second: the tokenizer differs from that of .*first \(tokenizer.json\)',
    ),
    (
      lambda m: edit(m / 'second', replaced(QUERY, np.full((8, 8), np.nan, np.float32))),
      {},
      rf'second/model\.safetensors: tensor {QUERY} \(float32\) holds values that are not finite',
    ),
    (
      lambda m: edit(m / 'second', replaced(QUERY, np.full((8, 8), 1e6, np.float32))),
      {'dtype': 'float16'},
      rf'tensor {QUERY} \(float16\) holds values that are not finite',
    ),
    (
      lambda m: edit(m / 'second', replaced(QUERY, np.ones((8, 8), np.int32))),
      {},
      rf'second/model\.safetensors: tensor {QUERY}: type I32 is not one of F32, F16, BF16',
    ),
  ],
)
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(models, spoil, options, says):
  spoil(models)
  before = sorted(path.name for path in models.iterdir())
  with pytest.raises(ValueError, match=says):
    run(models, **options)
  assert sorted(path.name for path in models.iterdir()) == before


def test_of_a_model_that_reads_images_the_text_model_is_merged(tmp_path):
  source = GOLDEN / 'gemma3_images'
  merge_folders.merge(tmp_path / 'out', merge_folders.parse_method('linear()'), merge_folders.Inputs([source]))
  config = checkpoint_io.load_config(source)
  assert folders.read_json(tmp_path / 'out' / folders.CONFIG)['model_type'] == config.model_type == 'gemma3_text'
  assert checkpoint_io.load_config(tmp_path / 'out') == config
  merged, read = (checkpoint_io.load_params(folder, config) for folder in (tmp_path / 'out', source))
  jax.tree.map(np.testing.assert_array_equal, merged, read)


def test_a_file_that_shrinks_under_way_is_noticed(models, monkeypatch):
  places = folder_tensors.places

  def read_then_cut(folder, config):
    found = places(folder, config)
    if folder.name == 'second':
      with (folder / folders.WEIGHTS).open('r+b') as file:
        file.truncate(max(place.offset for place in found.values()))
    return found

  monkeypatch.setattr(folder_tensors, 'places', read_then_cut)
  with pytest.raises(ValueError, match=r'second/model\.safetensors: tensor .*: the file ends in the middle of it'):
    run(models)
  assert not (models / 'merged').exists()


def test_an_interrupt_leaves_nothing(models):
  def interrupt(share):
    del share
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(models, advance=interrupt)
  assert sorted(path.name for path in models.iterdir()) == ['base', 'first', 'second']


def test_progress_adds_up_to_the_whole(models):
  shares = []
  run(models, advance=shares.append)
  assert len(shares) == len(load(models / 'first'))
  assert sum(shares) == pytest.approx(1.0)


def test_different_tokenizers_can_be_allowed(models):
  assets.write_tiny_tokenizer(models / 'second', 280)
  merged = run(models, allow_different_tokenizers=True)
  first = (models / 'first' / 'tokenizer.json').read_bytes()
  assert (merged / 'tokenizer.json').read_bytes() == first


def test_how_a_tokenizer_was_last_used_does_not_matter(models):
  edit_json(models / 'second', 'tokenizer.json', truncation={'max_length': 8}, padding=None)
  (models / 'second' / 'vocab.json').write_text('{}')
  merged = run(models)
  assert (merged / 'tokenizer.json').read_bytes() == (models / 'first' / 'tokenizer.json').read_bytes()


def test_command(models, capsys):
  arguments = [f'--models={models / "first"},{models / "second"}', f'--base={models / "base"}', '--weights=0.3,0.7']
  arguments += ['--method=ties(density=0.5)', f'--out={models / "command"}', '--dtype=bfloat16']
  assert program.execute(merge.PROGRAM, ['merge', *arguments]) == 0
  assert capsys.readouterr().out == f'wrote {models / "command"}\n'
  expected = load(run(models, 'ties(density=0.5)', base='base', weights=[0.3, 0.7], dtype='bfloat16'))
  for name, value in load(models / 'command').items():
    np.testing.assert_array_equal(value, expected[name])
  assert program.execute(merge.PROGRAM, ['merge', *arguments]) == 1
  assert f'error: --out={models / "command"}: the folder exists' in capsys.readouterr().err
