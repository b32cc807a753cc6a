"""Fits of the laws of over-optimisation, on checkpoints with known coefficients."""

import numpy as np
import pytest

from alignjax.evaluation import over_optimisation

D = np.array([0.5, 1.0, 2.0, 4.0])
CURVES = {
  'best_of_n': lambda d, a, b: d * (a - b * d),
  'rl': lambda d, a, b: d * (a - b * np.log(d)),
}


def checkpoints(law, prompts=30, noise=0.0, seed=0):
  """Gain and KL of four checkpoints with a = 1.5, b = 0.3; the noise of a prompt is the same in all checkpoints."""
  generator = np.random.default_rng(seed)
  gain = CURVES[law](D, 1.5, 0.3)[:, None] + noise * generator.normal(size=prompts)
  kl = np.tile(generator.uniform(0.5, 1.5, prompts), (4, 1))
  return gain, kl / kl.mean() * D[:, None] ** 2


@pytest.mark.parametrize('law', CURVES)
def test_coefficients_are_recovered(law):
  fit = over_optimisation.fit(law, *checkpoints(law), draws=20)
  assert (fit.a.mean, fit.b.mean) == pytest.approx((1.5, 0.3), rel=1e-9)
  np.testing.assert_allclose(fit.distance, D, rtol=1e-12)
  np.testing.assert_allclose(fit.residual, 0.0, atol=1e-12)
  np.testing.assert_allclose(fit.gain([1.0, 3.0]), CURVES[law](np.array([1.0, 3.0]), 1.5, 0.3), rtol=1e-9)


def test_the_residual_tells_the_laws_apart():
  gain, kl = checkpoints('rl')
  right, wrong = (over_optimisation.fit(law, gain, kl, draws=2) for law in ('rl', 'best_of_n'))
  assert right.rms < 1e-9
  assert wrong.rms > 0.02
  assert wrong.rms == pytest.approx(np.sqrt(np.mean((gain.mean(axis=1) - wrong.gain(D)) ** 2)))


def test_the_residual_is_orthogonal_to_both_terms():
  gain, kl = checkpoints('rl')
  residual = over_optimisation.fit('best_of_n', gain, kl, draws=2).residual
  np.testing.assert_allclose(over_optimisation.LAWS['best_of_n'](D).T @ residual, 0.0, atol=1e-9)


def test_the_reference_itself_does_not_count():
  gain, kl = checkpoints('rl')
  start = np.zeros((1, kl.shape[1]))
  fit = over_optimisation.fit('rl', np.concatenate([start, gain]), np.concatenate([start, kl]), draws=2)
  assert (fit.a.mean, fit.b.mean) == pytest.approx((1.5, 0.3), rel=1e-9)


def test_the_bootstrap_covers_the_spread_of_repeated_experiments():
  fits = [over_optimisation.fit('rl', *checkpoints('rl', 40, 0.5, seed), draws=100) for seed in range(60)]
  for name in ('a', 'b'):
    estimates = [getattr(fit, name) for fit in fits]
    claimed = np.sqrt(np.mean([estimate.error**2 for estimate in estimates]))
    assert claimed == pytest.approx(np.std([estimate.mean for estimate in estimates]), rel=0.3)


def test_the_seed_decides_the_bootstrap():
  one, again, other = (
    over_optimisation.fit('rl', *checkpoints('rl', noise=0.5), draws=9, seed=seed).a.error for seed in (1, 1, 2)
  )
  assert one == again
  assert one != other


@pytest.mark.parametrize(
  ('law', 'gain', 'kl', 'message'),
  [
    ('linear', D[:, None], D[:, None], "'linear' is not one of best_of_n, rl"),
    ('rl', D[:, None], D[:3, None], r'got \(4, 1\) and \(3, 1\)'),
    ('rl', D[:, None], np.array([[0.0], [-0.1], [1.0], [0.0]]), '1 checkpoints have a positive KL'),
  ],
)
def test_wrong_arguments_are_refused(law, gain, kl, message):
  with pytest.raises(ValueError, match=message):
    over_optimisation.fit(law, gain, kl)
