"""Risk measures against sorts and sums in float64, and the properties of Artzner, Rockafellar, Foellmer and others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import risk
from tests import quick
from tests.oracles import risk as oracles

MEASURES = {
  'expectation()': (risk.expectation(), oracles.expectation),
  'cvar(0.01)': (risk.cvar(0.01), lambda d, p: oracles.cvar(d, p, 0.01)),
  'cvar(0.5)': (risk.cvar(0.5), lambda d, p: oracles.cvar(d, p, 0.5)),
  'cvar(0.97)': (risk.cvar(0.97), lambda d, p: oracles.cvar(d, p, 0.97)),
  'cvar(0.4, lower)': (risk.cvar(0.4, tail='lower'), lambda d, p: oracles.cvar(d, p, 0.4, 'lower')),
  'entropic(1e-4)': (risk.entropic(1e-4), lambda d, p: oracles.entropic(d, p, 1e-4)),
  'entropic(0.5)': (risk.entropic(0.5), lambda d, p: oracles.entropic(d, p, 0.5)),
  'entropic(5.0)': (risk.entropic(5.0), lambda d, p: oracles.entropic(d, p, 5.0)),
  'entropic(-2.0)': (risk.entropic(-2.0), lambda d, p: oracles.entropic(d, p, -2.0)),
  'worst_case()': (risk.worst_case(), oracles.worst_case),
  'worst_case(lower)': (risk.worst_case(tail='lower'), lambda d, p: oracles.worst_case(d, p, 'lower')),
  'mean_semideviation(0.6)': (risk.mean_semideviation(0.6), lambda d, p: oracles.mean_semideviation(d, p, 0.6)),
}
EVERY = pytest.mark.parametrize(('measure', 'oracle'), MEASURES.values(), ids=MEASURES)
EXTREME = ('cvar(0.01)', 'cvar(0.97)', 'entropic(1e-4)', 'entropic(5.0)')
EACH_KIND = pytest.mark.parametrize(('measure', 'oracle'), quick.named(MEASURES, MEASURES.keys() - set(EXTREME)))
UPPER = ['cvar(0.01)', 'cvar(0.5)', 'cvar(0.97)', 'entropic(0.5)', 'worst_case()', 'mean_semideviation(0.6)']
SMALL = np.log([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0])


@functools.cache
def compiled(measure):
  return jax.jit(jax.value_and_grad(measure))


def value_and_gradient(measure, d, logp):
  """In one program for each measure, as most distributions here have 40 entries."""
  return compiled(measure)(jnp.asarray(d, jnp.float32), jnp.asarray(logp, jnp.float32))


def value_of(measure, d, logp):
  return value_and_gradient(measure, d, logp)[0]


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def language(seed, vocab, noise=0.3, rows=None):
  """(log p, log q) of a Zipf-like distribution and one near it, float64."""
  rng = np.random.default_rng(seed)
  shape = (vocab,) if rows is None else (rows, vocab)
  logits = -np.log(np.arange(1, vocab + 1)) + rng.standard_normal(shape)
  return log_softmax(logits), log_softmax(logits + noise * rng.standard_normal(shape))


def random_case(seed=0, vocab=40):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(vocab), log_softmax(2 * rng.standard_normal(vocab))


@EVERY
@pytest.mark.parametrize('seed', range(4))
def test_value_equals_the_oracle(measure, oracle, seed):
  d, logp = random_case(seed)
  np.testing.assert_allclose(value_of(measure, d, logp), oracle(d, np.exp(logp)), rtol=3e-6, atol=1e-6)


@EACH_KIND
def test_gradient_in_the_values_equals_central_differences(measure, oracle):
  d, logp = random_case(5)
  _, gradient = value_and_gradient(measure, d, logp)
  step, p = 1e-6, np.exp(logp)
  shifts = step * np.eye(len(d))
  expected = [(oracle(d + shift, p) - oracle(d - shift, p)) / (2 * step) for shift in shifts]
  np.testing.assert_allclose(gradient, expected, atol=3e-6)
  np.testing.assert_allclose(np.sum(gradient), 1.0, rtol=2e-6)


@EVERY
def test_gradient_in_the_log_probabilities_equals_central_differences_along_the_simplex(measure, oracle):
  d, logp = random_case(6)
  of_logits = jax.jit(jax.grad(lambda logits: measure(d, jax.nn.log_softmax(logits))))
  gradient = of_logits(jnp.asarray(logp, jnp.float32))
  step, expected = 1e-6, []
  for shift in step * np.eye(len(d)):
    up, down = (oracle(d, np.exp(log_softmax(logp + sign * shift))) for sign in (1, -1))
    expected.append((up - down) / (2 * step))
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=5e-6)


def test_forward_mode_agrees_with_reverse_mode():
  d, logp = (jnp.asarray(x, jnp.float32) for x in random_case(7))

  def of_all(d, logp):
    for measure, _ in MEASURES.values():
      _, tangent = jax.jvp(measure, (d, logp), (jnp.cos(d), jnp.sin(d)))
      by_values, by_probs = jax.grad(measure, (0, 1))(d, logp)
      yield tangent, by_values @ jnp.cos(d) + by_probs @ jnp.sin(d)

  for found, expected in jax.jit(lambda *inputs: list(of_all(*inputs)))(d, logp):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('level', 'expected'), [(0.2, 2.0), (0.3, 5 / 3), (0.5, 1.4), (1.0, 0.7)])
def test_atoms_at_the_quantile_are_split(level, expected):
  logp, d = SMALL
  np.testing.assert_allclose(risk.cvar(level)(d, logp), expected, rtol=1e-6)
  # The minimum of Rockafellar and Uryasev over all thresholds, which lies at an atom.
  minimum = min(eta + np.sum(np.exp(logp) * np.maximum(d - eta, 0)) / level for eta in d)
  np.testing.assert_allclose(risk.cvar(level)(d, logp), minimum, rtol=1e-6)


def test_cvar_is_the_largest_expectation_under_weights_of_at_most_p_over_level():
  d, logp = random_case(3, vocab=12)
  p, rng = np.exp(logp), np.random.default_rng(0)
  value = risk.cvar(0.3)(d, logp)
  for _ in range(200):
    weights = p * rng.uniform(0, 1, len(p)) / 0.3
    if weights.sum() >= 1:
      weights *= 1 / weights.sum()
      assert weights @ d <= value + 1e-6


def test_equal_values_weigh_as_their_probabilities():
  logp = random_case(0)[1]
  for measure, _ in MEASURES.values():
    value, gradient = value_and_gradient(measure, np.full(40, 0.7), logp)
    np.testing.assert_allclose(value, 0.7, rtol=1e-6)
    np.testing.assert_allclose(gradient, np.exp(logp), rtol=2e-6)


@pytest.mark.parametrize('level', [0.03, 0.5, 0.97])
def test_noise_of_rounding_is_a_tie(level):
  logp, _ = language(0, 1000)
  noise = np.random.default_rng(0).uniform(-1e-7, 1e-7, 1000)
  _, gradient = value_and_gradient(risk.cvar(level), noise, logp)
  np.testing.assert_allclose(gradient, np.exp(logp), rtol=1e-5, atol=1e-9)


@EVERY
def test_translation_equivariance(measure, oracle):
  del oracle
  d, logp = random_case(1)
  np.testing.assert_allclose(value_of(measure, d + 3.0, logp), value_of(measure, d, logp) + 3.0, rtol=2e-6)


@EVERY
def test_monotonicity(measure, oracle):
  del oracle
  d, logp = random_case(2)
  more = d + np.random.default_rng(0).exponential(0.5, len(d)) * (np.arange(len(d)) % 3 == 0)
  assert value_of(measure, more, logp) >= value_of(measure, d, logp) - 1e-6


@pytest.mark.parametrize('name', UPPER)
def test_upper_measures_are_convex_and_above_the_mean_and_below_the_maximum(name):
  measure = functools.partial(value_of, MEASURES[name][0])
  (d, logp), (e, _) = random_case(3), random_case(4)
  for share in (0.2, 0.5, 0.9):
    mixed = measure(share * d + (1 - share) * e, logp)
    assert mixed <= share * measure(d, logp) + (1 - share) * measure(e, logp) + 1e-6
  assert np.exp(logp) @ d <= measure(d, logp) + 1e-6
  assert measure(d, logp) <= d.max() + 1e-6


@pytest.mark.parametrize('name', ['cvar(0.4, lower)', 'worst_case(lower)', 'entropic(-2.0)'])
def test_lower_measures_are_concave_and_below_the_mean(name):
  measure = functools.partial(value_of, MEASURES[name][0])
  (d, logp), (e, _) = random_case(3), random_case(4)
  mixed = measure(0.3 * d + 0.7 * e, logp)
  assert mixed >= 0.3 * measure(d, logp) + 0.7 * measure(e, logp) - 1e-6
  assert measure(d, logp) <= np.exp(logp) @ d + 1e-6


@EVERY
def test_a_measure_declares_the_tail_that_it_is_averse_to(measure, oracle):
  d, logp = random_case(3)
  gap = oracle(d, np.exp(logp)) - np.exp(logp) @ d
  assert measure.tail == ('neither' if abs(gap) < 1e-9 else 'upper' if gap > 0 else 'lower')


def test_a_measure_depends_on_the_share_of_the_mass_that_it_declares():
  d, logp = np.arange(10.0) / 10, np.full(10, np.log(0.1))
  for measure, oracle in MEASURES.values():
    for moved in range(1, 10):  # the others are the worst for a reward, or the best for a cost
      worse, shift = (d, 1.0) if measure.tail == 'lower' else (-d, -1.0)
      raised = worse + shift * (np.arange(10) >= 10 - moved)
      unchanged = abs(oracle(raised, np.exp(logp)) - oracle(worse, np.exp(logp))) < 1e-9
      assert unchanged == (measure.mass <= 1 - 0.1 * moved + 1e-9), (measure, moved)


@pytest.mark.parametrize('name', ['cvar(0.01)', 'cvar(0.97)', 'worst_case()', 'mean_semideviation(0.6)'])
def test_coherent_measures_are_positively_homogeneous(name):
  measure, (d, logp) = MEASURES[name][0], random_case(3)
  np.testing.assert_allclose(value_of(measure, 7.0 * d, logp), 7.0 * value_of(measure, d, logp), rtol=3e-6)


def test_the_entropic_measure_scales_its_aversion_instead():
  d, logp = random_case(3)
  np.testing.assert_allclose(risk.entropic(0.4)(5.0 * d, logp), 5.0 * risk.entropic(2.0)(d, logp), rtol=3e-6)


def test_the_lower_tail_mirrors_the_upper():
  d, logp = random_case(3)
  for level in (0.1, 0.6):
    np.testing.assert_array_equal(risk.cvar(level, tail='lower')(-d, logp), -risk.cvar(level)(d, logp))


def test_cvar_falls_with_its_level_from_the_maximum_to_the_mean():
  d, logp = random_case(8)
  values = [risk.cvar(level)(d, logp) for level in (1e-6, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0)]
  assert np.all(np.diff(values) <= 1e-6)
  np.testing.assert_allclose(values[0], d.max(), rtol=1e-6)
  np.testing.assert_allclose(values[-1], np.exp(logp) @ d, rtol=1e-5)
  np.testing.assert_allclose(values[-2], values[-1], atol=1e-3)


def test_the_entropic_measure_rises_with_its_aversion_from_the_mean_to_the_maximum():
  d, logp = random_case(8)
  p = np.exp(logp)
  values = [risk.entropic(kappa)(d, logp) for kappa in (0.0, 1e-6, 1e-3, 0.1, 1.0, 10.0, 1e4)]
  assert np.all(np.diff(values) >= -1e-7)
  np.testing.assert_allclose(values[0], p @ d, rtol=1e-5)
  np.testing.assert_allclose(values[-1], d.max(), rtol=1e-3)
  variance = p @ d**2 - (p @ d) ** 2
  np.testing.assert_allclose(values[2], p @ d + 0.5e-3 * variance, rtol=1e-5)
  np.testing.assert_allclose(jax.grad(risk.entropic(0.3))(jnp.asarray(d, jnp.float32), logp).sum(), 1.0, rtol=1e-6)


@EACH_KIND
def test_an_entry_of_probability_zero_adds_nothing_whatever_its_value(measure, oracle):
  d, logp = random_case(9, vocab=39)
  expected = oracle(d, np.exp(logp))
  for junk in (0.0, 1e6, -1e6, np.inf, np.nan):
    more, probs = np.append(d, junk).astype(np.float32), np.append(logp, -np.inf).astype(np.float32)
    value, gradient = value_and_gradient(measure, more, probs)
    np.testing.assert_allclose(value, expected, rtol=3e-6, atol=1e-6)
    assert gradient[-1] == 0
    assert np.all(np.isfinite(gradient))


@EVERY
def test_a_certain_outcome_is_worth_itself(measure, oracle):
  del oracle
  d, certain = 5 * random_case(12)[0], np.arange(40) == 1
  value, gradient = value_and_gradient(measure, d, np.where(certain, 0.0, -np.inf))
  np.testing.assert_allclose(value, d[1], rtol=1e-6)
  np.testing.assert_allclose(gradient, certain, atol=1e-6)


@EVERY
def test_permuting_the_entries_changes_nothing(measure, oracle):
  del oracle
  d, logp = random_case(10)
  d[::3] = d[0]  # ties
  order = np.random.default_rng(1).permutation(len(d))
  value, gradient = value_and_gradient(measure, d, logp)
  moved, moved_gradient = value_and_gradient(measure, d[order], logp[order])
  np.testing.assert_allclose(moved, value, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-5, atol=1e-7)


@EVERY
@pytest.mark.parametrize('magnitude', [1e-8, 1.0, 1e4])
def test_finite_for_any_magnitude(measure, oracle, magnitude):
  d, logp = random_case(11)
  value, gradient = value_and_gradient(measure, magnitude * d, logp)
  np.testing.assert_allclose(value, oracle(magnitude * d, np.exp(logp)), rtol=1e-5, atol=1e-6)
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize('level', quick.first(2, [0.01, 0.95, 0.5, 0.99, 1.0]))
def test_cvar_is_accurate_in_float32_over_a_large_vocabulary(level):
  logp, logq = language(2, 152_000)
  expected = oracles.cvar(logp - logq, np.exp(logp), level)
  logp, logq = (jnp.asarray(x, jnp.float32) for x in (logp, logq))
  value, gradient = jax.jit(jax.value_and_grad(lambda q: risk.cvar(level)(logp - q, logp)))(logq)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  weights = oracles.upper_cvar_weights(np.asarray(logp - logq, np.float64), np.exp(np.asarray(logp, np.float64)), level)
  assert np.abs(gradient + weights).sum() < 2e-5


@pytest.mark.parametrize('kappa', quick.first(2, [1e-4, 5.0, 1e-2, 0.5, 50.0]))
def test_the_entropic_measure_is_accurate_in_float32_over_a_large_vocabulary(kappa):
  logp, logq = language(3, 152_000)
  expected = oracles.entropic(logp - logq, np.exp(logp), kappa)
  value = jax.jit(risk.entropic(kappa))(jnp.asarray(logp - logq, jnp.float32), jnp.asarray(logp, jnp.float32))
  np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.slow  # contract_test.py maps and compiles objectives with measures
def test_leading_dimensions_jit_and_vmap():
  logp, logq = (x.reshape(2, 3, 50).astype(np.float32) for x in language(4, 50, rows=6))
  for measure, oracle in MEASURES.values():
    expected = oracles.along_last_axis(oracle, (logp - logq).astype(np.float64), np.exp(logp.astype(np.float64)))
    for function in (measure, jax.jit(jax.vmap(jax.checkpoint(measure)))):
      np.testing.assert_allclose(function(logp - logq, logp), expected, rtol=2e-5, atol=2e-6)


def test_measures_of_one_name_are_equal_and_the_name_builds_them():
  for measure, _ in MEASURES.values():
    again = eval(repr(measure), dict(risk.MEASURES))  # our own text
    assert again == measure
    assert hash(again) == hash(measure)
  assert risk.cvar(0.1) != risk.cvar(0.2)
  assert risk.cvar(0.1) != risk.cvar(0.1, tail='lower')


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: risk.cvar(0), r'cvar: level must be in \(0, 1\], got 0'),
    (lambda: risk.cvar(1.1), 'cvar: level'),
    (lambda: risk.cvar(float('nan')), 'cvar: level'),
    (lambda: risk.cvar(0.5, tail='left'), "tail must be 'upper' or 'lower', got 'left'"),
    (lambda: risk.entropic(float('inf')), 'entropic: kappa must be finite'),
    (lambda: risk.mean_semideviation(-0.1), 'mean_semideviation: weight'),
    (lambda: risk.worst_case(tail=''), 'worst_case'),
    (lambda: risk.cvar(0.5)(jnp.zeros(3), jnp.zeros(4)), 'differ in shape'),
  ],
)
def test_what_cannot_be_is_named(build, message):
  with pytest.raises(ValueError, match=message):
    build()
