"""The study of nested risk: its worlds and exact optima against enumeration in float64, and its predictions."""

import csv
import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import stats
from alignjax.models import tabular
from alignjax.types import PreferenceBatch
from experiments.toy import nested_risk as study
from experiments.toy import nested_risk_checks as checks
from experiments.toy import nested_risk_report as report
from experiments.toy import nested_risk_world as world
from tests import quick
from tests.oracles import risk as oracles

TREE = world.Tree(3, 3)
LEVEL = 0.6
SETTING = study.Setting(
  tree=world.Tree(2, 3),
  worlds=1,
  seeds=2,
  penalties=(0.0, 0.3, 0.6, 1.2),
  stages=(study.Stage(0.0, 0.1), study.Stage(1.0)),
  updates=200,
  kl=0.2,
)


def drawn(tree=TREE, seed=0):
  """A world and another policy."""
  rng = np.random.default_rng(seed)
  return world.draw(tree, rng, 0.03, -5.0), normalised(rng.normal(size=(tree.states, tree.vocabulary)))


def normalised(logits):
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def enumerated(tree, policy):
  """The probability of every response, in lexicographic order, from the tokens of its prefixes."""
  index = {tree.prefix(state): state for state in range(tree.states)}
  return np.array(
    [
      np.prod([np.exp(policy[index[path[:t]], token]) for t, token in enumerate(path)])
      for path in itertools.product(range(tree.vocabulary), repeat=tree.depth)
    ]
  )


def recursive(tree, now, policy, state, measure, beta=0.0):
  """V(s) = measure over z of V(s + z), minus beta times the KL of the next token, by calling itself."""
  if state >= tree.states:
    return now.reward[state - tree.states]
  children = tree.vocabulary * state + 1 + np.arange(tree.vocabulary)
  later = np.array([recursive(tree, now, policy, child, measure, beta) for child in children])
  probs = np.exp(policy[state])
  return measure(later, probs) - beta * np.sum(probs * (policy[state] - now.reference[state]))


def cvar(level):
  return lambda values, probs: oracles.cvar(values, probs, level, 'lower')


def test_the_bad_branch_has_its_probability_and_reward():
  for seed in range(3):
    now, _ = drawn(seed=seed)
    np.testing.assert_allclose(np.exp(now.reference).sum(axis=-1), 1.0)
    np.testing.assert_allclose(enumerated(TREE, now.reference)[now.bad].sum(), 0.03)
    assert set(now.reward[now.bad]) == {-5.0}
    assert now.bad.sum() == 3


def test_reach_and_conditional_are_inverse_and_equal_an_enumeration():
  _, policy = drawn()
  reach = TREE.reach(policy)
  np.testing.assert_allclose(np.exp(reach[TREE.states :]), enumerated(TREE, policy))
  np.testing.assert_allclose(TREE.conditional(reach[TREE.states :]), policy)
  for state in (0, 2, 7, TREE.states + 4):
    np.testing.assert_allclose(np.exp(reach[TREE.states + TREE.below(state)]).sum(), np.exp(reach[state]))


def test_responses_have_the_probabilities_of_the_tabular_language_model():
  _, policy = drawn()
  model = tabular.build(TREE.language_model())
  logits = np.zeros((model.config.contexts, TREE.vocabulary), np.float32)
  logits[TREE.rows()] = policy
  response = np.array(list(itertools.product(range(TREE.vocabulary), repeat=TREE.depth)))[None]
  length = np.full(response.shape[:2], TREE.depth)
  batch = PreferenceBatch(
    prompt=np.zeros((1, 0), np.int32),
    prompt_length=np.zeros(1, np.int32),
    response=response,
    response_length=length,
    label=np.ones(1, np.float32),
    weight=np.ones(1, np.float32),
  )

  @jax.jit
  def compute(batch):
    hidden = model.hidden({}, batch.prompt, batch.prompt_length, batch.response, batch.response_length)
    return stats.from_logits({stats.logp}, hidden @ logits, None, batch).sum(stats.logp)[0]

  np.testing.assert_allclose(np.exp(compute(batch)), enumerated(TREE, policy), rtol=1e-5)


def test_the_measures_of_a_policy_equal_their_enumeration():
  tree, entropic = SETTING.tree, functools.partial(oracles.entropic, kappa=-SETTING.kappa)
  pairs = [drawn(tree, seed) for seed in range(len(SETTING.penalties) * SETTING.seeds)]
  worlds = world.World(*(np.stack(arrays) for arrays in zip(*(now for now, _ in pairs), strict=True)))
  found = study.measured(SETTING, jnp.asarray(np.stack([policy for _, policy in pairs])), worlds)
  for place, (now, policy) in enumerate(pairs):
    probs, before = enumerated(tree, policy), enumerated(tree, now.reference)
    expected = {
      'reward': oracles.expectation(now.reward, probs),
      'cvar': oracles.cvar(now.reward, probs, SETTING.level, 'lower'),
      'nested': recursive(tree, now, policy, 0, cvar(SETTING.level ** (1 / 3))),
      'bad': probs[now.bad].sum(),
      'kl': np.sum(probs * np.log(probs / before)),
      'static_entropic': entropic(now.reward, probs),
      'nested_entropic': recursive(tree, now, policy, 0, entropic),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(found[name][place], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_step_risks_at_level_1_are_the_forward_kl_and_grow_as_the_tail_shrinks():
  now, policy = drawn()
  arrays = jnp.asarray(policy, jnp.float32), world.World(*map(jnp.asarray, now))
  probs, before = enumerated(TREE, policy), enumerated(TREE, now.reference)

  def drift(level):
    setting = dataclasses.replace(SETTING, tree=TREE, drift_level=level)
    method = jax.jit(functools.partial(study.METHODS[checks.STEPS], setting, 1.0))
    return float(method(*arrays, np.float32(0.0)) - method(*arrays, np.float32(1.0)))

  np.testing.assert_allclose(drift(1.0), np.sum(before * np.log(before / probs)), rtol=1e-5)
  assert drift(0.97) > drift(1.0) * 1.01


@pytest.mark.parametrize('kappa', [0.1, 1.0, -2.0])
def test_nested_and_static_entropic_values_are_equal(kappa):
  now, policy = drawn()
  measure = functools.partial(oracles.entropic, kappa=kappa)
  static = measure(now.reward, enumerated(TREE, policy))
  np.testing.assert_allclose(recursive(TREE, now, policy, 0, measure), static, rtol=1e-12)


def test_nested_cvar_is_at_least_the_static_cvar_of_the_product_of_its_levels():
  for seed in range(20):
    now, policy = drawn(seed=seed)
    static = oracles.cvar(now.reward, enumerated(TREE, policy), LEVEL**3, 'lower')
    assert recursive(TREE, now, policy, 0, cvar(LEVEL)) > static + 1e-3


def test_no_distribution_beats_the_best_choice():
  rng = np.random.default_rng(0)
  values, reference = rng.normal(size=4), normalised(rng.normal(size=4))
  candidates = normalised(3.0 * rng.normal(size=(600, 4)))
  for level, beta in itertools.product((0.1, 0.6, 1.0), (0.0, 0.2, 1.0)):
    best = world.best_choice(values, reference, level, beta)

    def value(log_probs, level=level, beta=beta):
      probs = np.exp(log_probs)
      kl = np.sum(np.where(probs > 0, probs * np.maximum(log_probs - reference, -1e9), 0.0))
      return oracles.cvar(values, probs, level, 'lower') - beta * kl

    assert value(best.log_probs) == pytest.approx(best.value, abs=1e-12)
    assert max(map(value, candidates)) <= best.value + 1e-12


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
def test_nested_cvar_optimal_policies_satisfy_bellman_at_every_prefix(beta):
  now, _ = drawn()
  optimum = world.nested_optimum(TREE, now, LEVEL, beta)
  policy = np.maximum(optimum.log_probs, -1e3)  # exp(-1e3) is 0
  measure = cvar(LEVEL)
  own = [recursive(TREE, now, policy, state, measure, beta) for state in range(TREE.states)]
  np.testing.assert_allclose(own, optimum.value, atol=1e-12)
  np.testing.assert_allclose(world.gains(TREE, now, policy, LEVEL, beta), 0.0, atol=1e-12)
  rng = np.random.default_rng(1)
  for state in range(TREE.states):
    other = policy.copy()
    for _ in range(20):
      other[state] = normalised(rng.normal(size=3) + np.maximum(policy[state], -5.0))
      assert recursive(TREE, now, other, state, measure, beta) <= own[state] + 1e-12


@pytest.mark.parametrize(
  ('gains', 'inside', 'outside'), [(world.gains, 0.4, 0.0), (world.gains_with_kl_outside, 0.0, 0.4)]
)
def test_gains_equal_those_of_a_search(gains, inside, outside):
  tree = world.Tree(2, 3)
  now, policy = drawn(tree)
  probs = np.linspace(1e-4, 1 - 1e-4, 601)

  def value(policy, state):
    leaves = tree.states + tree.below(state)
    reach, before = (tree.reach(table)[leaves] - tree.reach(table)[state] for table in (policy, now.reference))
    kl = np.sum(np.exp(reach) * (reach - before))
    return recursive(tree, now, policy, state, cvar(LEVEL), inside) - outside * kl

  found = gains(tree, now, policy, LEVEL, 0.4)
  for state in (1, 4):
    other, best = policy.copy(), -np.inf
    for prob in probs:
      other[state] = np.log([prob, 1.0 - prob])
      best = max(best, value(other, state))
    np.testing.assert_allclose(found[state], best - value(policy, state), atol=1e-3)


def test_a_nested_plan_is_kept_and_a_static_plan_revised():
  now, _ = drawn()
  beta = 0.5
  nested = world.nested_optimum(TREE, now, LEVEL, beta).log_probs
  static = TREE.conditional(world.static_optimum(TREE, now, 0.1, beta).log_probs)
  small, differences = world.Tree(3, 2), []
  for first in range(3):
    states = [1 + first, *range(4 + 3 * first, 7 + 3 * first)]
    leaves = TREE.below(states[0])
    branch = world.World(now.reference[states], now.reward[leaves], now.bad[leaves])
    np.testing.assert_allclose(world.nested_optimum(small, branch, LEVEL, beta).log_probs, nested[states])
    revised = world.static_optimum(TREE, now, 0.1, beta, states[0])
    np.testing.assert_allclose(revised.log_probs, world.static_optimum(small, branch, 0.1, beta).log_probs)
    differences.append(np.abs(np.exp(small.conditional(revised.log_probs)) - np.exp(static[states])).max())
  assert max(differences) > 0.1


def test_a_revised_plan_raises_the_value_from_its_prefix():
  now, _ = drawn()
  beta = 1.5
  example = checks.revised_plan(checks.Study(TREE, [now], (beta,), 0.1, LEVEL), beta)
  policy = TREE.conditional(world.static_optimum(TREE, now, 0.1, beta).log_probs)
  state = next(s for s in range(TREE.states) if TREE.prefix(s) == example.prefix)
  leaves = TREE.below(state)
  probs, before = (enumerated(TREE, table)[leaves] for table in (policy, now.reference))
  probs, before = probs / probs.sum(), before / before.sum()
  planned = oracles.cvar(now.reward[leaves], probs, 0.1, 'lower') - beta * np.sum(probs * np.log(probs / before))
  assert example.planned == pytest.approx(planned, abs=1e-9)
  assert example.revised > planned + 0.01


@pytest.mark.parametrize('level', quick.first(2, checks.PUBLISHED))
def test_the_published_values_of_two_trees_are_found(level):
  computed = checks.computed_values(level)
  for (name, values), published in zip(computed.items(), checks.PUBLISHED[level], strict=True):
    tree, now = checks.published_tree(name)
    nested = recursive(tree, now, now.reference, 0, cvar(level))
    static = oracles.cvar(now.reward, enumerated(tree, now.reference), level, 'lower')
    np.testing.assert_allclose(nested, published, atol=5e-6)
    np.testing.assert_allclose(static, checks.PUBLISHED_STATIC.get(level, static), atol=5e-6)
    np.testing.assert_allclose(values, [nested, static], atol=1e-6)


@pytest.fixture(name='folder', scope='module')
def run_study(tmp_path_factory):
  folder = tmp_path_factory.mktemp('nested_risk')
  study.run(SETTING, 0, folder)
  return folder


@pytest.fixture(name='summary', scope='module')
def read_summary(folder):
  return json.loads((folder / 'summary.json').read_text())


@pytest.mark.slow  # trains policies; the exact optima above are quick
def test_gradient_ascent_reaches_the_optimum_of_dynamic_programming(summary):
  for name in (checks.STATIC, checks.INSIDE):
    shortfalls = np.array(summary['shortfalls'][name])  # penalties, worlds, seeds
    assert np.abs(shortfalls[0]).max() < 1e-3
    assert shortfalls.min() > -1e-5


@pytest.mark.slow  # trains policies; the exact optima above are quick
def test_without_easing_gradient_ascent_is_blind_to_the_best_response(summary):
  shortfalls = np.array(summary['shortfalls'][checks.STATIC + checks.AT_ONCE])
  assert shortfalls[0].min() > 0.1


@pytest.mark.slow  # trains policies; the exact optima above are quick
def test_what_must_hold_for_every_policy_holds(summary):
  holds = {check['prediction']: check['holds'] for check in summary['predictions']}
  for part in ('published', 'entropic', 'at least the static', 'nested-CVaR optimal', 'interior prefix'):
    (name,) = (prediction for prediction in holds if part in prediction)
    assert holds[name], name


@pytest.mark.slow  # trains policies; the exact optima above are quick
def test_each_method_is_best_at_its_own_measure(folder):
  with (folder / 'points.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 + len(study.METHODS) * len(SETTING.penalties) * 2
  own = {checks.MEAN: 'reward', checks.STATIC: 'cvar', checks.OUTSIDE: 'nested', checks.ENTROPIC: 'nested_entropic'}
  penalty = SETTING.penalties[-1]  # strong enough for a single maximum

  def penalised(method, name):
    chosen = [row for row in rows if row['method'] == method and row['penalty'] == str(penalty)]
    return np.mean([float(row[name]) - penalty * float(row['kl']) for row in chosen])

  for method, name in own.items():
    assert penalised(method, name) > max(penalised(other, name) for other in own if other != method) + 1e-3, method


@pytest.mark.slow  # trains policies; the exact optima above are quick
def test_a_run_leaves_a_figure_and_a_table(folder, summary):
  assert (folder / 'figure.png').stat().st_size > 20_000
  table = (folder / 'table.md').read_text()
  assert all(f'| {name} |' in table for name in (checks.REFERENCE, *study.METHODS))
  assert table.count('olds: ') + table.count('not hold: ') == len(summary['predictions'])


def test_measures_are_interpolated_along_the_sweep_from_the_reference_on():
  before = {'kl': np.zeros((1, 1, 1)), 'reward': np.ones((1, 1, 1)), 'bad': np.full((1, 1, 1), 1e-2)}
  points = {name: np.array(values)[:, None, None] for name, values in {'kl': [2.0, 1.0], 'reward': [4.0, 2.0]}.items()}
  points['bad'] = np.array([0.0, 1e-4])[:, None, None]
  kl = np.array([0.5, 1.5, 3.0])
  np.testing.assert_allclose(report.at_kl(points, before, 'reward', kl)[0, 0], [1.5, 3.0, np.nan])
  np.testing.assert_allclose(report.at_kl(points, before, 'bad', kl)[0, 0], [1e-3, 1e-6, np.nan])
