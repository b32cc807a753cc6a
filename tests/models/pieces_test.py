"""Pieces: arrays leave the devices in small blocks, and the files do not show it."""

import pathlib

import jax
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest

from alignjax.models import checkpoint_io, folders, lora, peft, pieces, quantization, weight_files
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from tests import quick
from tests.models import model_folders, plain_files

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob('*/config.json'))


@pytest.fixture
def gathered(monkeypatch):
  """The sizes in bytes of the arrays that were gathered on every device, as if they spanned several processes."""
  sizes = []
  monkeypatch.setattr(pieces, 'local', lambda array: not isinstance(array.sharding, NamedSharding))

  def counted(array, *block, gather=pieces.gather):
    piece = gather(array, *block)
    assert piece.is_fully_replicated
    sizes.append(piece.nbytes)
    return piece

  monkeypatch.setattr(pieces, 'gather', counted)
  return sizes


@pytest.mark.parametrize(
  ('dtype', 'spec'), [(np.float32, (None, 'y', 'x')), (ml_dtypes.bfloat16, (None, ('x', 'y'))), (np.int8, ())]
)
def test_a_block_has_the_bits_of_the_array(dtype, spec):
  rng = np.random.default_rng(0)
  array = rng.integers(0, 256, (3, 16, 8 * np.dtype(dtype).itemsize), np.uint8).view(dtype)  # every kind of number
  mesh = jax.make_mesh((2, 4), ('x', 'y'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
  for start, sizes in (((1, 0, 0), (1, 16, 8)), ((2, 3, 0), (1, 7, 8)), ((0, 9, 0), (1, 7, 8)), ((1, 3, 1), (2, 7, 6))):
    index = tuple(slice(first, first + size) for first, size in zip(start, sizes, strict=True))
    assert np.asarray(pieces.gather(placed, start, sizes)).tobytes() == array[index].tobytes()
    assert pieces.fetch(placed, start, sizes).tobytes() == array[index].tobytes()


def test_whole_arrays_arrive_in_rows(gathered, monkeypatch):
  monkeypatch.setattr(pieces, 'PIECE', 100)
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  array = np.arange(8 * 5 * 2, dtype=np.float32).reshape(8, 5, 2)
  for value in (array, array[0, 0, 0], array[:, 0, 0]):
    placed = jax.device_put(value, NamedSharding(mesh, PartitionSpec(*('x',) * min(1, value.ndim))))
    np.testing.assert_array_equal(pieces.fetch_all(placed), value)
  np.testing.assert_array_equal(pieces.fetch_all(array, (3,)), array[3])
  assert gathered == [80] * 4 + [4] + [32]


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('piece', quick.first(1, [100, 3000]))
def test_files_are_those_of_whole_arrays(family, piece, tmp_path, monkeypatch):
  config = checkpoint_io.load_config(GOLDEN / family)
  params = jax.tree.map(np.asarray, checkpoint_io.load_params(GOLDEN / family, config))
  sizes = []

  def fetch(array, start, block, fetch=pieces.fetch):
    sizes.append(fetch(array, start, block).nbytes)
    return fetch(array, start, block)

  monkeypatch.setattr(pieces, 'fetch', fetch)
  monkeypatch.setattr(pieces, 'PIECE', piece)
  checkpoint_io.save(tmp_path / 'out', config, params, dtype='bfloat16')
  found = (tmp_path / 'out' / folders.WEIGHTS).read_bytes()
  assert found == plain_files.weights(tmp_path / 'plain', config, params, 'bfloat16')
  row = 4 * max(shape[-1] if len(shape) > 1 else 1 for shape in checkpoint_io.parameter_shapes(config)[0].values())
  assert max(sizes) <= max(piece, row)


def sharded(params):
  """Parameters on a mesh with every axis."""
  mesh = parallel_mesh.make_mesh(2, 2, 2)
  return jax.device_put(params, rules.param_shardings(mesh, params))


@pytest.mark.parametrize('family', ['gpt_neox', pytest.param('llama_untied', marks=pytest.mark.slow)])
def test_a_sharded_model_is_never_whole_on_a_device(family, gathered, tmp_path, monkeypatch):
  config = checkpoint_io.load_config(GOLDEN / family)
  params = sharded(checkpoint_io.load_params(GOLDEN / family, config))
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
  monkeypatch.setattr(pieces, 'PIECE', largest // 16)
  checkpoint_io.save(tmp_path / 'out', config, params)
  found = (tmp_path / 'out' / folders.WEIGHTS).read_bytes()
  assert found == plain_files.weights(tmp_path / 'plain', config, params)
  assert max(gathered) <= largest // 16
  assert sum(gathered) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.slow  # adapters_test.py has the values, the test above the sizes of pieces
@pytest.mark.parametrize(
  ('family', 'quantized'),
  [('phi3', 'none'), pytest.param('llama_tied', 'int8', marks=pytest.mark.slow)],  # export_test.py has int8, too
)
def test_adapters_are_merged_layer_by_layer(family, quantized, gathered, tmp_path, monkeypatch):
  config = checkpoint_io.load_config(GOLDEN / family)
  base = checkpoint_io.load_params(GOLDEN / family, config)
  settings = lora.LoRA(rank=2, alpha=3.0, targets='query+value+mlp')
  rng = np.random.default_rng(0)
  adapters = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), lora.init(jax.random.key(0), base, settings)
  )
  base = sharded(base) if quantized == 'none' else quantization.quantize(base, quantized)
  adapters = sharded(adapters) if quantized == 'none' else adapters
  merged = []
  layer = lora.dense
  monkeypatch.setattr(lora, 'dense', lambda leaf: (merged.append(leaf.shape), layer(leaf))[1])
  monkeypatch.setattr(pieces, 'PIECE', 2000)
  checkpoint_io.save(tmp_path / 'out', config, lora.attach(base, adapters, settings))
  peft.save(tmp_path / 'adapter', config, settings, adapters, family)
  assert {shape[0] for shape in merged} == {1}
  assert max(gathered, default=0) <= 2000
  monkeypatch.undo()
  expected = plain_files.weights(tmp_path / 'plain', config, lora.attach(base, adapters, settings))
  assert (tmp_path / 'out' / folders.WEIGHTS).read_bytes() == expected
  expected = plain_files.adapter(tmp_path / 'plain', config, adapters)
  assert (tmp_path / 'adapter' / peft.WEIGHTS).read_bytes() == expected


def test_several_files_are_those_of_whole_arrays(tmp_path, monkeypatch):
  source = model_folders.write(tmp_path / 'source')
  tensors = model_folders.stored(source)
  names = sorted(tensors, reverse=True)
  (tmp_path / 'plain').mkdir()
  (tmp_path / 'out').mkdir()
  folders.write_weights(tmp_path / 'plain', [(name, tensors[name]) for name in names], shard_bytes=2000)
  planned = [weight_files.Planned(name, tensors[name].shape, 'float32') for name in names]
  with weight_files.writing(weight_files.divide(tmp_path / 'out', planned, 2000)) as writer:
    for name in sorted(names):
      for first in range(len(tensors[name]))[::-1]:
        writer.write(name, first, tensors[name][first : first + 1])
  assert model_folders.files(tmp_path / 'out') == model_folders.files(tmp_path / 'plain')
  with (
    pytest.raises(AssertionError, match='of the planned tensors were not written'),
    weight_files.writing({tmp_path / 'less': planned}) as writer,
  ):
    writer.write(names[0], 0, tensors[names[0]][:1])


@pytest.mark.parametrize('mesh', [(1, 8, 1), (1, 4, 2)])
def test_the_program_that_gathers_a_piece_needs_little_more_than_the_piece(mesh):
  """On every device: the piece, a copy of it, and parts of it. A layer has 4 times its size, a table 8 times."""
  mesh = parallel_mesh.make_mesh(*mesh)
  for leaf, shape, block in (
    ('layers/mlp/up/kernel', (4, 256, 512), (1, 256, 128)),
    ('layers/mlp/down/kernel', (4, 512, 256), (1, 512, 64)),
    ('unembed/kernel', (256, 1024), (256, 128)),
    ('embed/embedding', (1024, 256), (128, 256)),
  ):
    sharding = NamedSharding(mesh, rules.partition_spec(leaf, shape, mesh))
    arguments = (
      jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding),
      jax.ShapeDtypeStruct((len(shape),), np.int32),
    )
    program = pieces._gather_program(sharding, len(shape), block)
    memory = program.lower(*arguments).compile().memory_analysis()
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes <= 3 * 4 * np.prod(block)
