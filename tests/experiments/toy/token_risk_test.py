"""The study of token risk: the rule by which it decides, on synthetic numbers, and a run at a tiny size."""

import numpy as np
import pytest
from rich import console as rich_console

from alignjax import objectives
from experiments.toy import token_risk as study
from experiments.toy import token_risk_report as report

SEEDS = np.array([-1.0, 0.0, 1.0])


def results(tail=(), accuracy=(), strength=2.0, spread=0.002):
  """All contenders: the sequential KL is 4 / (1 + alpha), of the risk measures as with `strength` times the alpha.

  Args:
    tail: what is added to p95 by the name of the contender.
    accuracy: what is added to the accuracy.
    strength: the factor on alpha for the risk measures and nested arms.
    spread: the difference between seeds in a changed tail.
  """
  tail, accuracy, found = dict(tail), dict(accuracy), []
  for each in study.contenders(study.Setting()):
    factor = 1.0 if each.name == report.PLAIN else strength
    kl = 4.0 / (1.0 + factor * each.alpha) * (1 + 0.01 * SEEDS)
    measures = {'accuracy': 0.6 + 0.02 * kl + accuracy.get(each.name, 0.0), 'gold': kl}
    for side in report.SIDES:
      noise = spread * SEEDS * (each.name in tail)
      measures |= {f'{side}/sequential': kl, f'{side}/p95': kl / 2 + tail.get(each.name, 0.0) + noise}
      measures[f'{side}/max'] = 3 * kl
    found.append(report.Result(*each, measures))
  return found


def test_every_contender_is_an_objective_and_tdpo_covers_the_aversions():
  found = study.contenders(study.Setting())
  assert len(set(found)) == len(found) == 9 + 3 * len(report.METHODS)
  for each in found:
    objectives.parse(each.objective)
  assert [each.alpha for each in found if each.name == 'TDPO'] == sorted(
    round(alpha * factor, 6) for alpha in (0.3, 0.5, 0.9) for factor in (1.0, 1.5, 6.0)
  )
  expression = 'ra_dpo(risk=cvar(0.9), off_path=0.9, beta=0.1, alpha=0.5)'
  assert ('nested CVaR 0.9', 0.5, expression) in found


def test_tails_are_compared_at_equal_sequential_kl():
  found = results(tail={'CVaR 0.9': -0.25})
  line = report.at_kl(found, 'held-out', np.array([2.0, 1.0, 9.0]), 'held-out/p95')
  np.testing.assert_allclose(line, [1.0, 0.5, np.nan])
  np.testing.assert_allclose(report.difference(found, 'CVaR 0.9', 'held-out', 'held-out/p95'), -0.25 + 0.002 * SEEDS)
  np.testing.assert_allclose(report.difference(found, 'entropic 5', 'own', 'own/max'), 0.0, atol=1e-12)


def test_the_claim_is_reproduced_if_a_tail_is_lower_at_equal_kl():
  found = report.verdict(results(tail={'CVaR 0.9': -0.25, 'nested mean': -0.25}))
  assert found['reproduced'] is True
  assert [name for name, holds in found['criteria'].items() if holds] == ['CVaR 0.9, p95']
  assert found['lines'][-1].endswith('these pass: nested mean (p95).')


@pytest.mark.parametrize(
  'changes',
  [
    {'tail': {'CVaR 0.9': 0.25}},
    {'tail': {'CVaR 0.9': -0.25}, 'spread': 0.3},
    {'tail': {'CVaR 0.9': -0.25}, 'accuracy': {'CVaR 0.9': -0.05}},
    {'tail': {'nested CVaR 0.9': -0.25}},
  ],
)
def test_the_claim_reduces_to_a_stronger_coefficient_if_only_the_kl_at_equal_alpha_is_lower(changes):
  found = report.verdict(results(**changes))
  assert (found['reproduced'], found['reduces']) == (False, True)
  assert any('reduces to a stronger coefficient' in line for line in found['lines'])


def test_a_claim_that_fails_at_equal_alpha_too_is_no_stronger_coefficient():
  found = report.verdict(results(strength=1.0))
  assert (found['reproduced'], found['reduces']) == (False, False)


def test_the_claim_is_undecided_if_the_kl_of_a_measure_is_outside_the_range():
  found = results()
  outside = [
    each._replace(measures={**each.measures, 'held-out/sequential': np.full(3, 0.01)})
    if each.name == 'CVaR 0.5'
    else each
    for each in found
  ]
  assert report.verdict(outside)['reproduced'] is None
  assert report.verdict(outside)['criteria']['CVaR 0.5, max'] is None
  assert 'at every alpha: CVaR 0.5.' in report.verdict(outside)['lines'][4]


def test_the_report_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'draw', lambda path, found: path.touch())
  with (tmp_path / 'printed').open('w') as stream:
    report.write(tmp_path, rich_console.Console(file=stream, width=160), results(tail={'CVaR 0.9': -0.25}))
  assert (tmp_path / 'figure.png').exists()
  table = (tmp_path / 'table.md').read_text()
  assert '| CVaR 0.9 | 3 of 3 | +0.000 ± 0.000 | -0.250 ± 0.001 | +0.000 ± 0.000 |' in table
  assert '- 1 of 10 comparisons of risk measures with TDPO pass: CVaR 0.9 (p95).' in table


@pytest.mark.slow
def test_the_study_runs(tmp_path):
  summary = study.run(study.TINY, tmp_path)
  assert [tuple(each[:2]) for each in study.contenders(study.TINY)] == [
    (each['name'], each['alpha']) for each in summary['results']
  ]
  for each in summary['results']:
    for side in report.SIDES:
      sequential, p95, largest = (np.array(each['measures'][f'{side}/{name}']) for name in ('sequential', 'p95', 'max'))
      assert np.all((sequential > 0) & (largest >= p95) & (p95 > 0) & (largest < 12 * sequential * 64))
    assert np.all(np.abs(np.array(each['measures']['accuracy']) - 0.5) <= 0.5)
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
