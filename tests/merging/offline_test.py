"""Every merge method against the published formula in float64, and the identities that it must satisfy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import merging
from tests import quick
from tests.merging import worlds
from tests.oracles import merging as oracle

WEIGHTS = [0.5, 0.9, 0.2]
BASE, MODELS = worlds.family(3)


def compare(method, expected, weights=WEIGHTS, models=MODELS, base=BASE):
  """Merges the whole tree, and compares each leaf with expected(models, base, name)."""
  merged = worlds.leaves(merging.merge(method, models, base, weights=weights))
  stored = [worlds.leaves(model) for model in models]
  origin = None if base is None else worlds.leaves(base)
  assert merged.keys() == stored[0].keys()
  for name, leaf in merged.items():
    wanted = expected([model[name] for model in stored], None if origin is None else origin[name])
    np.testing.assert_allclose(leaf, wanted, rtol=2e-5, atol=2e-6, err_msg=name)


def mixed(thin, consensus, normalize, scale):
  """The oracle of a method that adds thinned task vectors."""
  mix = oracle.elect if consensus == 'ties' else oracle.add

  def expected(models, base):
    thinned = [thin(delta, i) for i, delta in enumerate(oracle.deltas(models, base))]
    return np.float64(base) + scale * mix(thinned, WEIGHTS, normalize)

  return expected


@pytest.mark.parametrize('normalize', [True, False])
def test_linear(normalize):
  def expected(models, base):
    del base
    return oracle.linear(models, WEIGHTS, normalize)

  compare(merging.linear(normalize), expected, base=None)


@pytest.mark.parametrize('t', [0.3, *(pytest.param(end, marks=pytest.mark.slow) for end in (0.0, 1.0))])
def test_slerp(t):
  compare(merging.slerp(t), lambda models, base: oracle.slerp(t, *models), None, MODELS[:2], None)
  far = [MODELS[0], worlds.tree(9)]
  compare(merging.slerp(t), lambda models, base: oracle.slerp(t, *models), None, far, None)


@pytest.mark.parametrize(
  ('normalize', 'scale'),
  [(True, 0.7), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((False, 1.0), (False, -0.4)))],
)
def test_task_arithmetic(normalize, scale):
  compare(merging.task_arithmetic(normalize, scale), mixed(lambda d, i: d, 'linear', normalize, scale))


@pytest.mark.parametrize(('normalize', 'scale'), [pytest.param(True, 1.0, marks=pytest.mark.slow), (False, 0.7)])
@pytest.mark.parametrize(
  'density', [0.1, pytest.param(0.5, marks=pytest.mark.slow), pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_ties(density, normalize, scale):
  expected = mixed(lambda d, i: oracle.trim(d, density), 'ties', normalize, scale)
  compare(merging.ties(density, normalize, scale), expected)


def test_densities_belong_to_models_in_order():
  densities = [0.2, 0.9, 0.6]
  compare(merging.ties(densities), mixed(lambda d, i: oracle.trim(d, densities[i]), 'ties', True, 1.0))


@pytest.mark.parametrize('consensus', ['linear', pytest.param('ties', marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  ('density', 'gamma'),
  [(0.6, 0.1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0.95, 0.2), (0.3, 0.0), (1.0, 0.1)))],
)
def test_breadcrumbs(density, gamma, consensus):
  expected = mixed(lambda d, i: oracle.outliers(d, density, gamma), consensus, True, 0.8)
  compare(merging.breadcrumbs(density, gamma, consensus, normalize=True, scale=0.8), expected)


RANDOM = {
  'dare': merging.dare([0.7, 0.4, 0.5], 'linear', 'none', seed=3),
  'della': merging.della(0.6, 0.3, consensus='linear', rescale='none', normalize=False, seed=4),
}


@functools.cache
def masks(name):
  """[models] of the entries that a random method keeps, by tensor: one model moves at a time, without rescaling."""
  kept, method = [], RANDOM[name]
  for i, model in enumerate(MODELS):
    others = [model if j == i else BASE for j in range(len(MODELS))]
    merged = worlds.leaves(merging.merge(method, others, BASE))
    kept.append({name: leaf != worlds.leaves(BASE)[name] for name, leaf in merged.items()})
  return kept


QUICK = {('l1', 'ties')}  # sparsify_test has the other rescalings of one task vector


@pytest.mark.parametrize(
  ('rescale', 'consensus'),
  [
    pytest.param(*choice, marks=() if choice in QUICK else pytest.mark.slow)
    for choice in itertools.product(('inverse', 'l1', 'none'), ('linear', 'ties'))
  ],
)
def test_dare(consensus, rescale):
  density = [0.7, 0.4, 0.5]
  kept = masks('dare')
  thin = {
    'inverse': lambda delta, mask, i: delta * mask / density[i],
    'l1': lambda delta, mask, i: oracle.match_l1(delta * mask, delta),
    'none': lambda delta, mask, i: delta * mask,
  }[rescale]
  merged = worlds.leaves(
    merging.merge(merging.dare(density, consensus, rescale, True, 0.9, 3), MODELS, BASE, weights=WEIGHTS)
  )
  for name, base in worlds.leaves(BASE).items():
    taus = oracle.deltas([worlds.leaves(model)[name] for model in MODELS], base)
    thinned = [thin(tau, kept[i][name], i) for i, tau in enumerate(taus)]
    mix = oracle.elect if consensus == 'ties' else oracle.add
    wanted = base + 0.9 * mix(thinned, WEIGHTS, True)
    np.testing.assert_allclose(merged[name], wanted, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
  'rescale', [pytest.param('inverse', marks=pytest.mark.slow), 'l1', pytest.param('none', marks=pytest.mark.slow)]
)
def test_della(rescale):
  density, epsilon = 0.6, 0.3
  kept = masks('della')
  thin = {
    'inverse': lambda delta, mask: delta * mask / oracle.keep_probability(delta, density, epsilon),
    'l1': lambda delta, mask: oracle.match_l1(delta * mask, delta),
    'none': lambda delta, mask: delta * mask,
  }[rescale]
  method = merging.della(density, epsilon, rescale=rescale, scale=1.1, seed=4)
  merged = worlds.leaves(merging.merge(method, MODELS, BASE, weights=WEIGHTS))
  for name, base in worlds.leaves(BASE).items():
    taus = oracle.deltas([worlds.leaves(model)[name] for model in MODELS], base)
    thinned = [thin(tau, kept[i][name]) for i, tau in enumerate(taus)]
    wanted = base + 1.1 * oracle.elect(thinned, WEIGHTS, True)
    np.testing.assert_allclose(merged[name], wanted, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize('count', [pytest.param(2, marks=pytest.mark.slow), 3])
def test_model_stock(count):
  alike = worlds.tree(20, 0.3)
  models = [jax.tree.map(np.add, model, alike) for model in MODELS[:count]]
  compare(merging.model_stock(), lambda models, base: oracle.model_stock(models, base)[1], None, models)


def single(method, models, base=None, weights=None):
  """Merges bare tensors."""
  trees = [{'w': jnp.asarray(model, jnp.float32)} for model in models]
  origin = None if base is None else {'w': jnp.asarray(base, jnp.float32)}
  return np.asarray(merging.merge(method, trees, origin, weights=weights)['w'])


def test_average_of_equal_models_is_that_model():
  for method in (merging.linear(), merging.slerp(0.4)):
    merged = merging.merge(method, [MODELS[0]] * 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), merged, MODELS[0])


def test_weights_of_an_average_are_relative():
  first = merging.merge(merging.linear(), MODELS, weights=[1.0, 2.0, 3.0])
  second = merging.merge(merging.linear(), MODELS, weights=[10.0, 20.0, 30.0])
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_task_arithmetic_runs_from_the_base_to_the_model():
  still = merging.merge(merging.task_arithmetic(scale=0.0), MODELS[:1], BASE)
  jax.tree.map(np.testing.assert_array_equal, still, BASE)
  there = merging.merge(merging.task_arithmetic(), MODELS[:1], BASE)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-7), there, MODELS[0])


def test_ties_elects_by_weight_and_averages_what_agrees():
  deltas = [[3.0, 1.0, 1.0, 0.0], [-1.0, -4.0, 2.0, 0.0], [-1.0, 2.0, -3.0, 5.0]]
  base = np.full(4, 0.5)
  models = [base + delta for delta in deltas]
  # Sums 1, -1, 0 and 5: a sum of 0 elects +, and a zero agrees with nobody.
  np.testing.assert_allclose(single(merging.ties(1.0), models, base), base + [3.0, -4.0, 1.5, 5.0], rtol=1e-6)
  weights = [1.0, 2.0, 2.0]  # sums -1, -3, -1 and 10
  merged = single(merging.ties(1.0), models, base, weights)
  np.testing.assert_allclose(merged, base + [-1.0, -4.0, -3.0, 5.0], rtol=1e-6)
  merged = single(merging.ties(1.0, normalize=False), models, base, weights)
  np.testing.assert_allclose(merged, base + [-4.0, -8.0, -6.0, 10.0], rtol=1e-6)


def test_average_of_those_that_agree_is_weighted():
  merged = single(merging.ties(1.0), [[1.0], [4.0], [-9.0]], [0.0], [3.0, 1.0, 0.5])
  np.testing.assert_allclose(merged, [(3 * 1 + 1 * 4) / 4], rtol=1e-6)


@pytest.mark.parametrize(
  'method',
  quick.first(
    1,
    [
      merging.ties(0.4),
      merging.linear(),
      merging.task_arithmetic(),
      merging.breadcrumbs(0.7, 0.1, 'ties'),
      merging.model_stock(),
    ],
  ),
)
def test_order_of_models_does_not_matter(method):
  order = [2, 0, 1]
  base = BASE if method.needs_base else None
  alike = worlds.tree(20, 0.3)
  models = [jax.tree.map(np.add, model, alike) for model in MODELS]
  weights = WEIGHTS if method.takes_weights else None
  first = merging.merge(method, models, base, weights=weights)
  again = merging.merge(method, [models[i] for i in order], base, weights=weights and [weights[i] for i in order])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), first, again)


def test_slerp_reaches_its_ends_and_keeps_the_norm():
  generator = np.random.default_rng(0)
  first, second = generator.standard_normal((2, 30))
  second *= np.linalg.norm(first) / np.linalg.norm(second)
  np.testing.assert_allclose(single(merging.slerp(0.0), [first, second]), first, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(single(merging.slerp(1.0), [first, second]), second, rtol=1e-5, atol=1e-6)
  for t in (0.2, 0.5, 0.9):
    length = np.linalg.norm(single(merging.slerp(t), [first, second]))
    np.testing.assert_allclose(length, np.linalg.norm(first), rtol=1e-5)


@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_slerp_of_colinear_tensors_is_the_straight_line(sign):
  first = np.arange(1.0, 6.0)
  merged = single(merging.slerp(0.25), [first, 3 * sign * first])
  np.testing.assert_allclose(merged, (0.75 + 0.75 * sign) * first, rtol=1e-6)


def test_slerp_just_off_the_line_is_an_arc():
  first, second = np.array([1.0, 0.0]), np.array([np.cos(0.05), np.sin(0.05)]) * 4.0  # cosine 0.99875
  merged = single(merging.slerp(0.5), [first, second])
  np.testing.assert_allclose(merged, oracle.slerp(0.5, first, second), rtol=1e-5)
  assert abs(merged[0] - (0.5 * first[0] + 0.5 * second[0])) > 5e-4


@pytest.mark.slow  # the oracle above has the ratio
def test_model_stock_ratio():
  base = np.zeros(2)
  angle = 1.0
  models = [np.array([1.0, 0.0]), np.array([np.cos(angle), np.sin(angle)]) * 2.0]
  ratio = 2 * np.cos(angle) / (1 + np.cos(angle))
  np.testing.assert_allclose(single(merging.model_stock(), models, base), ratio * np.mean(models, 0), rtol=1e-5)
  np.testing.assert_allclose(single(merging.model_stock(), models[:1] * 2, base), models[0], rtol=1e-6, atol=1e-7)
  opposed = [models[0], -models[0] + [0.0, 0.1]]
  np.testing.assert_array_equal(single(merging.model_stock(), opposed, base), base)
  np.testing.assert_array_equal(single(merging.model_stock(), [models[0], base], base), base)


@pytest.mark.slow  # each method is compared with its oracle above
def test_nothing_learnt_changes_nothing():
  base = {'embed': BASE['embed']}  # a program for each shape of a tensor
  for build in merging.METHODS.values():
    method = build()
    if method.needs_base:
      merged = merging.merge(method, [base, base], base)
      np.testing.assert_array_equal(merged['embed'], base['embed'], err_msg=method.name)


@pytest.mark.parametrize(
  ('build', 'says'),
  [
    (lambda: merging.ties(density=0.0), r'ties: density: must be in \(0, 1\], got 0.0'),
    (lambda: merging.dare(density=1.5), r'dare: density: must be in \(0, 1\], got 1.5'),
    (lambda: merging.breadcrumbs(gamma=1.0), r'breadcrumbs: gamma: must be in \[0, 1\), got 1.0'),
    (lambda: merging.della(epsilon=0.5), r'della: epsilon: must be in \[0, 0.5\), got 0.5'),
    (lambda: merging.slerp(t=-0.1), r'slerp: t: must be in \[0, 1\], got -0.1'),
    (lambda: merging.slerp(t=[0.1, 0.2]), 'slerp: t is one number for both models'),
    (lambda: merging.dare(rescale='l2'), "dare: rescale must be one of inverse, l1, none, got 'l2'"),
    (lambda: merging.dare(consensus='count'), "dare: consensus must be one of linear, ties, got 'count'"),
    (lambda: merging.della(seed=-1), r'della: seed must be an integer in \[0, 2\*\*32\), got -1'),
    (lambda: merging.ties(scale=float('inf')), 'ties: scale must be a finite number, got inf'),
    (
      lambda: merging.merge(merging.della(density=0.9), MODELS, BASE),
      r'della, tensor embed: density ± epsilon must be in \(0, 1\], got \(0.9, 0.15\)',
    ),
    (
      lambda: merging.merge(merging.linear(), MODELS[:2], weights=[1.0, -1.0]),
      'weights of the tensor embed: a sum other than 0 is needed to divide by, got 0.0',
    ),
    (
      lambda: merging.merge(merging.ties(), MODELS[:2], BASE, weights=[1.0, -0.5]),
      'weights of the tensor embed: they must not be negative in an average of those that agree, got -0.5',
    ),
  ],
)
def test_bad_arguments_are_refused_by_name(build, says):
  with pytest.raises(ValueError, match=says):
    build()


def test_negative_weights_where_they_mean_something():
  first, second = np.array([1.0, 2.0]), np.array([3.0, 1.0])
  np.testing.assert_allclose(single(merging.linear(), [first, second], None, [1.5, -0.5]), [0.0, 2.5], atol=1e-6)
  away = single(merging.task_arithmetic(), [first, second], np.zeros(2), [-1.0, 0.5])
  np.testing.assert_allclose(away, [0.5, -1.5], rtol=1e-6)
