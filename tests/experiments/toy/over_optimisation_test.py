"""The study of importance weighting: the rule by which it decides, and a run at a size at which it takes a minute."""

import json

import numpy as np
import pytest
from rich import console as rich_console

from alignjax import objectives
from experiments.toy import evaluations
from experiments.toy import over_optimisation as study
from experiments.toy import over_optimisation_report as report

UPDATES = (0, 50, 100)


def curve(contender, gold, kl):
  """A curve of three evaluations of three seeds, with the given means and small differences between the seeds."""
  seeds = np.array([-0.01, 0.0, 0.01])
  measures = {'gold': np.array(gold)[:, None] + seeds, 'kl': np.array(kl)[:, None] * (1 + seeds)}
  measures['validation/gold'] = measures['gold']
  outcomes = [
    [
      evaluations.Outcome(update, {name: values[i, seed] for name, values in measures.items()})
      for i, update in enumerate(UPDATES)
    ]
    for seed in range(3)
  ]
  return evaluations.Curve.of(contender.name, contender.beta, contender.objective, outcomes)


def curves(**changes):
  """All contenders, of which IS-DPO at the lowest beta meets every criterion."""
  gold = {('DPO', 0.01): (0.0, 0.6, 0.3), ('IS-DPO', 0.01): (0.0, 0.6, 0.59), ('IS-DPO', 0.1): (0.0, 0.5, 0.45)}
  kl = {('IS-DPO', 0.01): (0.0, 1.0, 2.0)}
  gold |= changes.get('gold', {})
  kl |= changes.get('kl', {})
  return [
    curve(each, gold.get(each[:2], (0.0, 0.5, 0.4)), kl.get(each[:2], (0.0, 2.0, 6.0)))
    for each in study.contenders(study.Setting())
  ]


def test_every_contender_is_an_objective():
  found = study.contenders(study.Setting())
  assert len({each[:2] for each in found}) == len(found)
  for each in found:
    objectives.parse(each.objective)
  for beta in study.Setting().betas:
    assert (
      sum(each.beta == beta and each.data == 'pairs' and each.optimizer == 'adam' and not each.scaled for each in found)
      == 12
    )
  assert evaluations.find(curves(), 'RPO', 0.1).objective == 'dpo(beta=0.1) + 0.0005 * sft(mean=False)'


def test_the_claim_is_reproduced_if_all_criteria_hold():
  found = report.verdict(curves())
  assert found['reproduced']
  assert list(found['criteria'].values()) == [True] * 4


@pytest.mark.parametrize(
  ('changes', 'failing'),
  [
    ({'gold': {('IS-DPO', 0.01): (0.0, 0.6, 0.3)}}, {0, 3}),
    ({'kl': {('IS-DPO', 0.01): (0.0, 1.0, 7.0)}}, {1}),
    ({'gold': {('DPO', 0.01): (0.0, 0.7, 0.3)}}, {2}),
    ({'gold': {('IS-DPO', 0.1): (0.0, 0.5, 0.9)}}, {3}),
  ],
)
def test_each_criterion_can_fail(changes, failing):
  found = report.verdict(curves(**changes))
  assert not found['reproduced']
  assert {i for i, holds in enumerate(found['criteria'].values()) if not holds} == failing


def test_dpo_is_stopped_before_it_exceeds_a_divergence():
  plain = evaluations.find(curves(), 'DPO', 0.01)
  np.testing.assert_allclose(plain.stopped(np.array([0.5, 3.0, 9.0])), [-0.01, 0.6, 0.31])


def test_the_report_is_written(tmp_path):
  with (tmp_path / 'printed').open('w') as stream:
    summary = report.write(tmp_path, rich_console.Console(file=stream, width=140), curves())
  json.dumps(summary)
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
  table = (tmp_path / 'table.md').read_text()
  assert '| IS-DPO | 0.01 | 0.600 ± 0.006 | 50 | 0.590 ± 0.006 | 2.000 ± 0.012 |' in table
  assert '- holds: the final gold reward is higher: +0.290 ± 0.000' in table


@pytest.mark.slow
def test_the_study_runs(tmp_path):
  summary = study.run(study.TINY, tmp_path)
  names = {(curve['name'], curve['beta']) for curve in summary['curves']}
  assert names == {each[:2] for each in study.contenders(study.TINY)}
  weighted = next(each for each in summary['curves'] if each['name'] == 'IS-DPO')
  assert weighted['measures'][study.WEIGHT][0] == [None, None]
  assert np.all(np.array(weighted['measures'][study.WEIGHT][1:]) > 0)
  scaled, plain = (
    next(e for e in summary['curves'] if e['name'] == name) for name in ('DPO, rate times mean weight', 'DPO')
  )
  assert scaled['measures']['kl'][0] == plain['measures']['kl'][0] == [0.0, 0.0]
