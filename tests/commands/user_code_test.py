"""Training with an objective of the user's own: it resumes bit-identically, and not after an edit."""

import dataclasses
import os
import pathlib
import shutil
import signal

import pytest

from alignjax import exit_codes, objectives
from alignjax.run import training
from tests import assets, runs
from tests.commands import train_test
from tests.commands.train_test import environment as environment  # a fixture

MINE = """
import jax

from alignjax import Term, objectives, stats


@objectives.factory
def mine(scale=1.0):
  def apply(table, batch):
    del batch
    margin = table.sum(stats.logp)[:, 0] - table.sum(stats.logp)[:, 1]
    return Term(jax.nn.softplus(-scale * margin), {'margin': margin})

  return objectives.Objective(frozenset({stats.logp}), apply, responses=2)
"""


@pytest.fixture(autouse=True)
def registered():
  yield
  objectives.OBJECTIVES.pop('mine', None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('user_code')
  assets.write_tiny_model(path / 'model', layers=1, vocab_size=384)
  runs.write_pairs(path / 'train.jsonl', 61, seed=0)
  return path


def configure(folder: pathlib.Path, workdir: str, **overrides):
  """A configuration whose imported file is named relative to the current folder."""
  values = {'eval_data': (), 'steps': 4, 'save_every': 2, 'imports': ('mine.py',)}
  return train_test.make_config(folder, workdir, objective='mine(scale=0.5) + 0.1 * sft()', **values | overrides)


@pytest.mark.slow  # run/user_code_test.py hashes the files; train_test.py resumes, and refuses another identity
def test_it_trains_resumes_from_another_folder_and_is_refused_after_an_edit(folder, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('mine.py').write_text(MINE)
  config = configure(folder, 'whole')
  assert train_test.attempt(config) == 0
  source, workdir = pathlib.Path(config.workdir), folder / 'again'
  shutil.copytree(source / 'checkpoints' / '2', workdir / 'checkpoints' / '2')
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  pathlib.Path('mine.py').rename(elsewhere / 'mine.py')
  again = dataclasses.replace(config, workdir=str(workdir), imports=(str(elsewhere / 'mine.py'),))
  assert training.train(again).step == 4
  printed = capsys.readouterr().out
  assert 'resuming from step 2' in printed
  assert f'imports    {elsewhere / "mine.py"}\n' in printed
  assert train_test.deterministic(workdir) == train_test.deterministic(source)[2:]
  for name in ('model.safetensors', 'config.json'):
    assert (workdir / 'model' / name).read_bytes() == (source / 'model' / name).read_bytes()

  (elsewhere / 'mine.py').write_text(MINE.replace('-scale', '-2 * scale'))
  assert train_test.attempt(again) == exit_codes.REFUSED
  assert capsys.readouterr().err.startswith('error: mine.py changed since this run was started, ')


@pytest.mark.slow  # the same in one process above; here it is killed, and told to stop, as a command
def test_killed_and_told_to_stop_it_resumes_bit_identically(folder, environment, tmp_path):
  (tmp_path / 'mine.py').write_text(MINE)
  imports = (str(tmp_path / 'mine.py'),)
  steps = {'steps': train_test.STEPS, 'save_every': 5, 'keep': 20, 'imports': imports}
  config, whole = configure(folder, 'killed', **steps), configure(folder, 'not_killed', **steps)
  workdir = pathlib.Path(config.workdir)
  with train_test.started(train_test.single(config), environment, tmp_path / 'log') as run:
    run.wait_for_records(workdir, 9, checkpoint=5)
    run.process.kill()
    run.leave(-signal.SIGKILL)
  with train_test.started(train_test.single(config), environment, tmp_path / 'log') as run:
    run.wait_for_records(workdir, 17)
    run.process.terminate()
    run.leave(exit_codes.PREEMPTED)
  training.train(config)
  training.train(whole)
  assert train_test.deterministic(workdir) == train_test.deterministic(whole.workdir)
  resumed, expected = ((pathlib.Path(path) / 'model' / 'model.safetensors') for path in (workdir, whole.workdir))
  assert resumed.read_bytes() == expected.read_bytes()
  assert os.path.exists(workdir / 'config.json')
