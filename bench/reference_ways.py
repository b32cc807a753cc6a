"""Time and memory of a training step by where its reference comes from.

  python -m bench.reference_ways

  live      parameters of its own, beside a policy of which every parameter is trained
  lora      the frozen base of the adapters that are trained: no second copy, no optimizer state for the base
  lora_...  the same with the base's kernels in 8 or 4 bits

The model has the shape of SmolLM2-135M, cut to a few layers. All steps are compiled first. Then a round runs every step
once, right after a `live` step of its own, in an order that changes from round to round: a machine that is slow for a
while is so for both. A ratio is the median over rounds, with its quartiles. The row `live` has it against itself: the
noise. `arguments` (state, reference, batch) and `temporaries` are the compiler's own account, without noise; state and
gradients are updated in place of the arguments.
"""

from collections.abc import Callable
import dataclasses
import random
import statistics
import sys
import time
from typing import NamedTuple

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax.models import lora as lora_lib
from alignjax.models import quantization, transformer
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.types import Params, PreferenceBatch
from bench import shapes
from experiments import expressions

_OBJECTIVES = flags.DEFINE_multi_string(
  'objective', ['dpo()', 'ra_dpo(risk=cvar(0.97))'], 'Objectives to compare with.'
)
_LAYERS = flags.DEFINE_integer('layers', 4, 'Layers of the trunk.')
_RANK = flags.DEFINE_integer('rank', 16, 'Of the adapters.')
_PROMPTS = flags.DEFINE_integer('prompts', 4, 'Prompts in the batch, two responses each.')
_PROMPT = flags.DEFINE_integer('prompt', 64, 'Tokens of a prompt.')
_RESPONSE = flags.DEFINE_integer('response', 64, 'Tokens of a response.')
_CHUNK = flags.DEFINE_integer('chunk', 256, 'Response tokens whose logits exist at once.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds, after one to warm up.', lower_bound=2)

TX = optax.adamw(1e-6)


class Start(NamedTuple):
  """What a way begins with: what is trained, what is frozen, and how the step is to be built."""

  params: Params
  frozen: state_lib.Frozen
  lora: lora_lib.LoRA | None = None


def live(params: Params) -> Start:
  return Start(jax.tree.map(jnp.array, params), state_lib.Frozen(params))


def on_base(params: Params, kind: str | None = None) -> Start:
  settings = lora_lib.LoRA(_RANK.value)
  base = params if kind is None else quantization.quantize(params, kind)
  return Start(lora_lib.init(jax.random.key(1), base, settings), state_lib.Frozen(base=base), settings)


WAYS: dict[str, Callable[[Params], Start]] = {
  'live': live,
  'lora': on_base,
  'lora_int8': lambda params: on_base(params, 'int8'),
  'lora_nf4': lambda params: on_base(params, 'nf4'),
}
_WAYS = flags.DEFINE_multi_enum('way', list(WAYS), list(WAYS), 'References to compare with a live one.')


def batch_of(vocabulary: int) -> PreferenceBatch:
  """Random tokens, all responses of full length."""
  rng = np.random.default_rng(0)
  prompts, shape = _PROMPTS.value, (_PROMPTS.value, 2, _RESPONSE.value)
  return PreferenceBatch(
    prompt=jnp.asarray(rng.integers(0, vocabulary, (prompts, _PROMPT.value)), jnp.int32),
    prompt_length=jnp.full(prompts, _PROMPT.value, jnp.int32),
    response=jnp.asarray(rng.integers(0, vocabulary, shape), jnp.int32),
    response_length=jnp.full(shape[:2], _RESPONSE.value, jnp.int32),
    label=jnp.ones(prompts),
    weight=jnp.ones(prompts),
  )


class Contender:
  """The compiled training step of one objective, with its reference from one place."""

  def __init__(self, way: str, expression: str, config: transformer.TransformerConfig, params: Params):
    model, start = transformer.build(config), WAYS[way](params)
    objective = expressions.parse_objective(expression)
    self.batch, self.frozen = batch_of(config.vocab_size), start.frozen
    self.state = state_lib.TrainState.create(start.params, TX, jax.random.key(0), objective.memory.initial)
    step = step_lib.build_train_step(model, objective, TX, lora=start.lora, chunk=_CHUNK.value)
    self.program = jax.jit(step, donate_argnums=0).lower(self.state, self.frozen, self.batch).compile()
    memory = self.program.memory_analysis()
    self.arguments, self.temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    self.operations = self.program.cost_analysis()['flops']
    self.losses: list[float] = []

  def run(self) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    self.state, metrics = jax.block_until_ready(self.program(self.state, self.frozen, self.batch))
    seconds = time.perf_counter() - start
    self.losses.append(float(metrics['loss']))
    return seconds


def compare(expression: str, config: transformer.TransformerConfig, params: Params) -> None:
  base = Contender('live', expression, config, params)
  contenders = {}
  for way in _WAYS.value:
    contenders[way] = Contender(way, expression, config, params)
    print(f'{expression}: compiled {way}', file=sys.stderr, flush=True)
  ratios, seconds, shuffle, order = {way: [] for way in contenders}, [], random.Random(0), list(contenders)
  for number in range(_ROUNDS.value + 1):
    shuffle.shuffle(order)
    for way in order:
      seconds.append(base.run())
      ratios[way].append(contenders[way].run() / seconds[-1])
    print(f'{expression}: round {number} of {_ROUNDS.value}', file=sys.stderr, flush=True)
  print(f'\n`{expression}`, live: {statistics.median(seconds):.2f} s a step, {_ROUNDS.value} rounds')
  print('| reference | time / live | quartiles | operations / live | arguments, MiB | temporaries, MiB | first loss |')
  print('|---|---|---|---|---|---|---|')
  for way, contender in contenders.items():
    low, middle, high = statistics.quantiles(ratios[way][1:], n=4)  # the first round warms up
    memory = f'{contender.arguments / 2**20:.0f} | {contender.temporaries / 2**20:.0f}'
    times = f'{middle:.3f} | {low:.3f} to {high:.3f} | {contender.operations / base.operations:.3f}'
    print(f'| `{way}` | {times} | {memory} | {contender.losses[0]:.6f} |', flush=True)


def main(_):
  logging.set_verbosity(logging.WARNING)
  config = dataclasses.replace(shapes.SMOLLM2_135M, layers=_LAYERS.value)
  params = transformer.build(config).init(jax.random.key(0))
  for expression in _OBJECTIVES.value:
    compare(expression, config, params)


if __name__ == '__main__':
  app.run(main)
