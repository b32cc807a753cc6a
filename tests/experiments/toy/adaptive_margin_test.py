"""The study of adaptive margins: its control, the rules by which it decides, and a run at a tiny size."""

import jax
import numpy as np
import pytest
from rich import console as rich_console

from alignjax import objectives
from alignjax.objectives import examples
from alignjax.testing import tables
from experiments.toy import adaptive_margin as study
from experiments.toy import adaptive_margin_report as report

FLIPPED = report.ARMS[1]


def results(gain=0.1, spread=0.001, lagging=0.4):
  """All settings of all contenders, of which the last is the best; with flipped labels alpha-DPO exceeds SimPO."""
  found = []
  runs = [*study.grids(study.Setting()), study.Run('moving average', 'alpha_dpo()', 1e-3)]
  for place, run in enumerate(runs):
    for arm in report.ARMS:
      own = 0.5 + 1e-4 * place + (gain if run.contender == 'alpha-DPO' and arm == FLIPPED else 0.0)
      gold = own + np.array([-0.02, 0.0, 0.02]) + (run.contender == 'alpha-DPO') * np.array([spread, 0.0, -spread])
      measures = {'gold': gold, 'validation/gold': gold, 'kl': gold, 'length': gold, 'lagging': np.full(3, lagging)}
      found.append(report.Result(run.contender, f'{run.objective}, rate {run.rate:g}', arm, measures))
  return found


def test_the_grids_are_equal_and_hold_objectives():
  runs = study.grids(study.Setting())
  assert {name: sum(run.contender == name for run in runs) for name in report.CONTENDERS[:-1]} == dict.fromkeys(
    report.CONTENDERS[:-1], 12
  )
  for run in runs:
    study.parse(run.objective)
  assert 'alpha_dpo_shuffled' not in objectives.OBJECTIVES


def test_the_control_has_the_margins_of_other_pairs():
  batch = examples.batch(3, responses=2, needs=objectives.alpha_dpo().needs)
  logits = examples.logits(1, batch), examples.logits(2, batch)
  table = tables.table(objectives.alpha_dpo().needs, *logits, batch)
  batch = jax.tree.map(np.asarray, batch)
  hard = batch.__class__(**{**vars(batch), 'label': np.ones_like(batch.label)})
  own = objectives.alpha_dpo(2.0, 0.5, 0.3).apply(table, hard)
  shuffled = study.alpha_dpo_shuffled(2.0, 0.5, 0.3).apply(table, hard)
  margin = np.asarray(own.metrics['reward_margin'], np.float64)
  target = np.roll(np.asarray(own.metrics['target_margin'], np.float64), 1)
  np.testing.assert_allclose(shuffled.loss, np.log1p(np.exp(target - margin)), rtol=1e-5)
  plain = objectives.simpo(2.0, 0.5).apply(table, hard)
  np.testing.assert_allclose(study.alpha_dpo_shuffled(2.0, 0.5, 0.0).apply(table, hard).loss, plain.loss, rtol=1e-5)


def test_settings_are_chosen_in_validation():
  chosen = report.choose(results(), 'SimPO', FLIPPED)
  assert chosen.setting == 'simpo(beta=10.0, gamma=1.5), rate 0.001'


@pytest.mark.parametrize(
  ('gain', 'spread', 'reproduced'), [(0.1, 0.001, True), (-0.1, 0.001, False), (0.1, 0.2, False), (0.1, 0.05, True)]
)
def test_the_claim_is_reproduced_if_alpha_dpo_is_better_by_two_errors_with_flipped_labels(gain, spread, reproduced):
  found = report.verdict(results(gain, spread), 0.2)
  assert found['reproduced'] is reproduced
  assert ('not' in found['lines'][0]) is not reproduced


def test_the_report_is_written(tmp_path):
  with (tmp_path / 'printed').open('w') as stream:
    report.write(tmp_path, rich_console.Console(file=stream, width=140), results(), 0.2)
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
  table = (tmp_path / 'table.md').read_text()
  assert '| alpha-DPO | 0.603 ± 0.011 | +0.101 ± 0.001 |' in table
  assert '- Of the pairs with z < 0, 0.400 ± 0.000 have a flipped label; of all pairs, 0.2.' in table


@pytest.mark.slow
def test_the_study_runs(tmp_path):
  summary = study.run(study.TINY, tmp_path)
  found = {(each['contender'], each['arm']) for each in summary['results']}
  assert found == {(name, arm) for name in report.CONTENDERS for arm in report.ARMS}
  average = [each['setting'] for each in summary['results'] if each['contender'] == 'moving average']
  assert all("normaliser='ema'), rate 0.001" in setting for setting in average)
