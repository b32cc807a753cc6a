"""The study of distribution learning, at a size at which it takes a moment."""

import json

import numpy as np
import pytest

from experiments.toy import distribution_learning as study

SETTING = study.Setting(contexts=4, actions=3, scale=0.5)


@pytest.fixture(name='world', scope='module')
def make_world():
  return study.World.draw(SETTING, np.random.default_rng(0))


def test_each_objective_learns_the_distribution_that_is_predicted(world):
  learnt = study.population(SETTING, world)
  for name, (found, predicted) in learnt.items():
    np.testing.assert_allclose(found, predicted, atol=1e-4, err_msg=name)
  at_target = {name for name, (found, _) in learnt.items() if study.forward_kl(world.target, found).mean() < 1e-6}
  assert at_target == {'pmle(0.5)', 'preference_distillation(0.5)', 'reverse_kl(0.5, 0.0)'}


def test_drawn_comparisons_approach_the_exact_ones(world):
  drawn = study.draw_comparisons(world, 0.5, 10**7, np.random.default_rng(1))
  exact = study.exact_comparisons(world, 0.5)
  np.testing.assert_allclose(drawn.weight, exact.weight, atol=2e-3)
  np.testing.assert_allclose(drawn.label, exact.label, atol=2e-3)


@pytest.mark.slow
def test_with_more_pairs_the_target_is_learnt_or_a_plateau_reached(world):
  sizes = (2**10, 2**13, 2**16)
  errors = study.by_sample_size(SETTING, [world], sizes, (0.1, 0.5), np.random.default_rng(2))
  errors = {name: x[0] for name, x in errors.items()}
  np.testing.assert_allclose(errors['PD'], errors['PMLE'], rtol=1e-3, atol=1e-6)
  assert np.all(errors['RKL'] <= errors['PMLE'] * (1 + 1e-3) + 1e-6)
  assert -1.5 < study.slope(sizes, errors['PMLE']) < -0.7
  plateau = study.plateau(world)
  assert errors['DPO'][-1] == pytest.approx(plateau, rel=0.15)
  assert errors['RLHF'][-1] > 0.5 * plateau > 10 * errors['PMLE'][-1]


@pytest.mark.slow  # the tests above check what is drawn
def test_a_run_leaves_a_figure_and_a_summary(tmp_path, capsys):
  study.run(study.Setting(contexts=1, actions=3), 1, (2**8, 2**10), (0.5,), 0, tmp_path)
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert set(summary['forward_kl']) == {'PMLE', 'PD', 'RKL', 'DPO', 'RLHF'}
  assert all(len(errors) == 2 for errors in summary['forward_kl'].values())
  printed = capsys.readouterr().out
  assert 'preference_distillation(0.5)' in printed
  assert '1024' in printed
