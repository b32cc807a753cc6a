"""Online merging as people run it: reported, resumed, and refused for another model or optimizer."""

import dataclasses
import pathlib
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.run import settings, training
from tests import assets
from tests.commands import train_test

folder = train_test.folder  # a fixture

MERGING = 'chain(adamw(1e-4), online_dare(reserve=0.5, alpha=0.01, every=3), weight_decay(0.1), moving_average(0.5))'


def configure(folder, base: pathlib.Path) -> settings.Config:
  """A run that merges at steps 3 and 6, and is saved between them."""
  return train_test.make_config(
    folder, 'merging', optimizer=MERGING, base_model=str(base), eval_data=(), steps=6, save_every=4
  )


@pytest.fixture(scope='module')
def merging(folder) -> settings.Config:
  """The settings of the run, which has ended."""
  config = configure(folder, assets.write_tiny_model(folder / 'base', seed=2, layers=1))
  training.train(config)
  return config


@pytest.mark.slow  # optim/wrappers_test.py resumes a merging optimizer, train_test.py a run
@pytest.mark.parametrize('memory', ['device', 'host'])
def test_online_merging_reports_what_it_does_and_resumes_bit_identically(folder, merging, memory, capsys):
  """Wherever tau lives."""
  source, workdir = pathlib.Path(merging.workdir), folder / f'merging_again_{memory}'
  shutil.copytree(source / 'checkpoints' / '4', workdir / 'checkpoints' / '4')
  first = (source / 'metrics.jsonl').read_text(encoding='utf-8').splitlines(keepends=True)[:4]
  (workdir / 'metrics.jsonl').write_text(''.join(first), encoding='utf-8')
  training.train(dataclasses.replace(merging, workdir=str(workdir), delta_memory=memory))
  printed = capsys.readouterr().out
  assert 'resuming from step 4' in printed
  assert f'optimizer  {MERGING}, delta to {merging.base_model} in bfloat16\n' in printed
  records = train_test.deterministic(workdir)
  assert records == train_test.deterministic(source)
  assert [record['merge/kept'] == 0 for record in records] == [True] * 2 + [False] * 4
  for name, value in records[2].items():
    if name.startswith('merge/cosine'):
      assert 0 < value < 1, name
  assert records[2]['merge/kept'] == pytest.approx(0.5, abs=0.02)
  assert records[2]['merge/update_norm'] > 0
  for model in ('model', 'model_average'):
    resumed, expected = ((path / model / 'model.safetensors').read_bytes() for path in (workdir, source))
    assert resumed == expected


@pytest.mark.slow  # optim/online_merging_test.py follows the algorithms
def test_online_merging_moves_the_model_and_its_average_along_tau(merging):
  """Each of two merges adds alpha tau at half of the entries. The updates are small and nearly orthogonal to tau."""
  workdir = pathlib.Path(merging.workdir)

  def flat(folder) -> np.ndarray:
    tensors = safetensors_numpy.load_file(pathlib.Path(folder) / 'model.safetensors')
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)

  start, base = flat(merging.model), flat(merging.base_model)
  tau = start - base
  moved, average = ((flat(workdir / name) - start) @ tau / (tau @ tau) for name in ('model', 'model_average'))
  once = 0.5 * 0.01
  assert moved == pytest.approx(2 * once, abs=0.0005)
  assert average == pytest.approx(once * (1 / 16 + 1 / 8 + 1 / 4) + 2 * once * 1 / 2, abs=0.0005)  # steps 3 to 6


@pytest.mark.slow  # with a compiled program of its own; the projection on tau is tested above
def test_tau_moves_the_parameters_and_their_average(folder, merging, capsys):
  """With a learning rate that is too small to matter."""
  optimizer = 'chain(adamw(1e-30), online_dare(reserve=1.0, alpha=0.25), moving_average(0.5))'
  config = dataclasses.replace(merging, optimizer=optimizer, workdir=str(folder / 'drift'), steps=2, save_every=0)
  training.train(config)
  assert f'its moving average is in {folder / "drift" / "model_average"}' in capsys.readouterr().out
  start, base = (
    safetensors_numpy.load_file(pathlib.Path(path) / 'model.safetensors') for path in (config.model, config.base_model)
  )
  average = safetensors_numpy.load_file(folder / 'drift' / 'model_average' / 'model.safetensors')
  for name, moved in train_test.weights(config.workdir).items():
    tau = (start[name] - base[name]).astype(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_allclose(moved, start[name] + 2 * 0.25 * tau, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(average[name], start[name] + (0.25 + 2 * 0.5) / 2 * 0.5 * tau, rtol=1e-6, atol=1e-7)


@pytest.mark.slow  # train_test.py refuses other settings and models
def test_another_optimizer_or_base_model_in_the_same_folder_is_refused(folder, merging, caplog):
  def refused(says: str, **overrides):
    with pytest.raises(ValueError, match=re.escape(says)):
      training.train(dataclasses.replace(merging, **overrides))

  other = MERGING.replace(', every=3', '')
  refused(f'config.optimizer was {MERGING!r} and is now {other!r}. Its numbers may change', optimizer=other)
  refused("and is now 'adamw(1e-3)'. Its numbers may change", optimizer='adamw(1e-3)', base_model='')
  refused('base_model_fingerprint: was', base_model=merging.model)
  with caplog.at_level('WARNING', 'absl'):
    training.train(dataclasses.replace(merging, optimizer=MERGING.replace('0.01', '0.02'), delta_dtype='float32'))
  assert 'config.optimizer was' in caplog.text
  assert "config.delta_dtype was 'bfloat16' and is now 'float32'" in caplog.text


@pytest.mark.slow  # checkpoint_io_test.py refuses the same model
def test_the_same_model_as_its_base_is_refused(folder):
  config = configure(folder, folder / 'model')
  with pytest.raises(ValueError, match=r'model: has the same weights as .*model, so their difference is 0'):
    training.train(config)
