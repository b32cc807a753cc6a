"""The comparison of methods at a tiny scale, and its report on numbers made up."""

from collections.abc import Sequence
import json

from absl import flags
import numpy as np
from PIL import Image
import pytest

from alignjax import rewards
from alignjax.commands import program
from alignjax.run import command_line
from experiments.quickstart import comparison, comparison_report
from experiments.toy import evaluations
from tests import assets


def characters(samples: Sequence[rewards.Sample]) -> list[int]:
  """A reward that rarely ties."""
  return [len(sample.response) for sample in samples]


def curve(name: str, gold: list[list[float]], kl: list[list[float]]) -> evaluations.Curve:
  rows = {'gold': np.array(gold), 'kl': np.array(kl), 'win_rate': np.array(gold), 'tokens': np.array(gold)}
  return evaluations.Curve(name, 0.0, '', np.arange(len(gold)), rows)


def test_gold_at_equal_kl_is_read_at_the_largest_kl_that_all_runs_reach():
  base = curve('DPO', [[0.0, 0.0], [0.2, 0.4]], [[0.0, 0.0], [4.0, 1.0]])
  other = curve('RLOO', [[0.0, 0.0], [0.9, 0.6]], [[0.0, 0.0], [9.0, 9.0]])
  kl, gain = comparison_report.gain(other, base)
  assert kl == 1.0
  np.testing.assert_allclose(gain, [0.3 - 0.1, 0.2 - 0.4])


@pytest.mark.parametrize(
  ('shift', 'start'), [(0.5, 'Above DPO'), (-0.5, 'Below DPO'), (0.0, 'Within two standard errors of DPO')]
)
def test_findings_name_what_differs_from_dpo_by_more_than_two_errors(shift, start):
  kl = [[0.0] * 3, [1.0] * 3]
  base = curve('DPO', [[0.0] * 3, [0.3, 0.31, 0.32]], kl)
  other = curve('SimPO', [[0.0] * 3, [0.32 + shift, 0.31 + shift, 0.3 + shift]], kl)
  lines = comparison_report.findings([other, base])
  assert [line for line in lines if 'SimPO' in line] == [next(line for line in lines if line.startswith(start))]


@pytest.mark.parametrize('method', comparison.METHODS)
def test_every_run_is_a_command_that_train_accepts(method, tmp_path):
  settings = comparison.Settings(workdir=str(tmp_path))
  made = comparison.Comparison(settings, tmp_path, 'base')
  for name in (comparison.TRAIN, 'pairs_1.jsonl'):
    (tmp_path / name).write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
  line = ['alignjax train', *made.point(method, 1).arguments, f'--workdir={tmp_path}']
  config = command_line.parse_flags(command_line.Invocation, line, flags.FlagValues()).config
  assert (config.seed, config.steps) == (1, made.steps(method))
  assert bool(config.reward) == (method == comparison.ON_POLICY)


def test_other_settings_are_refused(tmp_path, capsys):
  comparison._kept(comparison.Settings(seeds=5), tmp_path / 'settings.json')
  assert program.execute(comparison.PROGRAM, ['comparison', f'--workdir={tmp_path}']) == 1
  assert f'--seeds=3: {tmp_path} holds a comparison with 5' in capsys.readouterr().err


@pytest.mark.slow  # starts ten processes; the parts are tested above, and with the commands
def test_the_comparison_runs_and_resumes(tmp_path, capsys):
  settings = comparison.Settings(
    workdir=str(tmp_path / 'run'),
    model=str(assets.write_tiny_model(tmp_path / 'model', layers=1)),
    reward=f'python("{__name__}:characters")',
    methods=('DPO', 'RLOO'),
    seeds=2,
    train_prompts=8,
    held_out_prompts=4,
    draws=3,
    samples=2,
    max_new_tokens=6,
    adapter='lora(rank=2, alpha=4)',
    batch_size=8,
    updates=2,
    rounds=2,
    prompts_per_round=8,
    compute_dtype='float32',
  )
  assert comparison.run(settings) == 0
  found = json.loads((tmp_path / 'run/summary.json').read_text())
  assert [own['name'] for own in found['curves']] == ['DPO', 'RLOO']
  assert all(own['updates'] == [0, 1, 2] for own in found['curves'])
  assert all(minutes > 0 for each in found['minutes'].values() for minutes in each)
  with Image.open(tmp_path / 'run/figure.png') as figure:
    assert min(figure.size) > 300
  (tmp_path / 'run/summary.json').unlink()
  assert comparison.run(settings) == 0
  assert '4 of 4 runs are finished already' in capsys.readouterr().out
  assert json.loads((tmp_path / 'run/summary.json').read_text()) == found
