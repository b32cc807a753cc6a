"""What theory predicts for `nested_risk`, and what the study finds."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import numpy as np

from alignjax import risk
from experiments.toy import nested_risk_world as world

MEAN, STEPS, ENTROPIC, STATIC = 'mean', 'sum of step risks', 'entropic', 'static CVaR'
OUTSIDE, INSIDE = 'nested CVaR, KL outside', 'nested CVaR, KL inside'
AT_ONCE = ', no easing'  # follows the name of a method
REFERENCE = 'reference'

EXACT = 1e-12  # float64
ROUNDED = 1e-5  # float32, for values of a few units
COMMON = 0.01  # probability of a prefix
TRAINED = 1e-3  # reward, what training may fall short of the optimum

# Nested lower-tail CVaR by level of two policies, as published by the authors of Ra-DPO (2505.20359) in their rebuttal.
# Each policy draws the first token with probability 1/2. The distributions of the reward of a response are equal.
TREES = {  # rewards of the leaves; after either first token, the leaves have probability 0.9 and 0.1
  'A': (0.7, 0.6, 0.4, 0.3),
  'B': (0.7, 0.3, 0.4, 0.6),
}
PUBLISHED = {
  0.97: (0.53505, 0.53282),
  0.9: (0.52222, 0.51358),
  0.7: (0.47143, 0.46939),
  0.6: (0.43333, 0.43889),
  0.5: (0.38, 0.40),
  0.3: (0.36667, 0.40),
}
PUBLISHED_STATIC = {0.9: 0.52222, 0.5: 0.39}  # of both
HALF_DIGIT = 5e-6


class Check(NamedTuple):
  """A prediction, and what was found."""

  prediction: str
  found: str
  holds: bool


class Study(NamedTuple):
  """What exact optima depend on. Trained policies have the axes [penalties, worlds, seeds, S, V]."""

  tree: world.Tree
  worlds: Sequence[world.World]
  penalties: Sequence[float]
  level: float
  nested_level: float


def published_tree(name: str) -> tuple[world.Tree, world.World]:
  """One of the two published trees; its reference is the policy."""
  probs = np.array([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1]])
  return world.Tree(2, 2), world.World(np.log(probs), np.array(TREES[name]), np.zeros(4, bool))


def computed_values(level: float) -> dict[str, tuple[float, float]]:
  """The library's nested and static lower-tail CVaR of each published tree."""
  measure, values = risk.cvar(level, tail='lower'), {}
  for name in TREES:
    tree, now = published_tree(name)
    nested = risk.markov_value(tree.step_rewards(now.reward), now.reference, tree.following(), measure)[0]
    values[name] = float(nested), float(measure(now.reward, tree.reach(now.reference)[tree.states :]))
  return values


def published_values() -> Check:
  """The published values of trees A and B."""
  lines, errors = [], []
  for level in PUBLISHED:
    values = computed_values(level)
    shown = f'level {level:4}: nested'
    for (name, (nested, static)), expected in zip(values.items(), PUBLISHED[level], strict=True):
      errors.append(abs(nested - expected))
      shown += f' {name} {nested:.5f} (published {expected:.5f})'
      if level in PUBLISHED_STATIC:
        errors.append(abs(static - PUBLISHED_STATIC[level]))
    if level in PUBLISHED_STATIC:
      shown += f', static {values["A"][1]:.5f} and {values["B"][1]:.5f} (published {PUBLISHED_STATIC[level]:.5f})'
    lines.append(shown)
  return Check(
    'the published nested and static CVaR of trees A and B, to all five digits',
    '\n'.join([f'largest difference {max(errors):.1e}', *lines]),
    max(errors) <= HALF_DIGIT + 1e-7,  # half a digit, and float32
  )


def predictions(
  study: Study,
  points: Mapping[str, Mapping[str, np.ndarray]],
  policies: Mapping[str, np.ndarray],
  short: Mapping[str, np.ndarray],
  example: 'Example',
) -> list[Check]:
  """Checks every prediction.

  Args:
    study: what the exact optima depend on.
    points: measures of the policies trained with easing, by method.
    policies: log-probabilities of all trained policies, by method.
    short: their shortfalls, see `shortfalls`.
    example: the plan to check, see `revised_plan`.
  """
  checks = [published_values(), *_of_values(points), _of_optima(study)]
  return [*checks, *_of_training(study, policies, short), _of_plans(study, example)]


def _of_values(points: Mapping[str, Mapping[str, np.ndarray]]) -> list[Check]:
  """Relations between nested and static values, which hold for every policy."""
  entropic = max(float(np.abs(each['nested_entropic'] - each['static_entropic']).max()) for each in points.values())
  margin = [each['nested'] - each['cvar'] for each in points.values()]
  least, count = min(float(each.min()) for each in margin), sum(each.size for each in margin)
  return [
    Check(
      'nested and static entropic values are equal (discount 1)',
      f'largest difference {entropic:.1e} among {count} policies, in float32',
      entropic <= ROUNDED,
    ),
    Check(
      'the nested CVaR of level mu^(1/T) per token is at least the static CVaR of level mu',
      f'nested - static is at least {least:.1e} among {count} policies, and {np.mean(margin):.3f} on average',
      least >= -ROUNDED,
    ),
  ]


def _of_optima(study: Study) -> Check:
  """Bellman's equation of the policies found by dynamic programming."""
  tree, level = study.tree, study.nested_level
  gains, errors = [], []
  for now in study.worlds:
    for beta in study.penalties:
      optimum = world.nested_optimum(tree, now, level, beta)
      errors.append(np.abs(world.nested_value(tree, now, optimum.log_probs, level, beta) - optimum.value).max())
      gains.append(world.gains(tree, now, optimum.log_probs, level, beta).max())
  policies = len(study.worlds) * len(study.penalties)
  return Check(
    'nested-CVaR optimal policies satisfy Bellman optimality at every prefix, with the KL inside the recursion',
    f'largest gain of any prefix {max(gains):.1e}, and value error {max(errors):.1e}, in {policies} x {tree.states}'
    ' prefixes',
    bool(max(gains) <= EXACT and max(errors) <= EXACT),
  )


def _of_training(study: Study, policies: Mapping[str, np.ndarray], short: Mapping[str, np.ndarray]) -> list[Check]:
  """What gradient ascent attains of the exact optima."""
  checks = []
  zero = [place for place, beta in enumerate(study.penalties) if beta == 0]
  for title, where in (('beta = 0', zero), ('beta > 0', [k for k in range(len(study.penalties)) if k not in zero])):
    missing = short[INSIDE][where]
    checks.append(
      Check(
        f'gradient ascent reaches the optimum of dynamic programming at the empty prefix within {TRAINED}, {title}',
        f'{_share(missing <= TRAINED)} of the policies do; the shortfall is at most {missing.max():.4f},'
        f' and {missing.mean():.4f} on average',
        bool(missing.max() <= TRAINED),
      )
    )
  inside = _of_every_policy(study, policies[INSIDE], world.gains)
  checks.append(
    Check(
      f'trained policies with the KL inside satisfy Bellman optimality at every prefix within {TRAINED}',
      f'{_share(inside <= TRAINED)} of the prefixes do; the largest gain of a prefix is {inside.max():.4f}',
      bool(inside.max() <= TRAINED),
    )
  )
  outside = _of_every_policy(study, policies[OUTSIDE], world.gains_with_kl_outside)
  reached = np.exp(_of_every_policy(study, policies[OUTSIDE], _reach)) > COMMON
  reached &= np.array(study.penalties)[:, None, None, None] > 0
  checks.append(
    Check(
      'with the KL outside, a policy trained from the empty prefix is not optimal at the prefixes that it reaches',
      f'{_share(outside[reached] > TRAINED)} of the prefixes with probability above {COMMON} gain more than {TRAINED};'
      f' the median gain is {np.median(outside[reached]):.3f}, and the largest {outside[reached].max():.3f}',
      bool(outside[reached].max() > TRAINED),
    )
  )
  return checks


def _reach(tree: world.Tree, now: world.World, policy: np.ndarray, level: float, beta: float) -> np.ndarray:
  del now, level, beta
  return tree.reach(policy)[: tree.states]


def _share(which: np.ndarray) -> str:
  return f'{100 * np.mean(which):.1f} %'


def shortfalls(study: Study, policies: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The best value minus that of each trained policy, [penalties, worlds, seeds], with and without easing."""
  measured = {STATIC: _static_shortfall, INSIDE: _nested_shortfall}
  return {
    method + easing: _map(study, policies[method + easing], functools.partial(shortfall, study))
    for method, shortfall in measured.items()
    for easing in ('', AT_ONCE)
  }


def _static_shortfall(study: Study, now: world.World, policy: np.ndarray, beta: float) -> np.ndarray:
  leaves = study.tree.reach(policy)[study.tree.states :]
  best = world.static_optimum(study.tree, now, study.level, beta).value
  return best - world.static_value(study.tree, now, leaves, study.level, beta, 0)


def _nested_shortfall(study: Study, now: world.World, policy: np.ndarray, beta: float) -> np.ndarray:
  best = world.nested_optimum(study.tree, now, study.nested_level, beta).value
  return best[0] - world.nested_value(study.tree, now, policy, study.nested_level, beta)[0]


def _of_every_policy(study: Study, policies: np.ndarray, gains: Callable[..., np.ndarray]) -> np.ndarray:
  return _map(study, policies, lambda now, policy, beta: gains(study.tree, now, policy, study.nested_level, beta))


def _map(study: Study, policies: np.ndarray, function: Callable[..., np.ndarray]) -> np.ndarray:
  """Applies a function to the world, the policy and the penalty of every trained policy."""
  found = [
    function(study.worlds[w], policies[k, w, n], study.penalties[k]) for k, w, n in np.ndindex(*policies.shape[:3])
  ]
  return np.stack(found).reshape(*policies.shape[:3], *np.shape(found[0]))


class Example(NamedTuple):
  """A prefix at which the best static policy would not follow its own plan."""

  world: int
  prefix: tuple[int, ...]
  beta: float
  reach: float  # probability of the prefix under the static policy
  choices: Mapping[str, np.ndarray]  # probabilities of the next token, by who chose them
  rewards: np.ndarray  # expected reward after each next token, under the reference
  planned: float  # static CVaR minus beta KL from the prefix on, if the plan is kept
  revised: float  # if it is made anew at the prefix

  def to_json(self) -> dict[str, Any]:
    values = self._asdict() | {'choices': {name: probs.tolist() for name, probs in self.choices.items()}}
    return values | {'rewards': self.rewards.tolist()}


def revised_plan(study: Study, beta: float, least_reach: float = 0.1) -> Example:
  """Finds the prefix at which the best static policy gains most by planning anew.

  Args:
    study: the worlds to search.
    beta: the penalty.
    least_reach: probability of the prefix under the static policy, at least.
  """
  examples = []
  for number, now in enumerate(study.worlds):
    policy = study.tree.conditional(world.static_optimum(study.tree, now, study.level, beta).log_probs)
    reach = np.exp(study.tree.reach(policy))
    for state in range(1, study.tree.states):
      if reach[state] >= least_reach:
        examples.append(_example(study, number, policy, state, beta))
  return max(examples, key=lambda example: example.revised - example.planned)


def _example(study: Study, number: int, policy: np.ndarray, state: int, beta: float) -> Example:
  tree, now, level = study.tree, study.worlds[number], study.level
  leaves, reach, before = tree.below(state), tree.reach(policy), tree.reach(now.reference)
  plan = reach[tree.states + leaves] - reach[state]
  revised = world.static_optimum(tree, now, level, beta, state)
  width = tree.vocabulary
  reference = np.exp(before[tree.states + leaves] - before[state])
  return Example(
    world=number,
    prefix=tree.prefix(state),
    beta=beta,
    reach=float(np.exp(reach[state])),
    choices={
      'reference': np.exp(now.reference[state]),
      'static CVaR, planned at the start': np.exp(policy[state]),
      'static CVaR, planned here': np.exp(revised.log_probs).reshape(width, -1).sum(axis=-1),
      'nested CVaR, planned at the start or here': np.exp(
        world.nested_optimum(tree, now, study.nested_level, beta).log_probs[state]
      ),
    },
    rewards=(reference * now.reward[leaves]).reshape(width, -1).sum(axis=-1) / np.exp(now.reference[state]),
    planned=world.static_value(tree, now, plan, level, beta, state),
    revised=float(revised.value),
  )


def _of_plans(study: Study, example: Example) -> Check:
  """Static plans are revised, and nested plans are kept."""
  tree, now = study.tree, study.worlds[example.world]
  nested = world.nested_optimum(tree, now, study.nested_level, example.beta)
  kept = world.gains(tree, now, nested.log_probs, study.nested_level, example.beta).max()
  lines = [f'  {name:42} {np.array2string(probs, precision=3)}' for name, probs in example.choices.items()]
  found = (
    f'world {example.world}, beta {example.beta}: after the tokens {example.prefix}, which the static policy reaches'
    f' with probability {example.reach:.3f}, planning anew raises its value from {example.planned:.3f} to'
    f' {example.revised:.3f}; the nested policy gains {kept:.1e} there. Probabilities of the next token:'
  )
  return Check(
    'a best static-CVaR policy is not optimal from an interior prefix; the nested one agrees with itself',
    '\n'.join([found, *lines]),
    bool(example.revised - example.planned > TRAINED and kept <= EXACT),
  )
