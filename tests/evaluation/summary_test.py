"""What is reported about models, from arrays."""

import dataclasses

import numpy as np
import pytest

from alignjax.evaluation import best_of_n, evaluator, length_control, summary

GENERATOR = np.random.default_rng(0)
PROMPTS, SAMPLES = 20, 4


def measured(name, shift=0.0, kl=0.0, **fields):
  """Responses with random rewards, `shift` above those of the reference in the mean."""
  generator = np.random.default_rng(len(name))
  reward = generator.normal(size=(PROMPTS, SAMPLES)) + shift
  ids = [[list(range(generator.integers(1, 9))) for _ in range(SAMPLES)] for _ in range(PROMPTS)]
  return summary.Measured(
    name=name,
    ids=ids,
    finished=np.ones((PROMPTS, SAMPLES), bool),
    rewards={'reward': reward, 'proxy': 2 * reward},
    kl={'kl': np.full((PROMPTS, SAMPLES), kl)},
    **fields,
  )


REFERENCE = measured('reference')


def test_values_are_those_of_the_estimators():
  model = measured('a', 1.0, 0.5, parts={'vader': GENERATOR.normal(size=(PROMPTS, SAMPLES))})
  model = dataclasses.replace(model, entropy=np.full((PROMPTS, SAMPLES), 0.25))
  found = summary.summarise(model, REFERENCE)
  ours, theirs = model.rewards['reward'], REFERENCE.rewards['reward']
  assert found['reward'] == evaluator.clustered_mean(ours)
  assert found['reward/vader'] == evaluator.clustered_mean(model.parts['vader'])
  assert found['gain'] == evaluator.gain(ours, theirs)
  assert found['win_rate'] == evaluator.win_rate(ours, theirs)
  wins = np.where(ours > theirs, 1.0, 0.0)
  assert found['length_controlled'] == length_control.length_controlled(wins, model.tokens, REFERENCE.tokens)
  assert (found['kl'].mean, found['entropy'].mean, found['finished'].mean) == (0.5, 0.25, 1.0)
  assert found['tokens'].mean == np.mean([len(response) for row in model.ids for response in row])
  assert 0 < found['distinct_1'] < found['distinct_2'] < 1


def test_the_reference_is_not_compared_with_itself():
  assert not {'gain', 'win_rate', 'length_controlled'} & summary.summarise(REFERENCE, REFERENCE).keys()


def test_a_model_wins_half_of_the_time_against_one_like_it():
  """The same distribution of rewards, drawn again."""
  win_rate = summary.summarise(measured('another'), REFERENCE)['win_rate']
  assert abs(win_rate.mean - 0.5) < 3 * win_rate.error


def test_best_of_n_is_reported_for_powers_of_two():
  found = summary.best_of_reference(REFERENCE)
  assert [each['n'] for each in found] == [1, 2, 4]
  assert [each['kl'] for each in found] == [best_of_n.kl_best_of_n(n) for n in (1, 2, 4)]
  assert found[0]['reward'] == evaluator.clustered_mean(REFERENCE.rewards['reward'])
  assert found[2]['proxy'].mean == pytest.approx(REFERENCE.rewards['proxy'].max(axis=1).mean())
  without = dataclasses.replace(REFERENCE, rewards={'reward': REFERENCE.rewards['reward']})
  assert summary.best_of_reference(without) == []


def checkpoint(step, kl):
  """A checkpoint whose gain over the reference follows d (1.5 - 0.3 log d) exactly."""
  d = kl**0.5
  gain = d * (1.5 - 0.3 * np.log(d)) if d else 0.0
  rewards = {'reward': REFERENCE.rewards['reward'] + gain, 'proxy': REFERENCE.rewards['proxy'] + 2 * d}
  return dataclasses.replace(measured('run', 0.0, kl), rewards=rewards, run='run', step=step)


def test_the_laws_are_fitted_to_the_checkpoints_of_a_run():
  found = summary.over_optimisation_of([checkpoint(i, kl) for i, kl in enumerate([0.0, 0.5, 2.0, 8.0])], REFERENCE)
  assert [(each['of'], each['fit'].law) for each in found] == [
    ('reward', 'best_of_n'),
    ('reward', 'rl'),
    ('proxy', 'best_of_n'),
    ('proxy', 'rl'),
  ]
  fit = found[1]['fit']
  assert (fit.a.mean, fit.b.mean) == pytest.approx((1.5, 0.3), rel=1e-9)
  assert fit.rms < 1e-12 < found[0]['fit'].rms
  assert (found[3]['fit'].a.mean, found[3]['fit'].b.mean) == pytest.approx((2.0, 0.0), abs=1e-9)


def test_one_checkpoint_away_from_the_reference_is_no_curve():
  assert summary.over_optimisation_of([checkpoint(0, 0.0), checkpoint(1, 1.0)], REFERENCE) == []


def test_points_are_at_the_reference_without_a_kl():
  model = dataclasses.replace(checkpoint(3, 4.0), kl={})
  assert summary.point(model, summary.summarise(model, REFERENCE)).kl == evaluator.Estimate(0.0, 0.0)
  assert summary.point(checkpoint(3, 4.0), summary.summarise(checkpoint(3, 4.0), REFERENCE)).step == 3
