"""The on-policy quickstart at a tiny scale: a random model, and the length of a response as gold reward."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from alignjax import rewards
from alignjax.commands import program
from alignjax.data.reading import drops, sources
from alignjax.models import checkpoint_io
from experiments.quickstart import command_line, figures, online, prompts, shared
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


@pytest.mark.slow  # on_policy_test.py trains in the same way, run_test.py reports
def test_summary_holds_what_was_measured(settings, summary):
  saved = json.loads((pathlib.Path(settings.workdir) / 'summary.json').read_text())
  assert saved == json.loads(json.dumps(summary))
  assert saved['objective'].startswith('rlhf(beta=0.05')
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_aligned_model_loads_and_differs(settings, summary):
  folder = pathlib.Path(settings.workdir) / 'model'
  config = checkpoint_io.load_config(folder)
  aligned, reference = (checkpoint_io.load_params(path, config) for path in (folder, settings.model))
  difference = aligned['layers']['attention']['query']['kernel'] - reference['layers']['attention']['query']['kernel']
  assert np.max(np.abs(difference)) > 1e-4


def test_the_run_has_the_settings_of_the_quickstart(settings, tmp_path):
  changed = dataclasses.replace(settings, workdir=str(tmp_path), pairing='best_worst', seed=3, imports=('mine',))
  setup = shared.set_up(changed, rewards.parse(REWARD), ['Name a film.'])
  config = online.configure(setup, changed, REWARD, ['Name a film.', 'Name a soup.'])
  same = {field.name for field in dataclasses.fields(changed)} & {field.name for field in dataclasses.fields(config)}
  assert {'objective', 'optimizer', 'samples', 'pairing', 'adapter', 'gradient_clip', 'model'} <= same
  for name in same:
    assert getattr(config, name) == getattr(changed, name), name
  assert (config.steps, config.minibatch, config.inner_epochs) == (changed.rounds, 0, 1)
  found = list(sources.read_examples(config.prompts, drops.DropReport(), default='prompts'))
  assert [each.prompt[0]['content'] for each in found] == ['Name a film.', 'Name a soup.']


def test_panels_of_rounds_show_the_records(tmp_path):
  names = ('round', 'reward', 'reward_error', 'kl', 'kl_exact', 'entropy', 'length', 'finished')
  records = [{f'rollout/{name}': float(number) + 1 for name in names} for number in range(3)]
  panels = [figures.reward_of_rounds, figures.kl_of_rounds, figures.entropy_of_rounds, figures.reward_of_rounds]
  figures.save(tmp_path / 'figure.png', 'title', [panel(records) for panel in panels])
  with Image.open(tmp_path / 'figure.png') as figure:
    assert min(figure.size) > 500


def test_objective_of_pairs_without_pairing_ends_with_what_to_do(settings, tmp_path, capsys):
  arguments = ['--objective=dpo()', f'--model={settings.model}', f'--workdir={tmp_path}', '--compute_dtype=float32']
  assert program.execute(online.PROGRAM, ['quickstart online', *arguments]) == 1
  assert '--pairing=best_worst' in capsys.readouterr().err


def test_an_adapter_in_bfloat16_is_refused(settings):
  with pytest.raises(ValueError, match='--compute_dtype=auto: adapters need float32'):
    online.run(dataclasses.replace(settings, compute_dtype='auto'), REWARD)
