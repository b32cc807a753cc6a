"""`alignjax export`: the files of the run, from its checkpoint alone."""

from collections.abc import Callable
import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import exit_codes
from alignjax.commands import export, program
from alignjax.models import checkpoint_io, fingerprints, folders, transformer
from alignjax.optim import recipes, schedules
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import adapters, exports, loaded, model_card, settings
from alignjax.training import checkpoint, owner, placement, saved
from alignjax.training.policy import Policy
from tests.models import model_folders

AVERAGED = 'chain(adamw(1e-3), moving_average(0.5))'


class Position:
  """A source at the beginning."""

  def get_state(self):
    return {}


def finish(config: settings.Config) -> None:
  """Leaves what a finished run leaves, without its training: a checkpoint on a mesh with every axis, and exports."""
  recipe = recipes.parse_optimizer(config.optimizer)
  model_config = checkpoint_io.load_config(config.model)
  policy = Policy(transformer.build(model_config), adapters.configured(config, recipe, model_config))
  schedule = schedules.build_schedule('cosine', recipe.learning_rate, steps=10, warmup=2)
  tx = recipes.build_optimizer(recipe, schedule, config.gradient_clip)
  mesh, key = parallel_mesh.make_mesh(2, 2, 2), jax.random.key(3)
  weights = loaded.Loaded(model_config)
  record = functools.partial(weights.add_leaf, 'base', config.model)
  base = adapters.load_base(policy.adapter, config, model_config, mesh, record)

  shardings = rules.param_shardings(mesh, policy.trained_shapes())
  rng = np.random.default_rng(0)
  drawn = [
    jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), policy.trained_shapes())
    for _ in range(2)
  ]
  first, params = (jax.device_put(values, shardings) for values in drawn)
  state = placement.create_state(mesh, first, tx, key, {'mean': 0.0})  # its average differs from its parameters
  state = dataclasses.replace(state, step=jnp.int32(7), params=params)
  identity = {'model_fingerprint': fingerprints.of(config.model)}
  workdir = pathlib.Path(config.workdir)
  with checkpoint.Checkpoints(
    workdir / 'checkpoints', config=dataclasses.asdict(config), identity=identity
  ) as checkpoints:
    checkpoints.loaded = weights.sums()
    checkpoints.save(7, state, Position())
  card = functools.partial(model_card.render, dataclasses.asdict(config), workdir)
  origin = exports.Origin(config.model, identity['model_fingerprint'], policy, recipe.averages, exports.Records(card))
  exports.export(workdir, origin, state, base, lambda text: None)


def files(folder: pathlib.Path) -> dict[str, bytes]:
  names = ('model', 'model_average', 'adapter')
  return {
    f'{name}/{file}': data
    for name in names
    if (folder / name).exists()
    for file, data in model_folders.files(folder / name).items()
  }


ADAPTER = {'adapter': "lora(rank=2, targets='query+up')"}
KINDS = {'averaged': {'optimizer': AVERAGED}, 'adapter': ADAPTER, 'quantized': ADAPTER | {'base_quantization': 'int8'}}


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Callable[[str], settings.Config]:
  """Returns a finished run of a kind."""
  folder = tmp_path_factory.mktemp('export')
  model_folders.write(folder / 'start', layers=2, width=16, kv_heads=2, mlp_width=16)

  @functools.cache
  def run(kind: str) -> settings.Config:
    values = {
      'model': str(folder / 'start'),
      'data': ('gone.jsonl',),
      'workdir': str(folder / kind),
      'compute_dtype': 'float32',
    }
    config = settings.Config(**values, **KINDS[kind])
    finish(config)
    return config

  return run


def execute(*arguments: str) -> int:
  return program.execute(export.PROGRAM, ['export', *arguments])


@pytest.mark.slow  # object_store_test.py and reward_model_test.py export checkpoints, too
@pytest.mark.parametrize(
  'kind',
  ['averaged', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('adapter', 'quantized'))],  # exports_test.py
)
def test_files_are_those_of_the_run(kind, runs, tmp_path, monkeypatch, capsys):
  workdir, read, live = runs(kind).workdir, [], []

  def counted(self, name, like, read_array=saved.Saved._read):
    read.append(name)
    live.append(sum(array.nbytes for array in jax.live_arrays()))
    return read_array(self, name, like)

  monkeypatch.setattr(saved.Saved, '_read', counted)
  assert execute(f'--workdir={workdir}', f'--to={tmp_path / "out"}') == exit_codes.DONE
  expected = files(pathlib.Path(workdir))
  assert {name.partition('/')[0] for name in expected} == {
    'model',
    'model_average' if kind == 'averaged' else 'adapter',
  }
  assert files(tmp_path / 'out') == expected
  assert not any('.mu' in name or '.nu' in name for name in read)  # Adam's moments
  assert f'the aligned model is in {tmp_path / "out" / "model"}' in capsys.readouterr().out
  if kind == 'averaged':
    assert (
      len(read)
      == len(set(read))
      == 2 * len(checkpoint_io.parameter_shapes(checkpoint_io.load_config(runs(kind).model))[0])
    )
    assert max(live) - live[0] <= 16_576  # the piece that was written last; the embedding is one
  read.clear()
  assert execute(f'--workdir={workdir}') == exit_codes.DONE  # the run has exported this state
  assert not read


def test_what_cannot_be_exported_is_refused(runs, tmp_path, capsys):
  config = runs('averaged')

  def refused(message: str, *arguments: str, code: int = exit_codes.REFUSED) -> None:
    assert execute(*arguments) == code
    assert message in capsys.readouterr().err

  workdir = tmp_path / 'run'
  shutil.copytree(config.workdir, workdir)
  here, to = f'--workdir={workdir}', f'--to={tmp_path / "out"}'
  refused('holds no checkpoint of a run, so there is nothing to export', f'--workdir={config.model}')
  assert not (tmp_path / 'out').exists()
  refused('holds no checkpoint of step 3, only of 7', here, '--step=3')
  with owner.owned(workdir):
    refused('this work directory belongs to a run that is alive (process', here)
  refused('--model=/nowhere: there is no such folder', here, to, '--model=/nowhere')
  refused('has changed since the run was started. Restore it', here, to, f'--model={workdir / "model"}')
  (tmp_path / 'out' / 'model').mkdir(parents=True)
  (tmp_path / 'out' / 'model' / 'thesis.tex').write_text('the only copy')
  refused('holds files that are not part of a model (thesis.tex)', here, to, code=exit_codes.NOT_EXPORTED)

  shutil.copytree(workdir / 'checkpoints' / '7', workdir / 'checkpoints' / '8')
  refused('it was saved as checkpoint 7: its folder has been renamed', here)
  shutil.rmtree(workdir / 'checkpoints' / '8')
  for file in (workdir / 'checkpoints' / '7' / 'state').rglob('d/*'):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  refused('checkpoint 7 in ', here, f'--to={tmp_path / "other"}')
  metadata = workdir / 'checkpoints' / '7' / 'metadata' / 'metadata'
  entries = json.loads(metadata.read_bytes())
  entries['content']['config']['optimizer'] = 'sgd(1.0)'
  metadata.write_text(json.dumps(entries))
  refused('its metadata cannot be read: its digest does not match', here)


@pytest.mark.slow  # loaded_test.py names the tensors that have changed
def test_a_base_that_has_changed_unseen_is_refused_by_tensor(runs, tmp_path, monkeypatch, capsys):
  config = runs('adapter')
  fingerprint = fingerprints.of(config.model)
  monkeypatch.setattr(fingerprints, 'of', lambda folder: fingerprint)  # it reads samples of a file
  changed = pathlib.Path(shutil.copytree(config.model, tmp_path / 'changed'))
  model_folders.flip_bit(changed / folders.WEIGHTS)
  arguments = (f'--workdir={config.workdir}', f'--to={tmp_path / "out"}', f'--model={changed}')
  assert execute(*arguments) == exit_codes.REFUSED
  assert f'{changed}: tensor model.embed_tokens.weight has changed since this run' in capsys.readouterr().err
  assert not (tmp_path / 'out' / 'model').exists()
