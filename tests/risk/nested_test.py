"""Nested risk on token trees that are enumerated by hand, in float64 by plain recursion."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import risk
from experiments.toy import nested_risk_checks
from tests import quick
from tests.oracles import risk as oracles

MEASURES = {
  'mean': (risk.expectation(), oracles.expectation),
  'cvar': (risk.cvar(0.6), lambda d, p: oracles.cvar(d, p, 0.6)),
  'lower cvar': (risk.cvar(0.6, tail='lower'), lambda d, p: oracles.cvar(d, p, 0.6, 'lower')),
  'entropic': (risk.entropic(0.7), lambda d, p: oracles.entropic(d, p, 0.7)),
  'worst case': (risk.worst_case(), oracles.worst_case),
}
EVERY = pytest.mark.parametrize(('measure', 'oracle'), quick.named(MEASURES, ('mean', 'cvar', 'entropic')))
VOCAB, DEPTH = 3, 3


def tree(vocab=VOCAB, depth=DEPTH):
  """Prefixes in order of length, their index, and the index of what follows; the end is the number of prefixes."""
  prefixes = [p for length in range(depth) for p in itertools.product(range(vocab), repeat=length)]
  index = {prefix: i for i, prefix in enumerate(prefixes)}
  following = np.array([[index.get((*p, z), len(prefixes)) for z in range(vocab)] for p in prefixes])
  return prefixes, index, following


def random_tree(seed=0):
  prefixes, index, following = tree()
  rng = np.random.default_rng(seed)
  rewards = rng.standard_normal((len(prefixes), VOCAB))
  logits = rng.standard_normal((len(prefixes), VOCAB))
  return prefixes, index, following, rewards, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def recursion(oracle, index, rewards, logp, discount, prefix=()):
  """V(s) = measure over z of r(s, z) + discount V(s + z), by calling itself."""
  if prefix not in index:
    return 0.0
  state = index[prefix]
  returns = [
    rewards[state, z] + discount * recursion(oracle, index, rewards, logp, discount, (*prefix, z)) for z in range(VOCAB)
  ]
  return oracle(np.array(returns), np.exp(logp[state]))


def returns_of_whole_paths(index, rewards, logp):
  """Return and probability of each complete response."""
  totals, probs = [], []
  for path in itertools.product(range(VOCAB), repeat=DEPTH):
    states = [index[path[:t]] for t in range(DEPTH)]
    totals.append(sum(rewards[s, z] for s, z in zip(states, path, strict=True)))
    probs.append(np.exp(sum(logp[s, z] for s, z in zip(states, path, strict=True))))
  return np.array(totals), np.array(probs)


@EVERY
@pytest.mark.parametrize('discount', [1.0, 0.8, 0.0])
def test_the_scan_equals_the_recursion_in_every_state(measure, oracle, discount):
  prefixes, index, following, rewards, logp = random_tree()
  value = jax.jit(lambda r, p: risk.markov_value(r, p, following, measure, discount))(rewards, logp)
  expected = [recursion(oracle, index, rewards, logp, discount, prefix) for prefix in prefixes]
  np.testing.assert_allclose(value[:-1], expected, rtol=2e-6, atol=2e-6)
  assert value[-1] == 0


@EVERY
@pytest.mark.parametrize('discount', [1.0, 0.7])
def test_advantages_telescope_along_every_path(measure, oracle, discount):
  del oracle
  _, index, following, rewards, logp = random_tree(1)

  @jax.jit
  def of(rewards, logp):
    return [f(rewards, logp, following, measure, discount) for f in (risk.markov_value, risk.advantage)]

  value, advantage = map(np.asarray, of(rewards, logp))
  for path in itertools.product(range(VOCAB), repeat=DEPTH):
    steps = [(discount**t, index[path[:t]], z) for t, z in enumerate(path)]
    gained = sum(factor * advantage[s, z] for factor, s, z in steps)
    earned = sum(factor * rewards[s, z] for factor, s, z in steps)
    np.testing.assert_allclose(gained, earned - value[0], rtol=1e-5, atol=2e-6)


@EVERY
def test_the_measure_of_the_advantage_is_zero_in_every_state(measure, oracle):
  del oracle
  _, _, following, rewards, logp = random_tree(2)
  found = jax.jit(lambda r, p: measure(risk.advantage(r, p, following, measure), p))(rewards, logp)
  np.testing.assert_allclose(found, 0.0, atol=1e-6)


def test_nested_mean_and_nested_entropic_equal_the_static_ones_and_nested_cvar_does_not():
  _, index, following, rewards, logp = random_tree(3)
  totals, probs = returns_of_whole_paths(index, rewards, logp)

  def nested(measure):
    return float(risk.markov_value(rewards, logp, following, measure)[0])

  np.testing.assert_allclose(nested(risk.expectation()), oracles.expectation(totals, probs), rtol=2e-6)
  for kappa in (0.1, 0.7, 5.0, -3.0):
    np.testing.assert_allclose(nested(risk.entropic(kappa)), oracles.entropic(totals, probs, kappa), rtol=3e-6)
  assert abs(nested(risk.cvar(0.6)) - oracles.cvar(totals, probs, 0.6)) > 1e-2


# Two policies whose totals have the same distribution {0.7: .45, 0.6: .05, 0.4: .45, 0.3: .05}: what differs is when
# the uncertainty is resolved.
NESTED = {1.0: (0.54, 0.54), **nested_risk_checks.PUBLISHED, 0.1: (0.3, 0.3)}


def two_step_tree(first, second):
  """Rewards, log-probabilities and successors of a coin that leads to one of two (payoffs, probabilities)."""
  rewards = np.array([[0.0, 0.0], first[0], second[0]])
  probs = np.array([[0.5, 0.5], first[1], second[1]])
  return rewards, np.log(probs), np.array([[1, 2], [3, 3], [3, 3]])


TREE_A = two_step_tree(([0.7, 0.6], [0.9, 0.1]), ([0.4, 0.3], [0.9, 0.1]))
TREE_B = two_step_tree(([0.7, 0.3], [0.9, 0.1]), ([0.4, 0.6], [0.9, 0.1]))


def root(tree, measure):
  return float(risk.markov_value(*tree, measure)[0])


@pytest.mark.parametrize('level', NESTED)
def test_nested_cvar_tells_trees_of_equal_total_distribution_apart(level):
  measure = risk.cvar(level, tail='lower')
  by_hand = [_nested_by_hand(tree, level) for tree in (TREE_A, TREE_B)]
  np.testing.assert_allclose(by_hand, NESTED[level], atol=5e-6)  # the published digits
  np.testing.assert_allclose([root(TREE_A, measure), root(TREE_B, measure)], by_hand, atol=1e-6)


def _nested_by_hand(tree, level):
  rewards, logp, _ = tree
  leaves = [oracles.cvar(rewards[s], np.exp(logp[s]), level, 'lower') for s in (1, 2)]
  return oracles.cvar(np.array(leaves), np.array([0.5, 0.5]), level, 'lower')


def test_static_cvar_and_entropic_risk_do_not_tell_them_apart():
  def totals(tree):
    rewards, logp, _ = tree
    return rewards[1:].ravel(), 0.5 * np.exp(logp[1:]).ravel()

  for level, expected in ((0.9, 0.52222), (0.5, 0.39)):
    for tree in (TREE_A, TREE_B):
      np.testing.assert_allclose(risk.cvar(level, tail='lower')(*_logs(*totals(tree))), expected, atol=5e-6)
  for tree in (TREE_A, TREE_B):
    np.testing.assert_allclose(root(tree, risk.entropic(-5.0)), 0.485776, atol=1e-6)
    np.testing.assert_allclose(risk.entropic(-5.0)(*_logs(*totals(tree))), 0.485776, atol=1e-6)


def _logs(values, probs):
  return values, np.log(probs)


def test_nested_cvar_can_be_less_conservative_than_static():
  losses = two_step_tree(([1.0, -100.0], [0.1, 0.9]), ([-50.0, -50.0], [0.5, 0.5]))
  assert root(losses, risk.cvar(0.5)) == pytest.approx(-50.0, rel=1e-6)
  totals, probs = np.array([1.0, -100.0, -50.0]), np.array([0.05, 0.45, 0.5])
  static = float(risk.cvar(0.5)(totals, np.log(probs)))
  assert static == pytest.approx(oracles.cvar(totals, probs, 0.5), rel=1e-6)
  assert static == pytest.approx(-44.9, abs=1e-4)


def path_case(seed=0, steps=5, vocab=6):
  rng = np.random.default_rng(seed)
  values, logits = rng.standard_normal((2, 2, steps, vocab))
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return values, logp, np.arange(steps) < np.array([[5], [3]])


@EVERY
def test_along_a_path_the_value_is_the_discounted_sum_of_one_step_risks(measure, oracle):
  values, logp, mask = path_case()
  one_step = np.where(mask, oracles.along_last_axis(oracle, values, np.exp(logp)), 0.0)
  for discount in (1.0, 0.5):
    expected = functools.reduce(
      lambda later, t: [one_step[:, t] + discount * later[0], *later], range(4, -1, -1), [0.0]
    )
    value = jax.jit(lambda *path, discount=discount: risk.path_value(*path, measure, discount))(values, logp, mask)
    for t in range(5):
      np.testing.assert_allclose(value[:, t], expected[t], rtol=2e-6, atol=2e-6)


def test_a_path_value_does_not_depend_on_earlier_steps_or_on_what_is_masked():
  values, logp, mask = path_case(1)

  def value(values):
    return risk.path_value(values, logp, mask, risk.cvar(0.5), 0.9)

  jacobian = jax.jit(jax.jacobian(value))(jnp.asarray(values, jnp.float32))  # [2, T, 2, T, V]
  for t in range(5):
    assert not np.any(jacobian[:, t, :, :t])
  assert not np.any(jacobian[0, :, 1])
  assert not np.any(jacobian[:, :, 1, 3:])


@pytest.mark.parametrize('discount', [-0.1, 1.5, float('nan')])
def test_an_impossible_discount_is_named(discount):
  _, _, following, rewards, logp = random_tree()
  with pytest.raises(ValueError, match='discount'):
    risk.markov_value(rewards, logp, following, risk.expectation(), discount)
  with pytest.raises(ValueError, match='discount'):
    risk.path_value(rewards, logp, np.ones(len(rewards), bool), risk.expectation(), discount)


def test_a_state_that_leads_back_is_named():
  _, _, following, rewards, logp = random_tree()
  following = following.copy()
  following[4, 1] = 2
  with pytest.raises(ValueError, match=r'next_state\[4, 1\] is 2'):
    risk.markov_value(rewards, logp, following, risk.expectation())
