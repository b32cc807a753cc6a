"""Time and memory of a training step with each objective, relative to `dpo` or another one, with a live reference.

  python -m bench.objectives                                  a few of every kind, for V = 49,152 and 151,936
  python -m bench.objectives --vocabulary=49152 --every       all exported objectives
  python -m bench.objectives --objective='ra_dpo(risk=cvar(0.9))'
  python -m bench.objectives --base='ra_dpo()' --objective='ra_dpo(off_path=0.9)'

The model has the shape of SmolLM2-135M. All steps are compiled first. Each round then runs every step once, directly
after a step with the base, in random order, so that temporary slowdowns of the machine affect both. Ratios are medians
over rounds, with quartiles. `operations` and `temporaries` (the memory of the compiled program in addition to its
arguments) come from the compiler and are exact, except that the body of a loop counts once. The first row compares the
base with itself, as a measure of noise.
"""

import dataclasses
import random
import statistics
import sys
import time

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import optax

from alignjax import objectives
from alignjax.models import base as models
from alignjax.models import transformer
from alignjax.run import arithmetic
from alignjax.training import references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import Params, PreferenceBatch
from bench import shapes

_OBJECTIVES = flags.DEFINE_multi_string(
  'objective', None, 'Objectives to compare with the base, as expressions, instead of the default selection.'
)
_BASE = flags.DEFINE_string('base', 'dpo()', 'The objective to compare with, as an expression.')
_EVERY = flags.DEFINE_bool('every', False, 'Compare all exported objectives, with their defaults.')
_VOCABULARIES = flags.DEFINE_multi_integer('vocabulary', [49_152, 151_936], 'Vocabulary sizes.')
_LAYERS = flags.DEFINE_integer('layers', 30, 'Number of layers of the model.')
_PROMPTS = flags.DEFINE_integer('prompts', 2, 'Prompts in the batch.')
_PROMPT = flags.DEFINE_integer('prompt', 64, 'Tokens per prompt.')
_RESPONSE = flags.DEFINE_integer('response', 64, 'Tokens per response.')
_CHUNK = flags.DEFINE_integer('chunk', 256, 'Response tokens whose logits are in memory at once.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measured rounds, after one warm-up round.', lower_bound=2)
_COMPUTE_DTYPE = flags.DEFINE_enum('compute_dtype', 'float32', ['float32', 'bfloat16'], 'Compute dtype of the model.')

TX = optax.sgd(1e-6)
USUAL = (
  'ipo()',
  'simpo()',
  'importance_weighted(dpo())',
  'wpo_weighted(dpo())',
  'tdpo()',
  'ra_dpo(risk=entropic(0.5))',
  'ra_dpo(risk=cvar(0.97))',
  'ra_dpo_released()',
  'alpha_dpo()',
)


class Contender:
  """The compiled training step of one objective."""

  def __init__(self, expression: str, model: models.LanguageModel, bench: 'Bench'):
    objective, self.bench = objectives.parse(expression), bench
    self.couples_rows = objective.couples_rows
    self.memory = {name: jnp.asarray(value, jnp.float32) for name, value in objective.memory.initial.items()}
    step = training_step.build_train_step(Policy(model), objective, TX, chunk=_CHUNK.value)
    state = dataclasses.replace(bench.state, memory=self.memory)
    # Donate the state, as in training; otherwise new parameters, and much scratch space, would need separate arrays.
    self.program = jax.jit(step, donate_argnums=0).lower(state, bench.frozen, bench.batch).compile()
    self.temporaries = self.program.memory_analysis().temp_size_in_bytes
    self.operations = self.program.cost_analysis()['flops']

  def run(self) -> float:
    """Runs one step from the state that all contenders share; returns its time in seconds."""
    state = dataclasses.replace(self.bench.state, memory=self.memory)
    start = time.perf_counter()
    state, _ = jax.block_until_ready(self.program(state, self.bench.frozen, self.bench.batch))
    seconds = time.perf_counter() - start
    self.memory, self.bench.state = state.memory, dataclasses.replace(state, memory={})
    return seconds


class Bench:
  """The state, reference and batch that all contenders share."""

  def __init__(self, params: Params, batch: PreferenceBatch):
    reference = jax.tree.map(lambda x: x + 1e-3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    self.state = training_state.TrainState.create(params, TX, jax.random.key(0))
    self.frozen, self.batch = training_state.Frozen(references.Live(reference)), batch


def compare(vocabulary: int, names: list[str]) -> None:
  config = dataclasses.replace(
    shapes.SMOLLM2_135M, vocab_size=vocabulary, layers=_LAYERS.value, compute_dtype=_COMPUTE_DTYPE.value
  )
  model = transformer.build(config)
  bench = Bench(
    model.init(jax.random.key(0)), shapes.random_pairs(vocabulary, _PROMPTS.value, _PROMPT.value, _RESPONSE.value)
  )
  base = Contender(_BASE.value, model, bench)
  print(f'\nV = {vocabulary:,}: {_BASE.value} has {base.temporaries / 2**20:.0f} MiB of temporaries', flush=True)
  contenders = {}
  for name in names:
    contenders[name] = Contender(name, model, bench)
    print(f'compiled {name}', file=sys.stderr, flush=True)
  ratios, seconds, shuffle, order = {name: [] for name in contenders}, [], random.Random(0), list(contenders)
  for _ in range(_ROUNDS.value + 1):
    shuffle.shuffle(order)
    for name in order:
      seconds.append(base.run())
      ratios[name].append(contenders[name].run() / seconds[-1])
  print(f'{_BASE.value}: {statistics.median(seconds):.2f} s per step, {_ROUNDS.value} rounds')
  print('| objective | time / base | quartiles | operations / base | temporaries / base | couples rows |')
  print('|---|---|---|---|---|---|')
  for name, contender in contenders.items():
    low, middle, high = statistics.quantiles(ratios[name][1:], n=4)  # the first round warms up
    memory, operations = contender.temporaries / base.temporaries, contender.operations / base.operations
    couples = 'yes' if contender.couples_rows else ''
    times = f'{middle:.3f} | {low:.3f} to {high:.3f}'
    print(f'| `{name}` | {times} | {operations:.3f} | {memory:.3f} | {couples} |', flush=True)


def main(_):
  logging.set_verbosity(logging.WARNING)
  names = list(USUAL)
  if _OBJECTIVES.value:
    names = _OBJECTIVES.value
  elif _EVERY.value:
    names = [f'{name}({"dpo()" if name.endswith("_weighted") else ""})' for name in sorted(objectives.OBJECTIVES)]
  names = list(dict.fromkeys([_BASE.value, *names]))  # the base itself measures the noise
  arithmetic.prepare()
  for vocabulary in _VOCABULARIES.value:
    compare(vocabulary, names)


if __name__ == '__main__':
  app.run(main)
