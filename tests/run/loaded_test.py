"""What a run loads besides its state: read once, and compared when the run resumes."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, fingerprints, folders
from alignjax.optim import recipes, schedules
from alignjax.run import loaded, preparation, record, settings, training
from alignjax.training import checkpoint, metrics, placement, references, source
from tests import runs
from tests.models import model_folders

TENSOR = 'model.layers.0.mlp.up_proj.weight'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The files of a run, and two references: of bfloat16 weights, and with other weights."""
  folder = runs.write_folder(tmp_path_factory.mktemp('loaded'))
  for name, change in {
    'half': lambda weights: {key: value.astype('bfloat16') for key, value in weights.items()},
    'other': lambda weights: {key: value * np.float32(1.25) for key, value in weights.items()},
  }.items():
    (folder / name).mkdir()
    for file in (folder / 'model').iterdir():
      (folder / name / file.name).write_bytes(file.read_bytes())
    safetensors_numpy.save_file(change(model_folders.stored(folder / name)), folder / name / folders.WEIGHTS)
  return folder


@pytest.fixture
def read(monkeypatch):
  """The bytes that were read, by file."""
  found = {}

  def counted(self, values, offset, fill=folders.StoredTensor._fill):
    found[self.path] = found.get(self.path, 0) + values.nbytes
    fill(self, values, offset)

  monkeypatch.setattr(folders.StoredTensor, '_fill', counted)
  return found


def size(folder: pathlib.Path) -> int:
  return sum(value.nbytes for value in model_folders.stored(folder).values())


def load(config: settings.Config):
  prepared = preparation.prepare(config, lambda text: None)
  base, params = preparation.load_base(config, prepared), preparation.initial_params(config, prepared)
  return prepared, params, preparation.load_frozen(config, prepared, base)


def test_policy_and_reference_of_one_folder_are_read_in_one_pass(folder, read):
  _, params, frozen = load(runs.make_config(folder, folder / 'run', model=str(folder / 'half')))
  assert read == {folder / 'half' / folders.WEIGHTS: size(folder / 'half')}
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(frozen.reference.params)} == {'bfloat16'}
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {'float32'}
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, np.asarray(y, np.float32)), params, frozen.reference.params
  )
  assert jax.tree.map(lambda leaf: leaf.sharding, params) == jax.tree.map(
    lambda leaf: leaf.sharding, frozen.reference.params
  )
  assert isinstance(frozen.reference, references.Live)


def test_the_policy_does_not_share_memory_with_its_reference(folder, read):
  _, params, frozen = load(runs.make_config(folder, folder / 'run'))
  assert read == {folder / 'model' / folders.WEIGHTS: size(folder / 'model')}
  for leaf in jax.tree.leaves(params):
    leaf.delete()  # as a step does that the state is donated to
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(frozen.reference.params))


def test_a_reference_of_its_own_is_read_too(folder, read):
  _, params, frozen = load(runs.make_config(folder, folder / 'run', reference=str(folder / 'half')))
  assert read == {folder / name / folders.WEIGHTS: size(folder / name) for name in ('model', 'half')}
  assert {str(leaf.dtype) for leaf in jax.tree.leaves((params, frozen.reference.params))} == {'float32', 'bfloat16'}


def tamper(path: pathlib.Path) -> None:
  tensors = safetensors_numpy.load_file(path)
  tensors[TENSOR].reshape(-1)[3:8] *= -3
  safetensors_numpy.save_file(tensors, path)


@pytest.mark.parametrize(
  'part',
  ['reference', pytest.param('base', marks=pytest.mark.slow)],  # adapters_test.py loads a base, too
)
def test_weights_that_change_unseen_are_refused_by_tensor(part, folder, tmp_path, monkeypatch):
  """The quick fingerprint, which reads samples of a file, does not see the change."""
  monkeypatch.setattr(fingerprints, 'of', lambda folder, whole=False: 'the same')
  changing = tmp_path / 'changing'
  changing.mkdir()
  for file in (folder / 'other').iterdir():
    (changing / file.name).write_bytes(file.read_bytes())
  overrides = {'reference': {'reference': str(changing)}, 'base': {'model': str(changing), 'adapter': 'lora(rank=2)'}}
  config = runs.make_config(folder, tmp_path / 'run', eval_data=(), **overrides[part])
  prepared, params, _ = load(config)
  identity = record.identity(config, prepared)
  tx = optimizer(config, prepared)
  state = placement.create_state(prepared.mesh, params, tx, jax.random.key(config.seed))
  with checkpoint.Checkpoints(
    tmp_path / 'run' / 'checkpoints', config=dataclasses.asdict(config), identity=identity
  ) as checkpoints:
    checkpoints.loaded = prepared.weights.sums()
    checkpoints.save(0, state, source.GrainSource(iter(prepared.training.batches)))
  tamper(changing / folders.WEIGHTS)
  message = f'^{changing}: tensor {TENSOR} has changed since this run was started, and the run uses it as its {part}'
  with pytest.raises(ValueError, match=message):
    training.train(config)


def optimizer(config, prepared):
  schedule = schedules.build_schedule(config.schedule, prepared.recipe.learning_rate, steps=32, warmup=0)
  return recipes.build_optimizer(prepared.recipe, schedule, config.gradient_clip)


def test_checksums_do_not_depend_on_the_mesh_and_ignore_what_only_one_run_has(folder):
  config = checkpoint_io.load_config(folder / 'model')
  whole, sharded = loaded.Loaded(config), loaded.Loaded(config)
  whole.add('reference', 'here', checkpoint_io.load_params(folder / 'model', config))
  _, _, frozen = load(runs.make_config(folder, folder / 'run'))
  sharded.add('reference', 'here', frozen.reference.params)
  sums = whole.sums()
  assert sums == sharded.sums()
  in_host = loaded.Loaded(config)
  places = placement.in_host_memory(jax.tree.map(lambda leaf: leaf.sharding, frozen.reference.params))
  in_host.add('reference', 'here', jax.device_put(frozen.reference.params, places))
  assert sums == in_host.sums()
  assert sums['reference'].keys() == model_folders.stored(folder / 'model').keys()
  whole.check(sums, {})
  whole.check({'base': {TENSOR: 1}, 'reference': {'gone': 1}}, {})
  with pytest.raises(checkpoint.MismatchError, match=f'^here: tensor {TENSOR} has changed'):
    whole.check({'reference': sums['reference'] | {TENSOR: 1}}, {})


@pytest.mark.slow  # slices_test.py compares logits; this compares whole runs
@pytest.mark.parametrize('compute_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('adapter', ['', 'lora(rank=2)'])
def test_losses_are_those_of_a_copy_in_float32(adapter, compute_dtype, folder, tmp_path):
  weights = {name: value.astype(np.float32) for name, value in model_folders.stored(folder / 'half').items()}
  (tmp_path / 'copy').mkdir()
  for file in (folder / 'half').iterdir():
    (tmp_path / 'copy' / file.name).write_bytes(file.read_bytes())
  safetensors_numpy.save_file(weights, tmp_path / 'copy' / folders.WEIGHTS, metadata={'format': 'pt'})
  records = []
  for model in (folder / 'half', tmp_path / 'copy'):
    workdir = tmp_path / f'of_{model.name}'
    options = {'adapter': adapter, 'compute_dtype': compute_dtype, 'eval_data': ()}
    training.train(runs.make_config(folder, workdir, model=str(model), steps=4, **options))
    kept = metrics.read_jsonl(workdir / 'metrics.jsonl')
    records.append([{k: v for k, v in record.items() if not k.startswith(metrics.TIME_PREFIX)} for record in kept])
    records[-1].append((workdir / 'model' / folders.WEIGHTS).read_bytes())
  assert records[0] == records[1]
  assert len(records[0]) == 5
