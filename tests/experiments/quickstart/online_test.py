"""The on-policy quickstart at a tiny scale: a random model instead of SmolLM2and the length of a response as gold reward."""

from collections.abc import Sequence
import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from alignjax import rewards
from alignjax.commands import program
from alignjax.models import checkpoint_io
from experiments.quickstart import command_line, online, prompts
from tests import assets

REWARD = f"python('{__name__}:length')"


def length(samples: Sequence[rewards.Sample]) -> np.ndarray:
  return np.array([len(sample.response) for sample in samples], np.float64)


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> command_line.OnlineSettings:
  folder = tmp_path_factory.mktemp('quickstart')
  return command_line.OnlineSettings(
    workdir=str(folder / 'run'),
    model=str(assets.write_tiny_model(folder / 'model', layers=1)),
    train_prompts=8,
    held_out_prompts=8,
    group=8,
    samples=2,
    max_new_tokens=8,
    optimizer='adamw(3e-2)',
    adapter='lora(rank=2)',
    rounds=2,
    prompts_per_round=8,
    compute_dtype='float32',
  )


@pytest.fixture(scope='module')
def summary(settings) -> dict:
  return online.run(settings, REWARD)


def test_summary_holds_what_was_measured(settings, summary):
  saved = json.loads((pathlib.Path(settings.workdir) / 'summary.json').read_text())
  assert saved == json.loads(json.dumps(summary))
  assert saved['objective'] == 'rlhf(beta=0.05)'
  results = saved['results']
  assert results['gain']['mean'] == pytest.approx(
    results['gold_reward_after']['mean'] - results['gold_reward_before']['mean']
  )
  first, second = results['rounds']
  assert (first['round'], second['round']) == (0, 1)
  assert first['kl_exact'] == pytest.approx(0, abs=1e-6)
  assert second['kl_exact'] > 1e-4
  assert results['kl_of_tokens']['mean'] > 1e-4
  assert set(saved['costs']['seconds']) == {'load', 'train', 'evaluate', 'report', 'total'}


def test_files_show_what_was_measured(settings, summary):
  workdir = pathlib.Path(settings.workdir)
  with Image.open(workdir / 'figure.png') as figure:
    assert min(figure.size) > 500
  assert prompts.split(8, 8)[1][0] in (workdir / 'samples.md').read_text()
  rounds = [
    [json.loads(line) for line in path.read_text().splitlines()]
    for path in sorted((workdir / 'rollouts').glob('*.jsonl'))
  ]
  assert len(rounds) == 2
  for rows, measured in zip(rounds, summary['results']['rounds'], strict=True):
    assert np.mean([row['score'] for row in rows]) == pytest.approx(measured['reward'])


def test_aligned_model_loads_and_differs(settings, summary):
  folder = pathlib.Path(settings.workdir) / 'model'
  config = checkpoint_io.load_config(folder)
  aligned, reference = (checkpoint_io.load_params(path, config) for path in (folder, settings.model))
  difference = aligned['layers']['attention']['query']['kernel'] - reference['layers']['attention']['query']['kernel']
  assert np.max(np.abs(difference)) > 1e-4


def test_objective_of_pairs_without_pairing_ends_with_what_to_do(settings, tmp_path, capsys):
  arguments = ['--objective=dpo()', f'--model={settings.model}', f'--workdir={tmp_path}', '--compute_dtype=float32']
  assert program.execute(online.PROGRAM, ['quickstart online', *arguments]) == 1
  assert '--pairing=best_worst' in capsys.readouterr().err
