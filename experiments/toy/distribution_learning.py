"""What do preference objectives learn if the preferences come from a language model? A study that runs in seconds.

  python -m experiments.toy.distribution_learning

In each of a few contexts the target pi* is a distribution over a few actions. Action a is preferred to b with
probability sigmoid(gamma (log pi*(a) - log pi*(b))), as in Yun et al. 2025 (2506.01523). Tables of logits are trained
by full-batch gradient descent through the library's objectives; an action is a response of one token.

  what is learnt    with exact preference probabilities, each objective finds the distribution that theory predicts
  how fast          forward KL to pi* against the number of labelled pairs: it falls as 1/n or reaches a plateau

The study writes figure.png and summary.json to --workdir. Objectives that need samples from the policy (reverse_kl,
rlhf) get every action, weighted by its probability under the current policy, so their gradients are exact.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from alignjax import objectives, paths, stats
from alignjax.commands import program
from alignjax.run import fields
from alignjax.types import Array, PreferenceBatch
from experiments.toy import distribution_learning_figure

STEPS = 400  # steps of gradient descent
MOMENTUM = 0.9
SIZES = tuple(2**k for k in range(10, 21))  # numbers of labelled pairs
BETAS = (0.02, 0.1, 0.25, 0.5, 1.0, 2.0)  # grid for the beta of reverse_kl and rlhf


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the problem; the defaults are those of the paper's toy experiment."""

  contexts: int = 10
  actions: int = 10
  gamma: float = 0.5
  scale: float = 0.1  # standard deviation of the logits of pi* and the reference


class World(NamedTuple):
  """The log-probabilities of the target and the reference, [C, V] each."""

  target: np.ndarray
  reference: np.ndarray

  @classmethod
  def draw(cls, setting: Setting, rng: np.random.Generator) -> 'World':
    return cls(*(normalised(setting.scale * rng.normal(size=(setting.contexts, setting.actions))) for _ in range(2)))


class Comparisons(NamedTuple):
  """For each pair of actions a < b, the fraction of comparisons and the fraction of them in which a was preferred."""

  weight: np.ndarray  # [..., pairs], sums to 1 in each context
  label: np.ndarray  # [..., pairs]


def normalised(logits: np.ndarray) -> np.ndarray:
  """Normalises logits to log-probabilities along the last axis."""
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def forward_kl(target: np.ndarray, learnt: np.ndarray) -> np.ndarray:
  """KL(target || learnt) along the last axis, in nats."""
  return np.sum(np.exp(target) * (target - learnt), axis=-1)


def exact_comparisons(world: World, gamma: float) -> Comparisons:
  """All pairs with equal weight and their exact label probabilities."""
  first, second = _pairs(world.target.shape[-1])
  margin = gamma * (world.target[:, first] - world.target[:, second])
  return Comparisons(np.full(margin.shape, 1.0 / len(first)), 1.0 / (1.0 + np.exp(-margin)))


def draw_comparisons(world: World, gamma: float, count: int, rng: np.random.Generator) -> Comparisons:
  """Draws `count` pairs of uniform actions in uniform contexts. Pairs of an action with itself are discarded."""
  exact = exact_comparisons(world, gamma)
  actions = world.target.shape[-1]
  probability = np.full(exact.label.size, 2.0 / (actions**2 * len(world.target)))
  drawn = rng.multinomial(count, [*probability, max(0.0, 1.0 - probability.sum())])[:-1].reshape(exact.label.shape)
  wins = rng.binomial(drawn, exact.label)
  return Comparisons(drawn / np.maximum(drawn.sum(axis=-1, keepdims=True), 1), wins / np.maximum(drawn, 1))


def _pairs(actions: int) -> tuple[np.ndarray, np.ndarray]:
  return np.triu_indices(actions, 1)


def _batch(response: np.ndarray, weight: Array, label: Array, score: Array) -> PreferenceBatch:
  """A batch of one-token responses [B, N], given the scores [V] of all actions."""
  rows = len(response)
  return PreferenceBatch(
    prompt=jnp.zeros((rows, 1), jnp.int32),
    prompt_length=jnp.ones(rows, jnp.int32),
    response=jnp.asarray(response)[:, :, None],
    response_length=jnp.ones(response.shape, jnp.int32),
    label=label,
    weight=weight,
    score=score[response],
  )


def _mean_loss(objective: objectives.Objective, logits: Array, reference: Array, batch: PreferenceBatch) -> Array:
  def tokens(x: Array) -> Array:
    return jnp.broadcast_to(x, (*batch.response.shape, x.shape[-1]))

  table = stats.from_logits(objective.needs, tokens(logits), tokens(reference), batch)
  return jnp.sum(batch.weight * objective.apply(table, batch).loss)


def _descend(gradient: Callable[[Array], Array], start: Array, step_size: Array) -> Array:
  """Gradient descent with Nesterov momentum from `start`."""

  def step(_, state: tuple[Array, Array]) -> tuple[Array, Array]:
    logits, velocity = state
    velocity = MOMENTUM * velocity - step_size * gradient(logits + MOMENTUM * velocity)
    return logits + velocity, velocity

  return jax.lax.fori_loop(0, STEPS, step, (start, jnp.zeros_like(start)))[0]


def _over_problems(solve: Callable[..., Array], *arguments: np.ndarray) -> np.ndarray:
  """Solves one small problem for each index into the leading axes of the arguments."""
  leading = np.broadcast_shapes(*(x.shape[:-1] for x in arguments))
  flat = [
    jnp.asarray(np.broadcast_to(x, (*leading, x.shape[-1])).reshape(-1, x.shape[-1]), jnp.float32) for x in arguments
  ]
  return normalised(np.asarray(jax.jit(jax.vmap(solve))(*flat))).reshape(*leading, -1)


def fit_pairs(
  objective: objectives.Objective, slope: float, reference: np.ndarray, data: Comparisons, score: np.ndarray
) -> np.ndarray:
  """Trains on comparisons.

  Args:
    objective: an objective that is convex in the margin between two logits.
    slope: the coefficient of the margin, which determines the step size.
    reference: log-probabilities of the reference, [..., V]; gradient descent starts there.
    data: the comparisons.
    score: scores of the actions, [..., V], for objectives that read scores.

  Returns:
    The learnt log-probabilities, [..., V].
  """
  first, second = _pairs(reference.shape[-1])
  response = np.stack([first, second], axis=1)

  def solve(reference: Array, weight: Array, label: Array, score: Array) -> Array:
    # The curvature is at most slope^2 / 4 times the largest eigenvalue of the Laplacian of the comparison graph, which
    # is at most twice the largest total weight of the comparisons of one action.
    degree = jnp.zeros_like(reference).at[first].add(weight).at[second].add(weight)
    step_size = 1.0 / (0.25 * slope**2 * 2.0 * jnp.maximum(jnp.max(degree), 1e-6))
    batch = _batch(response, weight, label, score)
    return _descend(jax.grad(lambda x: _mean_loss(objective, x, reference, batch)), reference, step_size)

  return _over_problems(solve, reference, data.weight, data.label, score)


def fit_policy(
  objective: objectives.Objective, strength: float, reference: np.ndarray, score: np.ndarray
) -> np.ndarray:
  """Trains on the policy's own actions with exact policy gradients.

  Args:
    objective: a surrogate objective over samples from the policy.
    strength: beta + gamma, which determines the step size.
    reference: log-probabilities of the reference, [..., V]; gradient descent starts there.
    score: scores of the actions, [..., V].

  Returns:
    The learnt log-probabilities, [..., V].
  """
  actions = reference.shape[-1]
  response = np.arange(actions)[:, None]

  def solve(reference: Array, score: Array) -> Array:
    def loss(logits: Array) -> Array:
      probability = jax.lax.stop_gradient(jax.nn.softmax(logits))
      return _mean_loss(objective, logits, reference, _batch(response, probability, jnp.ones(actions), score))

    return _descend(jax.grad(loss), reference, 1.0 / strength)

  return _over_problems(solve, reference, score)


def fit_reward(reference: np.ndarray, data: Comparisons) -> np.ndarray:
  """The maximum-likelihood reward of each action, up to a constant: pmle with gamma = 1."""
  return fit_pairs(objectives.pmle(gamma=1.0), 1.0, np.zeros_like(reference), data, np.zeros_like(reference))


def population(setting: Setting, world: World) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
  """(learnt, predicted) log-probabilities for each objective, given exact preference probabilities."""
  gamma, (target, reference) = setting.gamma, world
  data, score = exact_comparisons(world, gamma), gamma * target
  pairs = functools.partial(fit_pairs, reference=reference, data=data, score=score)
  policy = functools.partial(fit_policy, reference=reference, score=score)
  return {
    f'pmle({gamma})': (pairs(objectives.pmle(gamma), gamma), target),
    f'pmle({2 * gamma})': (pairs(objectives.pmle(2 * gamma), 2 * gamma), normalised(target / 2)),
    f'preference_distillation({gamma})': (pairs(objectives.preference_distillation(gamma), gamma), target),
    f'dpo({gamma})': (pairs(objectives.dpo(gamma), gamma), normalised(reference + target)),
    f'reverse_kl({gamma}, 0.0)': (policy(objectives.reverse_kl(gamma, 0.0), gamma), target),
    f'reverse_kl({gamma}, {gamma})': (
      policy(objectives.reverse_kl(gamma, gamma), 2 * gamma),
      normalised((reference + target) / 2),
    ),
    f'rlhf({gamma})': (policy(objectives.rlhf(gamma), gamma), normalised(reference + target)),
  }


def by_sample_size(
  setting: Setting, worlds: Sequence[World], sizes: Sequence[int], betas: Sequence[float], rng: np.random.Generator
) -> Mapping[str, np.ndarray]:
  """Mean forward KL to pi* for each number of pairs, [worlds, sizes] by method.

  The beta of reverse_kl and rlhf is tuned for each size on pi* itself, as in the paper; gamma is known.
  """
  gamma = setting.gamma
  drawn = [[draw_comparisons(world, gamma, size, rng) for size in sizes] for world in worlds]
  data = Comparisons(*(np.stack([[getattr(d, name) for d in row] for row in drawn]) for name in Comparisons._fields))
  shape = data.label.shape[:-1]  # worlds, sizes, contexts
  target, reference = (
    np.broadcast_to(np.stack(x)[:, None], (*shape, setting.actions)) for x in zip(*worlds, strict=True)
  )
  score = fit_reward(reference, data)
  pairs = functools.partial(fit_pairs, reference=reference, data=data, score=score)
  policy = functools.partial(fit_policy, reference=reference, score=score)

  def error(learnt: np.ndarray) -> np.ndarray:
    return forward_kl(target, learnt).mean(axis=-1)

  return {
    'PMLE': error(pairs(objectives.pmle(gamma), gamma)),
    'PD': error(pairs(objectives.preference_distillation(gamma), gamma)),
    'RKL': _tuned([error(policy(objectives.reverse_kl(gamma, beta), beta + gamma)) for beta in (0.0, *betas)]),
    'DPO': error(pairs(objectives.dpo(gamma), gamma)),
    'RLHF': _tuned([error(policy(objectives.rlhf(beta), beta)) for beta in betas]),
  }


def _tuned(errors: Sequence[np.ndarray]) -> np.ndarray:
  """The errors, [worlds, sizes], of the beta with the lowest mean error over worlds at each size."""
  stacked = np.stack(errors)
  best = stacked.mean(axis=1).argmin(axis=0)
  return stacked[best, :, np.arange(stacked.shape[2])].T


def plateau(world: World) -> float:
  """The error of dpo with coefficient gamma in the limit of infinite data: KL(pi* || pi_ref pi*, normalised)."""
  return float(forward_kl(world.target, normalised(world.reference + world.target)).mean())


def slope(sizes: Sequence[int], errors: np.ndarray) -> float:
  """The slope of a line fitted to log error against log size."""
  return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def run(
  setting: Setting, worlds: int, sizes: Sequence[int], betas: Sequence[float], seed: int, workdir: pathlib.Path
) -> None:
  """Runs the study, prints both tables, and writes figure.png and summary.json."""
  rng = np.random.default_rng(seed)
  drawn = [World.draw(setting, rng) for _ in range(worlds)]
  console = rich_console.Console()

  learnt = population(setting, drawn[0])
  _print_population(console, drawn[0], learnt)
  errors = {name: x.mean(axis=0) for name, x in by_sample_size(setting, drawn, sizes, betas, rng).items()}
  level = float(np.mean([plateau(world) for world in drawn]))
  _print_errors(console, sizes, errors, level)

  workdir.mkdir(parents=True, exist_ok=True)
  context = {
    'pi*': drawn[0].target,
    'reference': drawn[0].reference,
    'pmle': learnt[f'pmle({setting.gamma})'][0],
    'dpo': learnt[f'dpo({setting.gamma})'][0],
  }
  shown = {name: np.exp(log_probability[0]) for name, log_probability in context.items()}
  distribution_learning_figure.draw(shown, sizes, errors, level).savefig(workdir / 'figure.png', dpi=150)
  summary = {
    'setting': {**dataclasses.asdict(setting), 'worlds': worlds, 'betas': list(betas), 'seed': seed},
    'pairs': list(sizes),
    'forward_kl': {name: x.tolist() for name, x in errors.items()},
    'plateau': level,
  }
  (workdir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
  console.print(f'wrote figure.png and summary.json to {workdir}', highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Options:
  """Study."""

  workdir: str = fields.field(
    'runs/toy/distribution_learning', 'Folder for figure.png and summary.json.', path=paths.DISK
  )
  seed: int = fields.field(0, 'Seed of all random draws.', at_least=0)
  worlds: int = fields.field(3, 'Number of random pairs of target and reference to average errors over.', at_least=1)


def main(options: Options) -> None:
  """Runs the study with the options."""
  run(Setting(), options.worlds, SIZES, BETAS, options.seed, pathlib.Path(options.workdir))


def _print_population(
  console: rich_console.Console, world: World, learnt: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
  title = 'learnt from exact preferences (largest error relative to the prediction)'
  table = rich_table.Table(title=title, box=box.SIMPLE, title_justify='left')
  for column in ('objective', 'error of log pi', 'forward KL to pi*, nats'):
    table.add_column(column, justify='left' if column == 'objective' else 'right')
  for name, (found, predicted) in learnt.items():
    kl = max(0.0, float(forward_kl(world.target, found).mean()))
    table.add_row(name, f'{np.abs(found - predicted).max():.0e}', f'{kl:.5f}')
  console.print(table)


def _print_errors(
  console: rich_console.Console, sizes: Sequence[int], errors: Mapping[str, np.ndarray], level: float
) -> None:
  title = f'forward KL to pi*, nats; dpo converges to {level:.5f}'
  table = rich_table.Table(title=title, box=box.SIMPLE, title_justify='left')
  table.add_column('pairs', justify='right')
  for name in errors:
    table.add_column(name, justify='right')
  for i, size in enumerate(sizes):
    table.add_row(str(size), *(f'{x[i]:.5f}' for x in errors.values()))
  table.add_row('slope', *(f'{slope(sizes, x):.2f}' for x in errors.values()))
  console.print(table)


PROGRAM = program.Program('distribution_learning', __doc__, Options, main)

if __name__ == '__main__':
  program.start(PROGRAM)
