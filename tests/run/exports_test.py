"""Exports of a finished run: always of its last state, and whole."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from alignjax import optim
from alignjax.models import checkpoint_io, lora, manifest, transformer
from alignjax.run import exports, training
from alignjax.training import state as training_state
from alignjax.training.policy import Policy
from tests import disks, runs
from tests.models import model_folders

EXPORTS = ('model', 'model_average', 'adapter')


def files(workdir: pathlib.Path, names: tuple[str, ...] = EXPORTS) -> dict[str, bytes]:
  return {f'{name}/{file.name}': file.read_bytes() for name in names for file in (workdir / name).iterdir()}


@pytest.fixture(scope='module')
def origin(tmp_path_factory) -> exports.Origin:
  """An adapter of a tiny model."""
  folder = model_folders.write(tmp_path_factory.mktemp('exports') / 'base')
  policy = Policy(transformer.build(checkpoint_io.load_config(folder)), lora.LoRA(2, 4.0, 'query'))
  return exports.Origin(str(folder), 'fingerprint', policy, averages=True)


def make_state(base, policy: Policy, seed: int) -> training_state.TrainState:
  """A state after `seed` steps, with an average that differs from its parameters."""
  key = jax.random.key(seed)
  params = jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), policy.init(key, base))
  state = training_state.TrainState.create(params, optim.moving_average(0.5), key)
  params = jax.tree.map(lambda leaf: 2 * leaf, params)
  return dataclasses.replace(state, step=jnp.asarray(seed, jnp.int32), params=params)


def test_every_export_follows_its_state_and_is_repaired(origin, tmp_path):
  base = model_folders.load(pathlib.Path(origin.folder))
  states = {step: make_state(base, origin.policy, step) for step in (4, 8)}
  announced: list[str] = []

  def export(workdir: str, step: int) -> list[str]:
    """Exports, and returns what was announced to be written again."""
    announced.clear()
    exports.export(tmp_path / workdir, origin, states[step], base, announced.append)
    return [line for line in announced if line.startswith('writing')]

  run, straight = tmp_path / 'run', tmp_path / 'straight'
  assert export('straight', 8) == []
  assert export('run', 4) == []
  before, expected = files(run), files(straight)
  assert before.keys() == expected.keys()
  for name in ('model/model.safetensors', 'model_average/model.safetensors', 'adapter/adapter_model.safetensors'):
    assert before[name] != expected[name]
  assert export('run', 8) == [f'writing {run / name} again: was written from another state' for name in EXPORTS]
  assert files(run) == expected

  model_folders.flip_bit(run / 'model' / 'model.safetensors')
  (run / 'model_average' / 'tokenizer.json').unlink()
  (run / 'adapter' / manifest.FILE).unlink()
  model, average, adapter = export('run', 8)
  assert f'again: {run / "model" / "model.safetensors"}: has changed since it was written' in model
  assert average.endswith(f'{run / "model_average" / "tokenizer.json"}: is missing')
  assert adapter == f'writing {run / "adapter"} again: has no {manifest.FILE}'
  assert files(run) == expected

  times = {name: (run / name).stat().st_ino for name in EXPORTS}
  assert export('run', 8) == []
  assert {name: (run / name).stat().st_ino for name in EXPORTS} == times  # not written again


def test_an_export_that_does_not_fit_is_one_error(origin, tmp_path):
  base = model_folders.load(pathlib.Path(origin.folder))
  with (
    disks.small(tmp_path / 'run', '16k') as workdir,
    pytest.raises(
      exports.ExportError, match=f'step 4 is saved, but the model is not exported to {workdir}: the disk is full'
    ),
  ):
    exports.export(workdir, origin, make_state(base, origin.policy, 4), base, print)


@pytest.mark.slow  # three runs; the test above exports two states into one folder
def test_a_finished_run_that_goes_on_exports_what_a_straight_run_does(tmp_path):
  folder = runs.write_folder(tmp_path)

  def train(workdir: str, steps: int) -> dict[str, bytes]:
    training.train(runs.make_config(folder, folder / workdir, steps=steps, eval_data=(), save_every=0))
    return files(folder / workdir, ('model',))

  straight = train('straight', 8)
  shorter = train('longer', 4)
  assert shorter['model/model.safetensors'] != straight['model/model.safetensors']
  assert train('longer', 8) == straight
  weights = folder / 'longer' / 'model' / 'model.safetensors'
  model_folders.flip_bit(weights)
  with pytest.raises(ValueError, match=f'^{weights}: has changed'):
    training.train(runs.make_config(folder, folder / 'again', model=str(weights.parent), eval_data=()))
  assert train('longer', 8) == straight
