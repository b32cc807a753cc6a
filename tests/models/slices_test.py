"""Leaves are read by the parts that devices need, each byte once, in the dtype of the file."""

import contextlib
import itertools
import pathlib
import tracemalloc

from flax import nnx
import jax
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, folders, layers, manifest, slices, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.stats import head
from tests.models import model_folders

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob('*/config.json'))
PROCESSES = {'neighbours': [0, 0, 1, 1, 2, 2, 3, 3], 'torus': [0, 1, 0, 1, 2, 3, 2, 3]}  # of the devices


@pytest.fixture
def read(monkeypatch):
  """The sizes in bytes of what was read from weight files."""
  sizes = []

  def counted(self, values, offset, fill=folders.StoredTensor._fill):
    sizes.append(values.nbytes)
    fill(self, values, offset)

  monkeypatch.setattr(folders.StoredTensor, '_fill', counted)
  return sizes


@pytest.mark.parametrize(
  ('family', 'mesh'), [*((family, (2, 2, 2)) for family in FAMILIES), ('llama_untied', (1, 8, 1)), ('gpt2', (1, 8, 1))]
)
def test_a_process_reads_what_its_devices_need(family, mesh, read):
  config = checkpoint_io.load_config(GOLDEN / family)
  shapes, treedef = checkpoint_io.parameter_shapes(config)
  expected = model_folders.flat(checkpoint_io.load_params(GOLDEN / family, config))
  tree = jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes.values()])
  shardings = dict(
    zip(shapes, jax.tree.leaves(rules.param_shardings(parallel_mesh.make_mesh(*mesh), tree)), strict=True)
  )
  with contextlib.ExitStack() as stack:
    stored = checkpoint_io._open_leaves(GOLDEN / family, config, stack, (0, 1))
    for process, order in itertools.product((0, 3), PROCESSES.values()):
      devices = [device for device, owner in zip(jax.devices(), order, strict=True) if owner == process]
      for leaf, shape in shapes.items():
        everywhere = shardings[leaf].devices_indices_map(shape)
        indices = sorted({slices._index(everywhere[device], shape) for device in devices})
        read.clear()
        parts = stored[leaf].read(indices, 'float32')
        for part, index in zip(parts, indices, strict=True):
          np.testing.assert_array_equal(part, expected[leaf][tuple(slice(*each) for each in index)])
        assert sum(read) == sum(part.nbytes for part in parts)  # the files are float32


def test_any_part_of_any_axis_can_be_read():
  config = checkpoint_io.load_config(GOLDEN / 'gpt_neox')
  expected = model_folders.flat(checkpoint_io.load_params(GOLDEN / 'gpt_neox', config))
  rng = np.random.default_rng(0)
  with contextlib.ExitStack() as stack:
    stored = checkpoint_io._open_leaves(GOLDEN / 'gpt_neox', config, stack, (0, 1))
    for leaf, value in expected.items():
      indices = [
        tuple(
          (int(first), int(rng.integers(first + 1, size + 1))) for size in value.shape for first in [rng.integers(size)]
        )
        for _ in range(4)
      ]
      for part, index in zip(stored[leaf].read(indices, 'float32'), indices, strict=True):
        np.testing.assert_array_equal(part, value[tuple(slice(*each) for each in index)])


def test_one_process_reads_every_byte_once_in_whole_tensors(tmp_path, read):
  folder = model_folders.write(tmp_path / 'model', width=16)
  config = checkpoint_io.load_config(folder)
  shapes = jax.eval_shape(transformer.build(config).init, jax.random.key(0))
  checkpoint_io.load_params(folder, config, rules.param_shardings(parallel_mesh.make_mesh(), shapes))
  tensors = model_folders.stored(folder)
  assert sum(read) == sum(value.nbytes for value in tensors.values())
  halves = 4 * 3  # of `output` and `down`, whose rows are divided among 8 devices
  assert len(read) <= len(tensors) + 7 * 2 * 3 + halves


def rewrite(folder, dtype):
  """Rounds the weights of a folder, or some of them."""
  tensors = model_folders.stored(folder)
  for name in tensors:
    tensors[name] = tensors[name].astype(dtype(name) if callable(dtype) and not isinstance(dtype, type) else dtype)
  safetensors_numpy.save_file(tensors, folder / folders.WEIGHTS)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_leaves_keep_the_dtype_of_the_file(dtype, tmp_path):
  folder = model_folders.write(tmp_path / 'model')
  rewrite(folder, np.dtype(dtype))
  config = checkpoint_io.load_config(folder)
  kept = checkpoint_io.load_params(folder, config, loading=checkpoint_io.Loading(dtype=None))
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept)} == {dtype}
  cast = checkpoint_io.load_params(folder, config)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x, np.float32), y), kept, cast)
  tensors = model_folders.stored(folder)
  tensors['model.layers.1.mlp.up_proj.weight'] = tensors['model.layers.1.mlp.up_proj.weight'].astype(np.float32)
  safetensors_numpy.save_file(tensors, folder / folders.WEIGHTS)
  mixed = checkpoint_io.load_params(folder, config, loading=checkpoint_io.Loading(dtype=None))
  assert mixed['layers']['mlp']['up']['kernel'].dtype == np.float32
  assert mixed['layers']['mlp']['down']['kernel'].dtype == dtype


@pytest.mark.slow  # the parts of files are compared above, and golden_test.py has logits
@pytest.mark.parametrize(
  ('family', 'dtype', 'compute_dtype'),
  [
    ('gemma3', ml_dtypes.bfloat16, 'float32'),
    pytest.param('gpt2', np.float16, 'bfloat16', marks=pytest.mark.slow),
    pytest.param('gemma3', ml_dtypes.bfloat16, 'bfloat16', marks=pytest.mark.slow),
    pytest.param('gpt2', np.float16, 'float32', marks=pytest.mark.slow),
  ],
)
def test_logits_are_bit_for_bit_those_of_a_copy_in_float32(family, dtype, compute_dtype):
  """Norms with an offset, biases, positions and tied heads included."""
  golden = safetensors_numpy.load_file(GOLDEN / family / 'golden.safetensors')
  fields = [golden[field] for field in ('prompt', 'prompt_length', 'response', 'response_length')]
  config = checkpoint_io.load_config(GOLDEN / family, compute_dtype=compute_dtype)
  model = transformer.build(config)

  @jax.jit
  def logits(params):
    return head.logits(head.HiddenStates(model.hidden(params, *fields), model.head(params)))

  half = jax.tree.map(lambda leaf: leaf.astype(dtype), checkpoint_io.load_params(GOLDEN / family, config))
  copy = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
  np.testing.assert_array_equal(logits(half), logits(copy))


@pytest.mark.parametrize('norm', [layers.RMSNorm(64, 1e-6, 1.0), layers.LayerNorm(64, 1e-6)])
def test_norms_compute_in_float32_whatever_their_parameters(norm):
  """Op by op, because a compiler may leave out the rounding of an intermediate result."""
  rng = np.random.default_rng(0)
  half = {name: rng.standard_normal(64).astype(ml_dtypes.bfloat16) for name in nnx.to_pure_dict(nnx.state(norm))}
  x, found = rng.standard_normal((3, 64)).astype(np.float32), []
  for values in (half, {name: value.astype(np.float32) for name, value in half.items()}):
    for name, value in values.items():
      getattr(norm, name).set_value(jax.numpy.asarray(value))
    found.append(norm(x))
  assert found[0].dtype == np.float32
  np.testing.assert_array_equal(*found)


def test_processes_divide_the_verification(tmp_path):
  folder = model_folders.write(tmp_path / 'model')
  names = list(model_folders.stored(folder))
  model_folders.shard(folder, {name: f'model-0000{1 + i % 3}-of-00003.safetensors' for i, name in enumerate(names)})
  manifest.write(folder, {})
  model_folders.flip_bit(folder / 'model-00002-of-00003.safetensors')
  for part in (0, 2):
    manifest.check_weights(folder, part, 3)
  for share in ((1, 3), (0, 1)):
    with pytest.raises(ValueError, match=r'model-00002-of-00003\.safetensors: has changed'):
      manifest.check_weights(folder, *share)


def test_a_replicated_leaf_is_read_once(tmp_path, read):
  folder = model_folders.write(tmp_path / 'model')
  config = checkpoint_io.load_config(folder)
  mesh = parallel_mesh.make_mesh()
  places = jax.tree.map(
    lambda _: NamedSharding(mesh, PartitionSpec()), jax.eval_shape(transformer.build(config).init, jax.random.key(0))
  )
  checkpoint_io.load_params(folder, config, places)
  assert sum(read) == sum(value.nbytes for value in model_folders.stored(folder).values())


def test_the_host_holds_little_besides_the_leaf(tmp_path, monkeypatch):
  monkeypatch.setattr(slices, 'BLOCK_ENTRIES', 1000)
  folder = model_folders.write(tmp_path / 'model', width=64, mlp_width=512)
  config = checkpoint_io.load_config(folder)
  with contextlib.ExitStack() as stack:
    stored = checkpoint_io._open_leaves(folder, config, stack, (0, 1))
    for leaf in ('embed/embedding', 'layers/mlp/up/kernel'):
      index = tuple((0, size) for size in stored[leaf].shape)
      tracemalloc.start()
      try:
        (part,) = stored[leaf].read([index], 'float32')
        _, peak = tracemalloc.get_traced_memory()
      finally:
        tracemalloc.stop()
      assert part.nbytes <= peak < 1.3 * part.nbytes
