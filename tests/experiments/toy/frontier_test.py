"""The study of on-policy and offline alignment: the rule by which it decides, its rounds, and a run at a tiny size."""

import json

import jax
import numpy as np
import pytest
from rich import console as rich_console

from alignjax import objectives, stats
from experiments.toy import descent, evaluations, language
from experiments.toy import frontier as study
from experiments.toy import frontier_report as report

GOLD = {'RLHF': 0.8, 'RKL': 0.8, 'REBEL': 0.7, 'PD': 0.7, 'PMLE + KL': 0.5, 'DPO': 0.4, 'PMLE': 0.3}  # at 4 nats


def curves(gold=(), kl=(), spread=0.01):
  """All contenders with a gold reward that is linear in sqrt(KL); the highest beta is best, at equal KL."""
  values, ends, found = GOLD | dict(gold), dict(kl), []
  seeds = np.array([-1.0, 0.0, 1.0])
  for each in study.contenders(study.Setting()):
    name, end = each.name.partition(',')[0], ends.get(each.name, 6.25)
    divergence = np.array([0.0, end / 4, end])[:, None] * np.ones(3)
    reward = np.sqrt(divergence) / 2 * (values[name] + each.beta / 5 + spread * seeds * (each.name == 'PD'))
    measures = {'gold': reward, 'validation/gold': reward, 'proxy': 1.2 * reward, 'kl': divergence}
    outcomes = [
      [evaluations.Outcome(100 * i, {key: value[i, seed] for key, value in measures.items()}) for i in range(3)]
      for seed in range(3)
    ]
    found.append(evaluations.Curve.of(each.name, each.beta, each.objective, outcomes))
  return found


AGREEMENT = np.array([0.8, 0.82, 0.84])


def test_every_contender_has_three_weights_and_the_control_one():
  found = study.contenders(study.Setting())
  assert len({each[:2] for each in found}) == len(found) == 3 * len(study.METHODS) + len(report.ON_POLICY)
  for each in found:
    objectives.parse(each.objective)
  assert 'pmle(gamma=0.1) + kl_penalty(beta=0.05)' in {each.objective for each in found}
  assert all(each.gold == each.name.endswith('gold as reward') for each in found)


def test_a_curve_is_read_where_it_first_reaches_a_kl():
  kl, gold = (
    np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 0.5], [0.2, 0.9]]),
    np.array([[0.0] * 2, [0.4] * 2, [0.6] * 2, [9.0] * 2]),
  )
  curve = evaluations.Curve('a', 0.1, 'dpo()', np.arange(4), {'kl': kl, 'gold': gold})
  np.testing.assert_allclose(curve.at_kl(1.0, 'gold'), [0.4, 0.4])
  np.testing.assert_allclose(curve.at_kl(0.25, 'gold'), [0.2, 0.2])
  np.testing.assert_allclose(curve.at_kl(2.25, 'gold'), [0.5, np.nan])


def test_the_weight_is_chosen_in_validation_among_those_that_reach_the_kl():
  assert report.chosen(curves(), 'RLHF', 4.0).beta == 0.1
  best = [
    curve._replace(measures={**curve.measures, 'kl': curve.measures['kl'] / 9}) if curve.beta == 0.1 else curve
    for curve in curves()
  ]
  assert report.chosen(best, 'RLHF', 4.0).beta == 0.05


def test_the_claim_is_reproduced_if_every_on_policy_method_is_better_at_every_kl():
  found = report.verdict(curves(), AGREEMENT)
  assert found['reproduced'] is True
  assert list(found['criteria'].values()) == [True] * 12
  assert 'PD minus REBEL: +0.000 ± 0.003 at KL 1, ' in found['lines'][13]


@pytest.mark.parametrize(
  ('changes', 'failing'),
  [({'gold': {'REBEL': 0.4}}, 3), ({'spread': 0.6}, 3), ({'gold': {'DPO': 0.75}}, 6)],
)
def test_the_claim_is_not_reproduced_if_a_method_is_not_better_by_two_errors(changes, failing):
  found = report.verdict(curves(**changes), AGREEMENT)
  assert found['reproduced'] is False
  assert list(found['criteria'].values()).count(False) == failing


@pytest.mark.parametrize(('name', 'undecided'), [('RKL', 2), ('DPO', 8)])
def test_the_claim_is_undecided_if_a_method_does_not_reach_a_kl(name, undecided):
  found = report.verdict(curves(kl={name: 1.5}), AGREEMENT)
  assert found['reproduced'] is None
  assert list(found['criteria'].values()).count(None) == undecided
  failing = report.verdict(curves(kl={name: 1.5}, gold={'REBEL': 0.1}), AGREEMENT)
  assert failing['reproduced'] is False


def test_the_report_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'draw', lambda path, found: path.touch())
  with (tmp_path / 'printed').open('w') as stream:
    report.write(tmp_path, rich_console.Console(file=stream, width=140), curves(), AGREEMENT)
  assert (tmp_path / 'figure.png').exists()
  table = (tmp_path / 'table.md').read_text()
  assert (
    '| DPO | 0.1 | 0.210 ± 0.000 | 0.297 ± 0.000 | 0.420 ± 0.000 | 0.525 ± 0.000 | 0.630 ± 0.000 | 6.250 ± 0.000 |'
    in table
  )
  assert '- holds: PD minus DPO at KL 4: +0.300 ± 0.006' in table
  assert 'RLHF 0.513 ± 0.000 (KL 1.562 ± 0.000, round 100)' in table


@pytest.mark.slow
def test_a_round_has_scores_with_the_kl_and_the_reference_of_the_method():
  """With an untrained model: what REBEL and RLHF train on, from its own responses and log-probabilities."""
  setting, model = study.TINY, language.model(8, 1)
  params, reference = (model.init(jax.random.key(seed)) for seed in (0, 1))
  asked = language.prompts(setting.rows, np.random.default_rng(0))[None]
  subject = study.Subject(0, reference, None, lambda drawn: 2.0 * drawn.gold, None, asked)
  rebel, rlhf = (
    study.Trainer(model, setting, study.Contender(name, 0.5, study.METHODS[name]))._drawn(params, subject, 0)
    for name in ('REBEL', 'RLHF')
  )
  assert rlhf.response.shape[1] == 4
  np.testing.assert_allclose(rlhf.score, 2.0 * language.gold(rlhf.response, rlhf.response_length), rtol=1e-6)
  name = stats.reference_logp.name
  drawn = language.draw(model, params, asked[0], subject.key(0), 2)
  np.testing.assert_allclose(rebel.cached[name].sum(-1), drawn.logp, atol=2e-5)
  ratio = drawn.logp - np.asarray(descent.logp(model, reference, drawn.batch)).sum(-1)
  np.testing.assert_allclose(rebel.score, 2.0 * drawn.gold - 0.5 * ratio, atol=2e-5)


@pytest.mark.slow
def test_the_study_runs_and_resumes(tmp_path, capsys):
  summary = study.run(study.TINY, tmp_path)
  names = {(curve['name'], curve['beta']) for curve in summary['curves']}
  assert names == {each[:2] for each in study.contenders(study.TINY)}
  assert all(curve['measures']['kl'][0] == [0.0, 0.0] for curve in summary['curves'])
  assert all(curve['updates'] == [0, 2, 4] for curve in summary['curves'])
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
  table = (tmp_path / 'table.md').read_text()
  kept = json.loads((tmp_path / 'arms.json').read_text())
  del kept['arms']['DPO, 0.1']
  (tmp_path / 'arms.json').write_text(json.dumps(kept))
  again = study.run(study.TINY, tmp_path)
  assert again['curves'] == summary['curves']
  assert (tmp_path / 'table.md').read_text() == table
