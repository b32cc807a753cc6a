"""The quickstart at a tiny scale: a random model instead of SmolLM2, and the length of a response as gold reward."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

from absl import flags
import jax
import numpy as np
from PIL import Image
import pytest

from alignjax import rewards
from alignjax.commands import program
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io
from alignjax.run import program_flags
from experiments.quickstart import command_line, prompts, run
from tests import assets


def _length(samples: Sequence[rewards.Sample]) -> np.ndarray:
  return np.array([len(sample.response) for sample in samples], np.float64)


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> command_line.Settings:
  folder = tmp_path_factory.mktemp('quickstart')
  return command_line.Settings(
    workdir=str(folder / 'run'),
    model=str(assets.write_tiny_model(folder / 'model', layers=1)),
    train_prompts=8,
    held_out_prompts=6,
    group=4,
    samples=2,
    draws=2,
    max_new_tokens=12,
    pairs_per_prompt=2,
    batch_size=8,
    optimizer='adamw(1e-2)',
    evaluations=2,
    compute_dtype='float32',
  )


@pytest.fixture(scope='module')
def summary(settings) -> dict:
  return run.run(settings, _length)


def test_summary_holds_what_was_measured(settings, summary):
  saved = json.loads((pathlib.Path(settings.workdir) / 'summary.json').read_text())
  assert saved == json.loads(json.dumps(summary))
  assert saved['objective'] == 'dpo(beta=0.1, label_smoothing=0.0)'
  results = saved['results']
  for name in ('gold_reward_before', 'gold_reward_after', 'gain', 'win_rate', 'kl', 'kl_of_tokens'):
    assert set(results[name]) == {'mean', 'error'}, name
    assert np.isfinite(results[name]['mean']), name
  assert results['gain']['mean'] == pytest.approx(
    results['gold_reward_after']['mean'] - results['gold_reward_before']['mean']
  )
  assert results['kl_of_tokens']['mean'] > 0
  assert 0 <= results['reward_accuracy'] <= 1
  assert [point['step'] for point in results['frontier']] == [0, 1, 2]
  assert results['frontier'][0]['kl']['mean'] == 0
  assert set(saved['costs']['seconds']) == {'load', 'sample', 'evaluate', 'train', 'report', 'total'}
  assert saved['costs']['peak_memory_gib'] > 0
  assert saved['versions']['jax'] == jax.__version__


def test_files_show_what_was_measured(settings, summary):
  workdir = pathlib.Path(settings.workdir)
  with Image.open(workdir / 'figure.png') as figure:
    assert min(figure.size) > 500
  samples = (workdir / 'samples.md').read_text()
  assert prompts.split(8, 6)[1][0] in samples
  rows = [json.loads(line) for line in (workdir / 'pairs.jsonl').read_text().splitlines()]
  assert rows
  for row in rows:
    assert row['score'] == [len(row['chosen']), len(row['rejected'])]
    assert row['score'][0] > row['score'][1]


def test_aligned_model_loads_and_differs(settings, summary):
  folder = pathlib.Path(settings.workdir) / 'model'
  config = checkpoint_io.load_config(folder)
  aligned, reference = (checkpoint_io.load_params(path, config) for path in (folder, settings.model))
  assert np.max(np.abs(aligned['embed']['embedding'] - reference['embed']['embedding'])) > 1e-3
  assert tokenization.Tokenizer.load(folder).template is not None


@pytest.mark.slow
def test_same_settings_give_the_same_numbers(settings, summary, tmp_path):
  again = run.run(dataclasses.replace(settings, workdir=str(tmp_path)), _length)
  assert again['results'] == summary['results']


@pytest.mark.parametrize('link', ['online_dare(0.1, 1e-6)', 'moving_average()'])
def test_optimizers_that_need_the_trainer_are_refused(settings, link):
  with pytest.raises(ValueError, match='merging and averaging need `alignjax train`'):
    run.run(dataclasses.replace(settings, optimizer=f'chain(adamw(1e-2), {link})'), _length)


def test_unknown_objective_ends_at_once_with_the_known_ones(tmp_path, capsys):
  assert program.execute(run.PROGRAM, ['quickstart', '--objective=dop()', f'--workdir={tmp_path / "run"}']) == 1
  error = capsys.readouterr().err
  assert error.startswith("error: unknown name 'dop'")
  assert 'dpo(beta=0.1' in error
  assert 'simpo' in error
  assert not (tmp_path / 'run').exists()


def test_every_setting_is_a_flag():
  arguments = ['quickstart', '--objective=simpo()', '--seed=3', '--gradient_clip=0.5']
  given = program_flags.parse_flags(command_line.Settings, arguments, flags.FlagValues())
  assert given == command_line.Settings(objective='simpo()', seed=3, gradient_clip=0.5)
