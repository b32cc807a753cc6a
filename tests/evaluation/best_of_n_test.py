"""Best of n from one pool, against all subsets written out."""

import itertools
import math

import numpy as np
import pytest

from alignjax.evaluation import best_of_n

GENERATOR = np.random.default_rng(0)
GOLD = GENERATOR.normal(size=(3, 6))
# With ties; the last prompt has equal proxy rewards throughout.
PROXY = np.concatenate([GENERATOR.integers(0, 3, (2, 6)), np.ones((1, 6))]).astype(float)


@pytest.mark.parametrize('n', range(1, 7))
def test_against_all_subsets(n):
  expected = []
  for proxy, gold in zip(PROXY, GOLD, strict=True):
    outcomes = []
    for subset in itertools.combinations(range(6), n):
      best = [i for i in subset if proxy[i] == max(proxy[list(subset)])]
      outcomes.append(sum(gold[i] for i in best) / len(best))
    expected.append(sum(outcomes) / len(outcomes))
  np.testing.assert_allclose(best_of_n.best_of_n(PROXY, GOLD, n), expected, rtol=1e-12, atol=1e-12)


def test_one_draw_is_the_mean_and_all_draws_are_the_best_by_proxy():
  proxy = GENERATOR.permuted(np.tile(np.arange(6.0), (3, 1)), axis=1)
  np.testing.assert_allclose(best_of_n.best_of_n(proxy, GOLD, 1), GOLD.mean(axis=1), rtol=1e-12)
  np.testing.assert_allclose(best_of_n.best_of_n(proxy, GOLD, 6), GOLD[proxy == 5], rtol=1e-12)


def test_the_estimate_is_unbiased_for_independent_samples():
  """Samples are uniform on [0, 1] and their own proxy: the best of n has the mean n / (n + 1)."""
  samples = np.random.default_rng(1).uniform(size=(20000, 5))
  values = best_of_n.best_of_n(samples, samples, 3)
  assert abs(values.mean() - 3 / 4) < 4 * values.std() / np.sqrt(len(values))


def test_a_large_pool_does_not_overflow():
  rewards = np.arange(2000.0)[None]
  assert best_of_n.best_of_n(rewards, rewards, 1000)[0] == pytest.approx(1000 * 2001 / 1001 - 1)


def test_the_divergence_is_that_of_the_distribution_of_ranks():
  """Best of n has the density n u^(n - 1) over ranks u in [0, 1]."""
  u = (np.arange(200000) + 0.5) / 200000
  for n in (1, 2, 7):
    density = n * u ** (n - 1)
    assert best_of_n.kl_best_of_n(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-6)
  assert best_of_n.kl_best_of_n(4) == math.log(4) - 3 / 4


@pytest.mark.parametrize(
  ('proxy', 'gold', 'n', 'message'),
  [
    (PROXY, GOLD, 0, 'n=0 must be between 1 and the number of samples per prompt, 6'),
    (PROXY, GOLD, 7, 'n=7'),
    (PROXY, GOLD[:2], 2, r'got \(3, 6\) and \(2, 6\)'),
    (PROXY[0], GOLD[0], 2, r'\[prompts, samples\]'),
    (np.full((1, 2), np.nan), np.ones((1, 2)), 1, 'nan'),
  ],
)
def test_wrong_arguments_are_refused(proxy, gold, n, message):
  with pytest.raises(ValueError, match=message):
    best_of_n.best_of_n(proxy, gold, n)


def test_no_draws_have_no_divergence():
  with pytest.raises(ValueError, match='n=0 must be at least 1'):
    best_of_n.kl_best_of_n(0)
