"""The nested value over the tokens of a response: identities, gradients, bounds and chunking."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, risk, stats
from alignjax.types import Head
from tests import fixtures
from tests.oracles import risk as oracles
from tests.oracles import token_level

MEASURES = {
  'mean': (risk.expectation(), oracles.expectation),
  'cvar(0.6)': (risk.cvar(0.6), lambda d, p: oracles.cvar(d, p, 0.6)),
  'cvar(0.3)': (risk.cvar(0.3), lambda d, p: oracles.cvar(d, p, 0.3)),
  'entropic(5)': (risk.entropic(5.0), lambda d, p: oracles.entropic(d, p, 5.0)),
  'entropic(-0.7)': (risk.entropic(-0.7), lambda d, p: oracles.entropic(d, p, -0.7)),
  'worst case': (risk.worst_case(), oracles.worst_case),
  'semideviation': (risk.mean_semideviation(0.5), lambda d, p: oracles.mean_semideviation(d, p, 0.5)),
}
QUICK = ('mean', 'cvar(0.6)', 'entropic(5)')  # risk/measures_test and risk/nested_test have the other measures
EVERY = pytest.mark.parametrize(
  ('measure', 'oracle'),
  [pytest.param(*pair, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, pair in MEASURES.items()],
)
AVERSE = [name for name in MEASURES if name != 'entropic(-0.7)']  # at least the mean
BATCH = dataclasses.replace(  # with an empty response
  fixtures.preference_batch(seed=1, prompts=4),
  response_length=jnp.asarray([[7, 0], [3, 7], [1, 6], [5, 2]], jnp.int32),
)
POLICY, REFERENCE = fixtures.logits(1, BATCH), fixtures.logits(2, BATCH)
LENGTH = np.asarray(BATCH.response_length)
MASK = np.arange(7) < LENGTH[..., None]


def float64(logits):
  """Log-probabilities."""
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


LOGQ, LOGP, TARGET = float64(POLICY), float64(REFERENCE), np.asarray(BATCH.response)
DRIFT = LOGP - LOGQ


def table(measure, discount, off_path, policy=POLICY, reference=REFERENCE, batch=BATCH):
  """V_t and the horizon from t on, [B, N, R] each."""
  built = [build(measure, discount, off_path) for build in (stats.nested_risk, stats.nested_horizon)]
  found = stats.from_logits(built, policy, reference, batch)
  return tuple(found[stat] for stat in built)


CASES = tuple(itertools.product((0.0, 0.9, 1.0), (0.0, 0.5, 0.9, 1.0)))  # discount, off_path
AVERSION = (
  [risk.cvar(level) for level in (0.9, 0.6, 0.3, 0.1)],
  [risk.entropic(kappa) for kappa in (0.0, 0.5, 2.0, 8.0)],
)


@functools.cache
def values(measure):
  """(discount, off_path) to V_t and the horizon from t on, [B, N, R] each, all from one program."""
  built = {shares: (stats.nested_risk(measure, *shares), stats.nested_horizon(measure, *shares)) for shares in CASES}
  needs = frozenset(itertools.chain(*built.values()))
  found = jax.jit(lambda *inputs: stats.from_logits(needs, *inputs))(POLICY, REFERENCE, BATCH)
  return {shares: tuple(np.asarray(found[stat]) for stat in pair) for shares, pair in built.items()}


def by_oracle(oracle, discount, off_path):
  """V_t, [B, N, R], by its definition in float64."""
  out = np.zeros(TARGET.shape)
  for index in np.ndindex(*LENGTH.shape):
    t = slice(0, LENGTH[index])
    inputs = DRIFT[index][t], np.exp(LOGP[index][t]), TARGET[index][t]
    out[index][t] = token_level.nested_path(*inputs, oracle, discount, off_path)
  return out


def relative_error(found, expected):
  """Relative to the largest number, or absolute where all are below 1."""
  return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def report(name, error, bound):
  """Checks an error, and prints it for `pytest -s`."""
  print(f'{name}: largest error {error:.1e}')
  assert error <= bound


@EVERY
def test_every_token_has_the_value_of_the_recursion(measure, oracle):
  for discount, off_path in CASES:
    found, _ = values(measure)[discount, off_path]
    report(f'{measure}, {discount}, {off_path}', relative_error(found, by_oracle(oracle, discount, off_path)), 2e-6)


@EVERY
def test_if_all_continuations_are_alike_it_is_the_discounted_sum_of_one_step_risks(measure, oracle):
  one_step = np.where(MASK, oracles.along_last_axis(oracle, DRIFT, np.exp(LOGP)), 0.0)
  for discount in (1.0, 0.9, 0.0):
    value, horizon = values(measure)[discount, 1.0]
    weights = discount ** np.arange(7)
    report(f'{measure}, {discount}', relative_error(value[..., 0], (weights * one_step).sum(-1)), 1e-6)
    np.testing.assert_allclose(horizon[..., 0], (weights * MASK).sum(-1), rtol=1e-6)


@EVERY
def test_without_risk_off_the_path_it_is_the_markov_value_of_the_spine(measure, oracle):
  del oracle
  value, _ = values(measure)[0.9, 0.0]
  markov_value = jax.jit(risk.markov_value, static_argnums=(3, 4))
  worst = 0.0
  for index in [(0, 0), (1, 1)]:  # 7 tokens each
    follows = np.full((7, 11), 7)
    follows[np.arange(7), TARGET[index]] = np.arange(1, 8)
    expected = markov_value(DRIFT[index], LOGP[index], follows, measure, 0.9)[:-1]
    worst = max(worst, relative_error(value[index], expected))
  report(f'{measure}', worst, 1e-6)


def test_the_mean_has_a_closed_form_in_value_and_gradient():
  """V_0 = sum_t [prod_{u < t} discount (off_path + (1 - off_path) p_u(y_u))] KL_t."""
  weights = jnp.cos(jnp.arange(8.0)).reshape(4, 2)

  def closed(policy):
    logq, logp = jax.nn.log_softmax(policy), jax.nn.log_softmax(REFERENCE)
    kl = jnp.where(MASK, jnp.sum(jnp.exp(logp) * (logp - logq), -1), 0.0)
    stay = jnp.exp(jnp.take_along_axis(logp, BATCH.response[..., None], -1)[..., 0])
    factor = 0.9 * (0.8 + (1 - 0.8) * stay)
    reach = jnp.cumprod(jnp.concatenate([jnp.ones((4, 2, 1)), factor[..., :-1]], -1), -1)
    return jnp.sum(weights * jnp.sum(reach * kl, -1))

  def nested(policy):
    return jnp.sum(weights * table(risk.expectation(), 0.9, 0.8, policy)[0][..., 0])

  expected, found = (jax.jit(jax.value_and_grad(function))(POLICY) for function in (closed, nested))
  report('value', relative_error(found[0], expected[0]), 1e-6)
  report('gradient', relative_error(found[1], expected[1]), 1e-6)


@pytest.mark.parametrize('kappa', [5.0, *(pytest.param(kappa, marks=pytest.mark.slow) for kappa in (-0.7, 0.1, 40.0))])
def test_the_entropic_value_from_scalars_is_that_of_the_scan_over_the_vocabulary(kappa):
  measure = risk.entropic(kappa)
  plain = risk.RiskMeasure(measure.name, measure.function)  # without `raise_one`

  def all_of(measure):
    def total(policy):
      value, horizon = table(measure, 0.95, 0.4, policy)
      return jnp.sum(value), (value, horizon)

    return jax.jit(jax.value_and_grad(total, has_aux=True))(POLICY)

  (_, (value, horizon)), gradient = all_of(measure)
  (_, (expected, expected_horizon)), expected_gradient = all_of(plain)
  report(f'value, {kappa}', relative_error(value, expected), 1e-6)
  report(f'horizon, {kappa}', relative_error(horizon, expected_horizon), 2e-6)
  report(f'gradient, {kappa}', relative_error(gradient, expected_gradient), 2e-6)


@pytest.mark.parametrize(
  ('measure', 'oracle'),
  [
    pytest.param(*pair, id=name, marks=() if name == 'cvar(0.6)' else pytest.mark.slow)
    for name, pair in MEASURES.items()
  ],
)
def test_the_gradient_in_the_logits_is_the_horizon_weight_times_policy_minus_dual_weights(measure, oracle):
  """dV_0 / d logits_t = W_t (q_t - w*_t), W_t = prod_{u < t} discount (off_path + (1 - off_path) w*_u(y_u))."""
  discount, off_path = 0.95, 0.3

  def first(policy, reference):
    value, horizon = table(measure, discount, off_path, policy, reference)
    return jnp.sum(value[..., 0]), (value, horizon)

  slopes = jax.jit(jax.value_and_grad(first, argnums=(0, 1), has_aux=True))
  (_, (value, horizon)), (found, into_reference) = slopes(POLICY, REFERENCE)
  assert not np.any(into_reference)
  later = np.concatenate([value[..., 1:], np.zeros((4, 2, 1))], -1)  # 0 after the last token, because padding is 0
  is_target = np.arange(11) == TARGET[..., None]
  shifted = DRIFT + is_target * (discount * (1 - off_path) * later)[..., None]
  weights = np.asarray(jax.grad(lambda v: jnp.sum(measure(v, LOGP)))(jnp.asarray(shifted, jnp.float32)))
  factor = discount * (off_path + (1 - off_path) * np.sum(weights * is_target, -1))
  reach = np.cumprod(np.concatenate([np.ones((4, 2, 1)), factor[..., :-1]], -1), -1) * MASK
  report(f'gradient, {measure}', relative_error(found, reach[..., None] * (np.exp(LOGQ) - weights)), 2e-6)
  report(f'horizon, {measure}', relative_error(horizon[..., 0], reach.sum(-1)), 1e-6)
  inputs = DRIFT[0, 0], np.exp(LOGP[0, 0]), TARGET[0, 0], oracle, discount, off_path
  report(f'horizon by differences, {measure}', relative_error(horizon[0, 0, 0], token_level.horizon(*inputs)), 1e-5)


@pytest.mark.parametrize(
  'name', ['cvar(0.6)', *(pytest.param(x, marks=pytest.mark.slow) for x in ('entropic(5)', 'semideviation'))]
)
def test_the_gradient_is_that_of_central_differences_in_float64(name):
  measure, oracle = MEASURES[name]
  found = jax.jit(jax.grad(lambda policy: table(measure, 0.9, 0.5, policy)[0][2, 1, 0]))(POLICY)[2, 1]
  p, observed = np.exp(LOGP[2, 1][:6]), TARGET[2, 1][:6]

  def first(logits):
    return token_level.nested_path(LOGP[2, 1][:6] - float64(logits), p, observed, oracle, 0.9, 0.5)[0]

  logits = np.asarray(POLICY[2, 1][:6], np.float64)
  expected = np.zeros((7, 11))
  for index in np.ndindex(*logits.shape):
    bump = np.zeros_like(logits)
    bump[index] = 1e-5
    expected[index] = (first(logits + bump) - first(logits - bump)) / 2e-5
  report(name, relative_error(found, expected), 1e-6)


def averse(quick):
  """The names of the measures that are at least the mean; those that are not in `quick` run with --slow."""
  return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in AVERSE]


@pytest.mark.parametrize('name', averse(QUICK))
def test_the_value_grows_with_both_shares(name):
  def firsts(keys):
    return np.stack([values(MEASURES[name][0])[key][0][..., 0] for key in keys])

  assert np.all(np.diff(firsts([(1.0, share) for share in (0.0, 0.5, 0.9, 1.0)]), axis=0) >= -2e-5)
  assert np.all(np.diff(firsts([(share, 0.9) for share in (0.0, 0.9, 1.0)]), axis=0) >= -2e-5)
  (value,) = firsts([(0.9, 0.9)])
  assert np.all(value[LENGTH > 0] > 0)
  assert value[0, 1] == 0.0  # the empty response


@pytest.mark.slow  # the values are those of the oracle, and measures_test.py has the growth
@pytest.mark.parametrize('measures', AVERSION, ids=['cvar', 'entropic'])
def test_the_value_grows_with_aversion(measures):
  built = [stats.nested_risk(measure, 1.0, 0.9) for measure in measures]
  found = jax.jit(lambda *inputs: stats.from_logits(frozenset(built), *inputs))(POLICY, REFERENCE, BATCH)
  grown = np.diff(np.stack([found[stat][..., 0] for stat in built]), axis=0)
  assert np.all(grown >= -2e-5)
  assert np.all(grown[:, LENGTH > 0] > 0)


@pytest.mark.parametrize('name', averse(QUICK[1:2]))
def test_at_the_reference_value_and_gradient_are_zero(name):
  measure, _ = MEASURES[name]

  @jax.jit
  def of(policy, reference):
    return jax.value_and_grad(lambda policy: jnp.sum(table(measure, 1.0, 0.9, policy, reference)[0]))(policy)

  value, gradient = of(REFERENCE, REFERENCE)
  assert value == 0.0
  report(name, float(np.abs(gradient).max()), 3e-6)


def full_value(drift, p, oracle, prefix=()):
  """The nested value over all continuations of a prefix, by calling itself; `drift` and `p` map prefixes to [V]."""
  if prefix not in drift:
    return 0.0
  later = np.array([full_value(drift, p, oracle, (*prefix, v)) for v in range(3)])
  return oracle(drift[prefix] + later, p[prefix])


@pytest.mark.parametrize('name', ['mean', 'cvar(0.3)', 'entropic(5)'])
def test_without_risk_off_the_path_no_response_exceeds_the_nested_value_over_all(name):
  """On a tree of 3^4 responses. Sums along responses lie on both sides, and only those of the mean agree on average."""
  _, oracle = MEASURES[name]
  rng = np.random.default_rng(0)
  prefixes = [prefix for length in range(4) for prefix in itertools.product(range(3), repeat=length)]
  logp = {prefix: float64(rng.standard_normal(3)) for prefix in prefixes}
  drift = {prefix: logp[prefix] - float64(logp[prefix] + 0.8 * rng.standard_normal(3)) for prefix in prefixes}
  p = {prefix: np.exp(logp[prefix]) for prefix in prefixes}
  true = full_value(drift, p, oracle)
  bounds, sums, mean = [], [], 0.0
  for response in itertools.product(range(3), repeat=4):
    steps = [response[:t] for t in range(4)]
    inputs = np.stack([drift[s] for s in steps]), np.stack([p[s] for s in steps]), response, oracle, 1.0
    bounds.append(token_level.nested_path(*inputs, 0.0)[0])
    sums.append(token_level.nested_path(*inputs, 1.0)[0])
    mean += np.prod([p[s][v] for s, v in zip(steps, response, strict=True)]) * sums[-1]
  print(f'{name}: {true:.3f}; bounds up to {max(bounds):.3f}; sums {min(sums):.3f}, {mean:.3f}, {max(sums):.3f}')
  assert max(bounds) <= true + 1e-12
  assert min(sums) < true < max(sums)
  assert mean == pytest.approx(true, rel=1e-12) if name == 'mean' else mean < 0.9 * true


@pytest.mark.parametrize('measure', [risk.cvar(0.6), pytest.param(risk.entropic(2.0), marks=pytest.mark.slow)])
def test_padding_counts_for_nothing_whatever_it_contains_and_however_long_it_is(measure):
  noise = 60.0 * jnp.cos(jnp.arange(POLICY.size).reshape(POLICY.shape))
  junk = jnp.where(MASK[..., None], POLICY, noise)
  longer = dataclasses.replace(BATCH, response=jnp.pad(BATCH.response, ((0, 0), (0, 0), (0, 3)), constant_values=4))
  wide = [jnp.pad(logits, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=2.0) for logits in (junk, REFERENCE)]

  @jax.jit
  def of(policy, reference, batch):
    def total(policy):
      value, horizon = table(measure, 0.9, 0.5, policy, reference, batch)
      return jnp.sum(value), (value, horizon)

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(policy)
    return values, gradient

  expected, gradient = of(POLICY, REFERENCE, BATCH)
  assert not np.any(np.asarray(gradient)[~MASK])
  chex.assert_trees_all_equal(of(junk, REFERENCE, BATCH), (expected, gradient))
  found, wide_gradient = of(*wide, longer)
  chex.assert_trees_all_equal(tuple(x[..., :7] for x in found), expected)
  np.testing.assert_array_equal(wide_gradient[:, :, :7], gradient)
  assert not np.any(wide_gradient[:, :, 7:])


@pytest.mark.slow  # measures_test.py permutes the entries
def test_permuting_the_vocabulary_changes_nothing():
  order = np.random.default_rng(3).permutation(11)
  moved = dataclasses.replace(BATCH, response=jnp.asarray(np.argsort(order))[BATCH.response])
  measures = risk.cvar(0.6), risk.entropic(5.0), risk.mean_semideviation(0.5)

  @jax.jit
  def of(*inputs):
    return [table(measure, 0.9, 0.5, *inputs) for measure in measures]

  found = of(POLICY[..., order], REFERENCE[..., order], moved)
  chex.assert_trees_all_close(found, of(POLICY, REFERENCE, BATCH), rtol=1e-5)


def states(seed):
  rng = np.random.default_rng(seed)
  hidden = rng.standard_normal((*BATCH.response.shape, 5)).astype(np.float32)
  return stats.HiddenStates(jnp.asarray(hidden), Head(jnp.asarray(rng.standard_normal((5, 11)), jnp.float32)))


@pytest.mark.parametrize(
  ('measure', 'sizes'),
  [
    ('cvar(0.6)', (3,)),  # positions
    pytest.param('cvar(0.6)', (1, 2, 7), marks=pytest.mark.slow),
    pytest.param('entropic(2.0)', (3,), marks=pytest.mark.slow),  # scalars know no chunks
  ],
)
def test_chunks_of_any_size_equal_full_logits_in_loss_and_gradient(measure, sizes):
  objective = objectives.parse(f'ra_dpo(risk={measure}, discount=0.9, off_path=0.5)')
  policy, reference = states(0), states(1)

  def chunked(policy, chunk):
    table = stats.statistics(objective.needs, policy, reference, BATCH, chunk=chunk)
    return jnp.sum(objective.apply(table, BATCH).loss)

  def full(policy):
    table = stats.from_logits(objective.needs, stats.logits(policy), stats.logits(reference), BATCH)
    return jnp.sum(objective.apply(table, BATCH).loss)

  expected = jax.jit(jax.value_and_grad(full))(policy)
  for positions in sizes:  # of 8 responses each
    found = jax.jit(jax.value_and_grad(functools.partial(chunked, chunk=8 * positions)))(policy)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    report(f'{measure}, {positions}', max(relative_error(*pair) for pair in pairs), 1e-6)


def test_a_cached_value_replaces_the_recursion():
  stat = stats.nested_risk(risk.cvar(0.6), 1.0, 0.5)
  batch = dataclasses.replace(BATCH, cached={stat.name: jnp.ones(BATCH.response.shape)})
  np.testing.assert_array_equal(stats.from_logits([stat], POLICY, None, batch).first(stat), LENGTH > 0)


def test_the_inputs_of_a_recursion_may_be_cached_and_stay_out_of_the_table():
  stat = stats.nested_risk(risk.entropic(2.0), 1.0, 0.5)
  inputs = fixtures.from_logits({stats.reference_logp, stat}, POLICY, REFERENCE, BATCH)
  batch = dataclasses.replace(BATCH, cached={'reference_logp': 2.0 * inputs[stats.reference_logp]})
  found = fixtures.from_logits({stat}, POLICY, REFERENCE, batch)
  assert found.values.keys() == {stat.name}
  assert np.any(found[stat] != inputs[stat])  # the cached values are read, even wrong ones


@pytest.mark.slow  # the values and gradients above are made of them
def test_one_value_raised_in_a_measure_gives_the_measure_of_the_raised_values():
  values, logp = jnp.asarray(DRIFT[:, :, 0], jnp.float32), jnp.asarray(LOGP[:, :, 0], jnp.float32)
  index, shift = BATCH.response[:, :, 0], jnp.linspace(-1.0, 2.0, 8).reshape(4, 2)
  raised = values + shift[..., None] * jax.nn.one_hot(index, 11)

  def at_index(x):
    return jnp.take_along_axis(x, index[..., None], -1)[..., 0]

  def of_all(values, logp):
    for measure, _ in MEASURES.values():
      weights = jax.grad(lambda v, measure=measure: jnp.sum(measure(v, logp)))(raised)
      scalar = measure.raise_one and measure.raise_one(measure(values, logp), at_index(values), at_index(logp), shift)
      yield risk.raise_one(measure, values, logp, index, shift), measure(raised, logp), at_index(weights), scalar

  for found, value, weight, scalar in jax.jit(lambda *inputs: list(of_all(*inputs)))(values, logp):
    np.testing.assert_allclose(found.value, value, rtol=1e-6)
    np.testing.assert_allclose(found.weight, weight, atol=1e-7)
    if scalar:
      chex.assert_trees_all_close(scalar, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('build', [stats.nested_risk, stats.nested_horizon])
@pytest.mark.parametrize(('shares', 'name'), [((1.5, 1), 'discount'), ((1, -0.1), 'off_path'), ((1, np.nan), 'off')])
def test_an_impossible_share_is_named(build, shares, name):
  with pytest.raises(ValueError, match=name):
    build(risk.expectation(), *shares)
