"""How do policies trained on nested and static risk of the reward differ? An exact study that takes about a minute.

  python -m experiments.toy.nested_risk

Each world is a complete tree of responses with random rewards. A branch with probability 0.03 under the reference has
reward -5. The policy has a logit for every prefix and token (`alignjax.models.tabular`). It ascends exact gradients:

  mean                    E[r] - beta KL
  static CVaR             CVaR_0.1[r] - beta KL, over all responses
  entropic                -(1 / kappa) log E[exp(-kappa r)] - beta KL; its nested and static values agree
  nested CVaR, KL outside V(empty prefix) - beta KL,  V(s) = CVaR_z[V(s + z)]
  nested CVaR, KL inside  V of every prefix,          V(s) = CVaR_z[V(s + z)] - beta KL(pi(.|s) || pi_ref(.|s))
  sum of step risks       E[r] - alpha K, the penalty of `ra_dpo`: K = E_{y ~ pi_ref} sum_t CVaR_0.97, v ~ pi_ref, of
                          log pi_ref(v|y_<t) - log pi(v|y_<t), of the upper tail. With the mean, K is KL(pi_ref || pi)

KL is the exact KL(pi || pi_ref) of whole responses, V(leaf) = r, and each CVaR of rewards is of the lower tail. The
nested level per token is 0.1^(1 / T): then every distribution that the nested CVaR considers is one that the static
CVaR_0.1 considers, and the nested value is never below the static one. Of the nested forms only the one with the KL
inside has a Bellman equation. With beta = 0 all measures have the same optimum, the best response, because only the
policy is random.

CVaR is convex in the policy. Gradient ascent therefore stalls at local maxima where good outcomes lie outside the tail,
the 'blindness to success' of Greenberg et al. 2022 (2205.05138). So training eases from the mean into the full measure,
in stages. The study compares trained values with exact optima, with and without easing.

It sweeps the penalties and compares methods at equal KL(pi || pi_ref), interpolated along the sweep of each world and
seed. Seeds perturb the initial policy. It prints each prediction with the figures found, and writes figure.png,
table.md, points.csv (every trained policy) and summary.json to --workdir.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import console as rich_console

from alignjax import paths, risk
from alignjax.commands import program
from alignjax.run import costs, fields
from alignjax.types import Array, Params
from experiments.toy import nested_risk_checks as checks
from experiments.toy import nested_risk_report as report
from experiments.toy import nested_risk_world as world


class Stage(NamedTuple):
  """One stage of training."""

  aversion: float  # from 0, the mean, to 1, the whole measure
  added_penalty: float = 0.0


EASED = (Stage(0.0, 0.4), Stage(0.0, 0.1), Stage(0.0), Stage(0.25), Stage(0.5), Stage(0.75), Stage(1.0))


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the study, its measures and its penalties."""

  tree: world.Tree = dataclasses.field(default_factory=world.Tree)
  worlds: int = 3
  seeds: int = 3
  bad_probability: float = 0.03
  bad_reward: float = -5.0
  level: float = 0.1  # of the static CVaR
  kappa: float = 1.0  # aversion of the entropic measure, 1 / reward
  drift_level: float = 0.97  # of the step risks, as in `ra_dpo`
  penalties: tuple[float, ...] = (0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6, 2.4, 3.2, 6.4)  # beta or alpha
  noise: float = 0.3  # standard deviation of the seeds' perturbation of the initial logits
  stages: tuple[Stage, ...] = EASED
  updates: int = 150  # per stage
  rate: float = 0.1  # learning rate of Adam
  kl: float = 0.5  # nats, where the methods are compared in the table
  shown: float = 0.8  # beta of the time-inconsistency example

  @property
  def nested_level(self) -> float:
    """Level per token of the nested CVaR."""
    return self.level ** (1.0 / self.tree.depth)


TINY = Setting(tree=world.Tree(2, 3), penalties=(0.0, 0.4, 0.8), stages=(Stage(0.0, 0.1), Stage(1.0)), updates=100)

Method = Callable[[Setting, float, Array, world.World, Array], Array]


def sequence_kl(tree: world.Tree, log_probs: Array, reference: Array) -> Array:
  """KL(pi || pi_ref) of whole responses, in nats."""
  policy, reference = tree.reach(log_probs)[tree.states :], tree.reach(reference)[tree.states :]
  return jnp.sum(jnp.exp(policy) * (policy - reference))


def static(setting: Setting, measure: risk.RiskMeasure, log_probs: Array, now: world.World) -> Array:
  """The measure of the rewards of whole responses."""
  return measure(now.reward, setting.tree.reach(log_probs)[setting.tree.states :])


def nested(setting: Setting, measure: risk.RiskMeasure, log_probs: Array, rewards: Array) -> Array:
  """The nested values of all prefixes [S]."""
  return risk.markov_value(rewards, log_probs, setting.tree.following(), measure)[:-1]


def _mean(setting: Setting, aversion: float, log_probs: Array, now: world.World, penalty: Array) -> Array:
  del aversion
  kl = sequence_kl(setting.tree, log_probs, now.reference)
  return static(setting, risk.expectation(), log_probs, now) - penalty * kl


def _static_cvar(setting: Setting, aversion: float, log_probs: Array, now: world.World, penalty: Array) -> Array:
  measure = risk.cvar(setting.level**aversion, tail='lower')
  return static(setting, measure, log_probs, now) - penalty * sequence_kl(setting.tree, log_probs, now.reference)


def _entropic(setting: Setting, aversion: float, log_probs: Array, now: world.World, penalty: Array) -> Array:
  measure = risk.entropic(-setting.kappa * aversion)
  value = nested(setting, measure, log_probs, setting.tree.step_rewards(now.reward))[0]
  return value - penalty * sequence_kl(setting.tree, log_probs, now.reference)


def _kl_outside(setting: Setting, aversion: float, log_probs: Array, now: world.World, penalty: Array) -> Array:
  measure = risk.cvar(setting.nested_level**aversion, tail='lower')
  value = nested(setting, measure, log_probs, setting.tree.step_rewards(now.reward))[0]
  return value - penalty * sequence_kl(setting.tree, log_probs, now.reference)


def _kl_inside(setting: Setting, aversion: float, log_probs: Array, now: world.World, penalty: Array) -> Array:
  # One policy maximises the values of all prefixes, so their mean is a compromise between none.
  measure = risk.cvar(setting.nested_level**aversion, tail='lower')
  rewards = setting.tree.step_rewards(now.reward) - penalty * world.step_kl(log_probs, now.reference)[:, None]
  return jnp.mean(nested(setting, measure, log_probs, rewards))


def _step_risks(setting: Setting, aversion: float, log_probs: Array, now: world.World, penalty: Array) -> Array:
  del aversion
  measure = risk.cvar(setting.drift_level)
  risks = jax.vmap(measure)(now.reference - log_probs, now.reference)
  drift = jnp.sum(jnp.exp(setting.tree.reach(now.reference)[: setting.tree.states]) * risks)
  return static(setting, risk.expectation(), log_probs, now) - penalty * drift


METHODS: Mapping[str, Method] = {
  checks.MEAN: _mean,
  checks.STEPS: _step_risks,
  checks.ENTROPIC: _entropic,
  checks.STATIC: _static_cvar,
  checks.OUTSIDE: _kl_outside,
  checks.INSIDE: _kl_inside,
}


class Problems(NamedTuple):
  """All combinations of a penalty, a world and a seed, on one leading axis."""

  penalty: Array
  world: world.World
  start: Params

  @classmethod
  def combine(cls, setting: Setting, worlds: Sequence[world.World], seed: int) -> 'Problems':
    """Combines the penalties with the worlds, and with initial policies near the reference."""
    tree, seeds = setting.tree, range(setting.seeds)
    noise = [np.random.default_rng((seed, 1, n)).normal(size=(tree.states, tree.vocabulary)) for n in seeds]
    table = np.zeros((len(worlds), setting.seeds, tree.language_model().contexts, tree.vocabulary), np.float32)
    table[:, :, tree.rows()] = np.stack([now.reference for now in worlds])[:, None] + setting.noise * np.stack(noise)
    axes = np.meshgrid(setting.penalties, range(len(worlds)), seeds, indexing='ij')
    penalty, number, start = (axis.ravel() for axis in axes)
    stacked = world.World(*(np.stack(arrays)[number] for arrays in zip(*worlds, strict=True)))
    return cls(penalty, stacked, {'logits': table[number, start]})


def draw_worlds(setting: Setting, seed: int) -> list[world.World]:
  """The worlds of a seed."""
  rngs = [np.random.default_rng((seed, 0, number)) for number in range(setting.worlds)]
  return [world.draw(setting.tree, rng, setting.bad_probability, setting.bad_reward) for rng in rngs]


def train(setting: Setting, method: Method, stages: Sequence[Stage], given: Problems) -> Array:
  """Solves all problems by gradient ascent, stage by stage; returns the log-probabilities [problems, S, V]."""
  params = given.start
  for stage in stages:
    now = given._replace(penalty=given.penalty + stage.added_penalty, start=params)
    params = _ascend(setting, method, stage.aversion, now)
  return _log_probs(setting, params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ascend(setting: Setting, method: Method, aversion: float, given: Problems) -> Params:
  """One stage of training for all problems."""
  tx = optax.adam(optax.cosine_decay_schedule(setting.rate, setting.updates))

  def solve(penalty: Array, now: world.World, params: Params) -> Params:
    def loss(params: Params) -> Array:
      return -method(setting, aversion, _log_probs(setting, params), now, penalty)

    def update(state: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
      params, moments = state
      updates, moments = tx.update(jax.grad(loss)(params), moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(update, (params, tx.init(params)), length=setting.updates)[0][0]

  return jax.vmap(solve)(*given)


def _log_probs(setting: Setting, params: Params) -> Array:
  return jax.nn.log_softmax(params['logits'][..., setting.tree.rows(), :])


@functools.partial(jax.jit, static_argnums=0)
def measured(setting: Setting, log_probs: Array, worlds: world.World) -> dict[str, Array]:
  """The exact measures [problems] of policies [problems, S, V] in their worlds."""
  return jax.vmap(functools.partial(_measured, setting))(log_probs, worlds)


def _measured(setting: Setting, log_probs: Array, now: world.World) -> dict[str, Array]:
  rewards = setting.tree.step_rewards(now.reward)
  reach = setting.tree.reach(log_probs)[setting.tree.states :]
  averse = risk.entropic(-setting.kappa)
  return {
    'reward': static(setting, risk.expectation(), log_probs, now),
    'cvar': static(setting, risk.cvar(setting.level, tail='lower'), log_probs, now),
    'nested': nested(setting, risk.cvar(setting.nested_level, tail='lower'), log_probs, rewards)[0],
    'bad': jnp.sum(jnp.where(now.bad, jnp.exp(reach), 0.0)),
    'kl': sequence_kl(setting.tree, log_probs, now.reference),
    'static_entropic': static(setting, averse, log_probs, now),
    'nested_entropic': nested(setting, averse, log_probs, rewards)[0],
  }


def run(setting: Setting, seed: int, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the study, writes its files, and returns the summary."""
  console, clock = rich_console.Console(), costs.Clock()

  def announce(text: str) -> None:
    console.print(f'{clock.seconds()["total"]:5.0f} s  {text}', highlight=False, soft_wrap=True)

  worlds = draw_worlds(setting, seed)
  given = Problems.combine(setting, worlds, seed)
  shape = (len(setting.penalties), setting.worlds, setting.seeds)

  def shaped(values: Array) -> np.ndarray:
    return np.asarray(values).reshape(*shape, *values.shape[1:])

  def judged(policies: Array) -> dict[str, np.ndarray]:
    return {
      name: shaped(values).astype(np.float64) for name, values in measured(setting, policies, given.world).items()
    }

  policies = {}
  for name, method in METHODS.items():
    policies[name] = train(setting, method, setting.stages, given)
    announce(f'{len(given.penalty)} policies trained: {name}')
  points = {name: judged(found) for name, found in policies.items()}
  before = {name: values[:1] for name, values in judged(given.world.reference).items()}
  at_once = (Stage(1.0),) * len(setting.stages)
  for name in (checks.STATIC, checks.INSIDE):
    policies[name + checks.AT_ONCE] = train(setting, METHODS[name], at_once, given)
    announce(f'{len(given.penalty)} policies trained: {name}{checks.AT_ONCE}')

  study = checks.Study(setting.tree, worlds, setting.penalties, setting.level, setting.nested_level)
  policies = {name: shaped(found).astype(np.float64) for name, found in policies.items()}
  shortfalls, example = checks.shortfalls(study, policies), checks.revised_plan(study, setting.shown)
  found = checks.predictions(study, points, policies, shortfalls, example)
  announce('checked the predictions')

  workdir.mkdir(parents=True, exist_ok=True)
  results = report.Results(study, points, before, shortfalls, example)
  table = report.write(workdir, console, results, found, setting.kl)
  summary = {
    'setting': dataclasses.asdict(setting) | {'nested_level': setting.nested_level, 'seed': seed},
    'table': table,
    'predictions': [check._asdict() for check in found],
    'example': example.to_json(),
    'shortfalls': {name: values.tolist() for name, values in shortfalls.items()},
    'seconds': clock.seconds(),
  }
  (workdir / 'summary.json').write_text(json.dumps(summary, indent=1) + '\n', encoding='utf-8')
  announce(f'wrote figure.png, table.md, points.csv and summary.json to {workdir}')
  return summary


@dataclasses.dataclass(frozen=True)
class Options:
  """Study."""

  workdir: str = fields.field(
    'runs/toy/nested_risk', 'Folder for figure.png, table.md, points.csv and summary.json.', path=paths.DISK
  )
  seed: int = fields.field(0, 'Seed of the worlds and of the initial policies.', at_least=0)
  worlds: int = fields.field(3, 'Number of random worlds.', at_least=1)
  seeds: int = fields.field(3, 'Number of initial policies for each world.', at_least=1)
  quick: bool = fields.field(False, 'Use tiny sizes, only to check that the study runs.')


def main(options: Options) -> None:
  """Runs the study with the sizes that the options choose."""
  setting = TINY if options.quick else Setting()
  setting = dataclasses.replace(setting, worlds=options.worlds, seeds=options.seeds)
  run(setting, options.seed, pathlib.Path(options.workdir))


PROGRAM = program.Program('nested_risk', __doc__, Options, main)

if __name__ == '__main__':
  program.start(PROGRAM)
