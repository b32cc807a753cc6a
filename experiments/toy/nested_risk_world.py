"""The worlds of `nested_risk`: token trees with rewards at the leaves, and exact optima in float64.

A response has T tokens from a vocabulary of V. Its prefixes, the states, are numbered level by level:

  state 0 is the empty prefix, token z leads from state s to V s + 1 + z, and numbers from S up are leaves
  S = (V^T - 1) / (V - 1) states, L = V^T leaves in lexicographic order

A policy is a table of log-probabilities [S, V]. `Tree` takes NumPy and JAX arrays and returns the same kind.
"""

import dataclasses
from typing import NamedTuple

import chex
import numpy as np
from scipy import special

from alignjax.models import tabular
from alignjax.types import Array


@dataclasses.dataclass(frozen=True)
class Tree:
  """The shape of a complete token tree."""

  vocabulary: int = 3  # V, at least 2
  depth: int = 5  # T, tokens of a response

  @property
  def states(self) -> int:
    return (self.leaves - 1) // (self.vocabulary - 1)

  @property
  def leaves(self) -> int:
    return self.vocabulary**self.depth

  def following(self) -> np.ndarray:
    """[S, V], the state after each token; S is the end of the response."""
    child = self.vocabulary * np.arange(self.states)[:, None] + 1 + np.arange(self.vocabulary)
    return np.minimum(child, self.states)

  def prefix(self, state: int) -> tuple[int, ...]:
    """The tokens that lead to a state."""
    tokens = []
    while state:
      state, token = divmod(state - 1, self.vocabulary)
      tokens.append(token)
    return tuple(reversed(tokens))

  def below(self, state: int) -> np.ndarray:
    """The leaves below a state, counted from 0; for numbers from S up, the leaf itself."""
    first, last = state, state
    while first < self.states:
      first, last = self.vocabulary * first + 1, self.vocabulary * last + self.vocabulary
    return np.arange(first, last + 1) - self.states

  def language_model(self) -> tabular.TabularConfig:
    """A tabular language model with a row for every prefix."""
    return tabular.TabularConfig(self.vocabulary, max(self.depth - 1, 1))

  def rows(self) -> np.ndarray:
    """[S], the row of the language model's table that predicts the token after each prefix."""
    model = self.language_model()
    return np.array([model.context(self.prefix(state)) for state in range(self.states)])

  def step_rewards(self, reward: Array) -> Array:
    """[S, V] of the rewards [L] of the leaves: the last token earns the reward, and every other token 0."""
    xp = reward.__array_namespace__()
    earlier = xp.zeros(self.states - self.leaves // self.vocabulary, dtype=reward.dtype)
    return xp.concatenate([xp.repeat(earlier, self.vocabulary), reward]).reshape(self.states, self.vocabulary)

  def reach(self, log_probs: Array) -> Array:
    """[S + L], the log-probability of each prefix, followed by that of each leaf."""
    chex.assert_shape(log_probs, (self.states, self.vocabulary))
    xp = log_probs.__array_namespace__()
    levels, start = [xp.zeros(1, dtype=log_probs.dtype)], 0
    for _ in range(self.depth):
      end = start + len(levels[-1])
      levels.append((levels[-1][:, None] + log_probs[start:end]).reshape(-1))
      start = end
    return xp.concatenate(levels)

  def conditional(self, leaf_log_probs: np.ndarray) -> np.ndarray:
    """[S, V], the policy whose responses have the given finite log-probabilities [L]: the inverse of `reach`."""
    chex.assert_shape(leaf_log_probs, (self.leaves,))
    total, levels = leaf_log_probs, []
    while total.size > 1:
      children = total.reshape(-1, self.vocabulary)
      total = special.logsumexp(children, axis=-1)
      levels.append(children - total[:, None])
    return np.concatenate(levels[::-1])


class World(NamedTuple):
  """A reference policy, and a reward for every response."""

  reference: Array  # [S, V], nats
  reward: Array  # [L]
  bad: Array  # [L] bool, the leaves of the bad branch


def draw(tree: Tree, rng: np.random.Generator, bad_probability: float, bad_reward: float) -> World:
  """Draws a world. Outside the bad branch, rewards are sums along the response with mean 0 and variance 1.

  Args:
    tree: the shape of the tree, at least two tokens deep.
    rng: the generator of all draws.
    bad_probability: probability of the bad branch under the reference, below 1 / V. A response enters the branch with
      its second token, after the most probable first one.
    bad_reward: reward of every leaf of the bad branch.
  """
  reference = special.log_softmax(0.7 * rng.normal(size=(tree.states, tree.vocabulary)), axis=-1)
  first, second = int(np.argmax(reference[0])), int(rng.integers(tree.vocabulary))
  node = 1 + first
  share = bad_probability / np.exp(reference[0, first])
  others = np.arange(tree.vocabulary) != second
  reference[node] += np.log1p(-share) - special.logsumexp(reference[node][others])
  reference[node, second] = np.log(share)

  total = rng.normal(size=tree.states + tree.leaves) / np.sqrt(tree.depth)
  total[0] = 0.0
  for number in range(1, len(total)):  # parents come first
    total[number] += total[(number - 1) // tree.vocabulary]
  bad = np.zeros(tree.leaves, bool)
  bad[tree.below(tree.vocabulary * node + 1 + second)] = True
  return World(reference, np.where(bad, bad_reward, total[tree.states :]), bad)


class Optimum(NamedTuple):
  """The best value, and the log-probabilities of a policy that attains it."""

  value: np.ndarray
  log_probs: np.ndarray


def lower_cvar(values: np.ndarray, log_probs: np.ndarray, level: float) -> np.ndarray:
  """The mean of the worst `level` of the mass, [...] of [..., V]: max over eta in d of eta - E[(eta - d)^+] / level."""
  return np.max(values - np.sum(np.exp(log_probs)[..., None, :] * _shortfall(values), axis=-1) / level, axis=-1)


def _shortfall(values: np.ndarray) -> np.ndarray:
  """[..., eta, V], (eta - d_v)^+ for every eta among the values."""
  return np.maximum(values[..., :, None] - values[..., None, :], 0.0)


def best_choice(values: np.ndarray, log_reference: np.ndarray, level: float, beta: float) -> Optimum:
  """The distribution over the last axis with the best lower-tail CVaR, penalised by its KL to the reference p.

  max_pi CVaR_level(d under pi) - beta KL(pi || p) = max_eta eta + beta log sum_v p_v exp(-(eta - d_v)^+ / (level beta))

  The right side is convex in eta between neighbouring values d_v, so its maximum is at one of them, and the result is
  exact. CVaR is convex in pi, so the left side may have several local maxima. The best policy leaves all values above
  eta in proportion to the reference.

  Args:
    values: [..., V], finite.
    log_reference: [..., V], finite; need not be normalised.
    level: probability mass of the tail, in (0, 1]; 1 is the mean.
    beta: penalty in units of the values per nat, at least 0.

  Returns:
    The best value [...] and its log-probabilities [..., V].
  """
  chex.assert_equal_shape([values, log_reference])
  if beta == 0:
    best = np.argmax(values, axis=-1)[..., None] == np.arange(values.shape[-1])
    return Optimum(values.max(axis=-1), np.where(best, 0.0, -np.inf))
  tilted = log_reference[..., None, :] - _shortfall(values) / (level * beta)
  total = special.logsumexp(tilted, axis=-1)
  bound = values + beta * total
  best = np.argmax(bound, axis=-1)[..., None, None]
  return Optimum(bound.max(axis=-1), np.take_along_axis(tilted - total[..., None], best, axis=-2)[..., 0, :])


def nested_optimum(tree: Tree, world: World, level: float, beta: float) -> Optimum:
  """The best value of every prefix, and the one policy that attains all of them, by dynamic programming.

  V(s) = max_pi { CVaR_level, z ~ pi, of V(s + z) - beta KL(pi || pi_ref(.|s)) },   V(leaf) = its reward

  The penalty of each step is inside the recursion. CVaR is monotone, so a better continuation never lowers V(s).

  Returns:
    The values [S] and the policy [S, V].
  """
  optima, later, end = [], world.reward, tree.states
  while end:
    start = end - len(later) // tree.vocabulary
    optima.append(best_choice(later.reshape(-1, tree.vocabulary), world.reference[start:end], level, beta))
    later, end = optima[-1].value, start
  return Optimum(*(np.concatenate(parts[::-1]) for parts in zip(*optima, strict=True)))


def static_optimum(tree: Tree, world: World, level: float, beta: float, state: int = 0) -> Optimum:
  """The best static CVaR when the policy is planned at one prefix, and the responses of that policy.

  max_pi CVaR_level, y ~ pi(.|s), of reward(y) - beta KL(pi(.|s) || pi_ref(.|s)),   y: complete responses

  Returns:
    The value, and the log-probabilities of the leaves below the state.
  """
  leaves, reach = tree.below(state), tree.reach(world.reference)
  return best_choice(world.reward[leaves], reach[tree.states + leaves] - reach[state], level, beta)


def static_value(tree: Tree, world: World, leaf_log_probs: np.ndarray, level: float, beta: float, state: int) -> float:
  """The objective of `static_optimum` for given log-probabilities of the leaves below a state."""
  leaves, reach = tree.below(state), tree.reach(world.reference)
  kl = step_kl(leaf_log_probs, reach[tree.states + leaves] - reach[state])
  return float(lower_cvar(world.reward[leaves], leaf_log_probs, level) - beta * kl)


def step_kl(log_probs: Array, reference: Array) -> Array:
  """[...] of [..., V], the KL of each next-token distribution to the reference, in nats."""
  xp = log_probs.__array_namespace__()
  probs = xp.exp(log_probs)
  return xp.sum(probs * xp.where(probs > 0, log_probs - reference, 0.0), axis=-1)


def nested_value(tree: Tree, world: World, log_probs: np.ndarray, level: float, beta: float) -> np.ndarray:
  """[S], the value of every prefix under a policy: the recursion of `nested_optimum` without its maximum."""
  value, kl = np.concatenate([np.zeros(tree.states), world.reward]), step_kl(log_probs, world.reference)
  for state in reversed(range(tree.states)):
    child = tree.vocabulary * state + 1
    later = value[child : child + tree.vocabulary]
    value[state] = lower_cvar(later, log_probs[state], level) - beta * kl[state]
  return value[: tree.states]


def gains(tree: Tree, world: World, log_probs: np.ndarray, level: float, beta: float) -> np.ndarray:
  """[S], what each prefix gains if only its next token is chosen anew: 0 wherever Bellman's equation holds.

  max_pi { CVaR_level, z ~ pi, of V(s + z) - beta KL(pi || pi_ref(.|s)) } - V(s),   V: the values of the policy
  """
  value = nested_value(tree, world, log_probs, level, beta)
  later = np.concatenate([value[1:], world.reward]).reshape(tree.states, tree.vocabulary)
  return best_choice(later, world.reference, level, beta).value - value


def gains_with_kl_outside(tree: Tree, world: World, log_probs: np.ndarray, level: float, beta: float) -> np.ndarray:
  """[S], `gains` if each prefix maximises its nested value minus beta times the expected KL of all tokens that follow.

  max_pi { CVaR_level, z ~ pi, of V(s + z) - beta (KL(pi || pi_ref(.|s)) + E_{z ~ pi} K(s + z)) } - (V(s) - beta K(s))

  V is the nested value of the reward alone, and K(s) the expected KL of all tokens from s on. A later K(s + z)
  acts like a factor exp(-K(s + z)) on the reference.
  """
  value, kl = nested_value(tree, world, log_probs, level, 0.0), _kl_from_here(tree, world, log_probs)
  later = np.concatenate([value[1:], world.reward]).reshape(tree.states, tree.vocabulary)
  later_kl = np.concatenate([kl[1:], np.zeros(tree.leaves)]).reshape(tree.states, tree.vocabulary)
  return best_choice(later, world.reference - later_kl, level, beta).value - (value - beta * kl)


def _kl_from_here(tree: Tree, world: World, log_probs: np.ndarray) -> np.ndarray:
  kl = np.concatenate([step_kl(log_probs, world.reference), np.zeros(tree.leaves)])
  for state in reversed(range(tree.states)):
    child = tree.vocabulary * state + 1
    kl[state] += np.sum(np.exp(log_probs[state]) * kl[child : child + tree.vocabulary])
  return kl[: tree.states]
