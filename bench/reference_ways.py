"""Time and memory of a training step for each source of the reference.

  python -m bench.reference_ways

  live      a separate copy of the parameters, next to a policy that is fully trained
  lora      the frozen base of the trained adapters: no second copy, no optimizer state for the base
  lora_...  the same, with the base's kernels in 8 or 4 bits
  cache     a cache for the objective: log-probabilities, or final hidden states with the head

The model has the shape of SmolLM2-135M with only a few layers. All steps are compiled first. Each round then runs every
step once, directly after a `live` step to compare with, in random order, so that temporary slowdowns of the machine
affect both. Ratios are medians over rounds, with quartiles. The row `live` compares the step with itself, as a measure
of noise. `arguments` (state, reference, batch) and `temporaries` come from the compiler and are exact. The arguments
are donated, so state and gradients reuse their memory. Policy and reference differ. If a step trains the same
parameters as `live`, the last column is the largest relative difference between their losses at the same step.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import random
import statistics
import sys
import time
from typing import NamedTuple

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import optax

from alignjax import objectives, stats
from alignjax.models import base as models
from alignjax.models import lora, quantization, transformer
from alignjax.training import caching, forward, references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import Array, Params, PreferenceBatch
from bench import shapes

_OBJECTIVES = flags.DEFINE_multi_string(
  'objective', ['dpo()', 'ra_dpo(risk=cvar(0.97))'], 'Objectives to measure, as expressions.'
)
_LAYERS = flags.DEFINE_integer('layers', 4, 'Number of layers of the model.')
_RANK = flags.DEFINE_integer('rank', 16, 'Rank of the adapters.')
_PROMPTS = flags.DEFINE_integer('prompts', 4, 'Prompts in the batch, two responses each.')
_PROMPT = flags.DEFINE_integer('prompt', 64, 'Tokens per prompt.')
_RESPONSE = flags.DEFINE_integer('response', 64, 'Tokens per response.')
_CHUNK = flags.DEFINE_integer('chunk', 256, 'Response tokens whose logits are in memory at once.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measured rounds, after one warm-up round.', lower_bound=2)

TX = optax.adamw(1e-6)


class Start(NamedTuple):
  """The starting point of one way: trained parameters, frozen parameters, cached statistics and the adapter."""

  params: Params
  frozen: training_state.Frozen
  cached: Mapping[str, Array] = {}
  adapter: lora.LoRA | None = None


class Run(NamedTuple):
  """The inputs that all ways share."""

  model: models.LanguageModel
  objective: objectives.Objective
  policy: Params
  reference: Params
  batch: PreferenceBatch


def live(run: Run) -> Start:
  return Start(jax.tree.map(jnp.array, run.policy), training_state.Frozen(references.Live(run.reference)))


def on_base(run: Run, kind: str | None = None) -> Start:
  settings = lora.LoRA(_RANK.value)
  base = run.reference if kind is None else quantization.quantize(run.reference, kind)
  frozen = training_state.Frozen(references.Base(), base=base)
  return Start(lora.init(jax.random.key(1), base, settings), frozen, adapter=settings)


def cache(run: Run) -> Start:
  hidden = jax.jit(functools.partial(forward.hidden_states, run.model))(run.reference, run.batch)
  columns = caching.columns(run.objective.needs, run.model.config.width, 'float32')
  if references.STATES in columns:
    cached, frozen = {references.STATES: hidden.states}, training_state.Frozen(references.CachedStates(hidden.head))
  else:
    stat_of = {stat.name: stat for stat in run.objective.needs}
    needs = [stat_of[name] for name in columns]
    table = jax.jit(functools.partial(stats.statistics, needs, chunk=_CHUNK.value))(hidden, hidden, run.batch)
    cached, frozen = table.values, training_state.Frozen()
  return Start(jax.tree.map(jnp.array, run.policy), frozen, cached)


WAYS: dict[str, Callable[[Run], Start]] = {
  'live': live,
  'lora': on_base,
  'lora_int8': lambda run: on_base(run, 'int8'),
  'lora_nf4': lambda run: on_base(run, 'nf4'),
  'cache': cache,
}
_WAYS = flags.DEFINE_multi_enum('way', list(WAYS), list(WAYS), 'Sources of the reference to compare with a live one.')


class Contender:
  """The compiled training step of one objective with one source of the reference."""

  def __init__(self, way: str, run: Run):
    start = WAYS[way](run)
    self.batch, self.frozen = dataclasses.replace(run.batch, cached=start.cached), start.frozen
    self.trains_all = start.adapter is None
    self.state = training_state.TrainState.create(start.params, TX, jax.random.key(0), run.objective.memory.initial)
    step = training_step.build_train_step(Policy(run.model, start.adapter), run.objective, TX, chunk=_CHUNK.value)
    self.program = jax.jit(step, donate_argnums=0).lower(self.state, self.frozen, self.batch).compile()
    memory = self.program.memory_analysis()
    self.arguments, self.temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    self.operations = self.program.cost_analysis()['flops']
    self.losses: list[float] = []

  def difference(self, base: 'Contender') -> str:
    """The largest relative difference of the losses from those of `base`."""
    if not self.trains_all:
      return ''
    pairs = zip(self.losses, base.losses, strict=False)
    return f'{max(abs(one / other - 1) for one, other in pairs):.1e}'

  def run(self) -> float:
    """Runs one step; returns its time in seconds."""
    start = time.perf_counter()
    self.state, metrics = jax.block_until_ready(self.program(self.state, self.frozen, self.batch))
    seconds = time.perf_counter() - start
    self.losses.append(float(metrics['loss']))
    return seconds


def compare(expression: str, config: transformer.TransformerConfig, policy: Params, other: Params) -> None:
  model, objective = transformer.build(config), objectives.parse(expression)
  run = Run(
    model,
    objective,
    policy,
    other,
    shapes.random_pairs(config.vocab_size, _PROMPTS.value, _PROMPT.value, _RESPONSE.value),
  )
  base = Contender('live', run)
  contenders = {}
  for way in _WAYS.value:
    contenders[way] = Contender(way, run)
    print(f'{expression}: compiled {way}', file=sys.stderr, flush=True)
  ratios, seconds, shuffle, order = {way: [] for way in contenders}, [], random.Random(0), list(contenders)
  for number in range(_ROUNDS.value + 1):
    shuffle.shuffle(order)
    for way in order:
      seconds.append(base.run())
      ratios[way].append(contenders[way].run() / seconds[-1])
    print(f'{expression}: round {number} of {_ROUNDS.value}', file=sys.stderr, flush=True)
  print(f'\n`{expression}`, live: {statistics.median(seconds):.2f} s per step, {_ROUNDS.value} rounds')
  print('| reference | time / live | quartiles | operations / live | arguments, MiB | temporaries, MiB | loss |')
  print('|---|---|---|---|---|---|---|')
  for way, contender in contenders.items():
    low, middle, high = statistics.quantiles(ratios[way][1:], n=4)  # the first round warms up
    memory = f'{contender.arguments / 2**20:.0f} | {contender.temporaries / 2**20:.0f}'
    times = f'{middle:.3f} | {low:.3f} to {high:.3f} | {contender.operations / base.operations:.3f}'
    print(f'| `{way}` | {times} | {memory} | {contender.difference(base)} |', flush=True)


def main(_):
  logging.set_verbosity(logging.WARNING)
  config = dataclasses.replace(shapes.SMOLLM2_135M, layers=_LAYERS.value)
  policy, other = (transformer.build(config).init(jax.random.key(seed)) for seed in range(2))
  for expression in _OBJECTIVES.value:
    compare(expression, config, policy, other)


if __name__ == '__main__':
  app.run(main)
