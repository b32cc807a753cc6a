"""The cost of online merging: time of an optimizer update, its share of a training step, and size of the state.

  python -m bench.online_merging                           an update of all parameters of SmolLM2-135M
  python -m bench.online_merging --step                    also a DPO step with 2 prompts; with --noupdate only that
  python -m bench.online_merging --layers=4 --rounds=5     a smaller model

All programs are compiled first. Each round then runs every contender once, directly after plain Adam, in random order,
so that temporary slowdowns of the machine affect both. Ratios are medians over rounds, with quartiles; the first row
compares Adam with itself, as a measure of noise. Every round has new gradients or batches, and the first rounds are not
counted: Adam's first updates have nearly equal magnitudes, which makes their thresholds hard to find, and repeating the
gradients would preserve that. tau is bfloat16.
"""

from collections.abc import Callable
import dataclasses
import functools
import random
import statistics
import sys
import time
from typing import Any

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import optax

from alignjax import objectives, optim
from alignjax.models import transformer
from alignjax.training import references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import Params, PreferenceBatch
from bench import shapes

_LAYERS = flags.DEFINE_integer('layers', 30, 'Number of layers of the model.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measured rounds.', lower_bound=2)
_WARMUP = flags.DEFINE_integer('warmup', 8, 'Warm-up rounds before the measured rounds.', lower_bound=1)
_UPDATE = flags.DEFINE_bool('update', True, 'Time updates of all parameters.')
_STEP = flags.DEFINE_bool('step', False, 'Time whole training steps.')
_PROMPTS = flags.DEFINE_integer('prompts', 2, 'Prompts in the batch of a training step.')
_TOKENS = flags.DEFINE_integer('tokens', 64, 'Tokens per prompt, and per response (two for each prompt).')

RATE, ALPHA = 1e-6, 1e-7
ADAM = 'adam'
MERGES = {
  'adam again': optax.identity,
  'online_dare(0.1)': lambda: optim.online_dare(0.1, ALPHA),
  'online_dare(0.1, carry=False)': lambda: optim.online_dare(0.1, ALPHA, carry=False),
  'online_ties(0.01)': lambda: optim.online_ties(0.01, ALPHA),
}


@functools.partial(jax.jit, static_argnames='dtype')
def noise(params: Params, seed: int, dtype: Any = jnp.float32) -> Params:
  """A tree like `params` of normal random numbers, with a typical magnitude of tau or a gradient."""
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed, impl='unsafe_rbg'), len(leaves))
  return structure.unflatten(
    [1e-3 * jax.random.normal(key, x.shape, dtype) for key, x in zip(keys, leaves, strict=True)]
  )


class Update:
  """A compiled update of all parameters by one optimizer, given gradients."""

  def __init__(self, tx: optax.GradientTransformation, bench: 'Updates'):
    self.bench, self.state = bench, tx.init(bench.params)
    self.bytes = sum(x.nbytes for x in jax.tree.leaves(self.state))

    def update(params: Params, state: Any, gradients: Params, delta: Params) -> tuple[Params, Any]:
      updates, state = tx.update(gradients, state, params, reference_delta=delta)
      return optax.apply_updates(params, updates), state

    lowered = jax.jit(update, donate_argnums=(0, 1)).lower(bench.params, self.state, bench.params, bench.delta)
    self.program = lowered.compile()

  def run(self, round_: int) -> float:
    gradients = jax.block_until_ready(noise(self.bench.params, round_ + 2))
    start = time.perf_counter()
    updated = self.program(self.bench.params, self.state, gradients, self.bench.delta)
    self.bench.params, self.state = jax.block_until_ready(updated)
    return time.perf_counter() - start


class Updates:
  """The parameters and the delta that all updates share."""

  contender = Update

  def __init__(self, model: Any):
    self.params = jax.jit(model.init)(jax.random.key(0))
    self.delta = noise(self.params, 1, jnp.bfloat16)


class Step:
  """A compiled training step with one optimizer."""

  def __init__(self, tx: optax.GradientTransformation, bench: 'Steps'):
    self.bench, self.opt_state = bench, tx.init(bench.params)
    self.bytes = sum(x.nbytes for x in jax.tree.leaves(self.opt_state))
    step = training_step.build_train_step(Policy(bench.model), objectives.dpo(), tx, chunk=256)
    self.program = jax.jit(step, donate_argnums=0).lower(self._state(), bench.frozen, bench.batch(0)).compile()

  def _state(self) -> training_state.TrainState:
    zero = jnp.zeros((), jnp.int32)
    return training_state.TrainState(zero, self.bench.params, self.opt_state, jax.random.key(0))

  def run(self, round_: int) -> float:
    state, batch = self._state(), jax.block_until_ready(self.bench.batch(round_))
    start = time.perf_counter()
    state, _ = jax.block_until_ready(self.program(state, self.bench.frozen, batch))
    seconds = time.perf_counter() - start
    self.bench.params, self.opt_state = state.params, state.opt_state
    return seconds


class Steps:
  """The model, parameters and frozen state that all training steps share."""

  contender = Step

  def __init__(self, model: Any, vocabulary: int):
    self.model, self.params = model, jax.jit(model.init)(jax.random.key(0))
    self.vocabulary = vocabulary
    delta = noise(self.params, 1, jnp.bfloat16)
    self.frozen = training_state.Frozen(
      references.Live(jax.tree.map(jnp.add, self.params, noise(self.params, 2))), delta
    )

  def batch(self, round_: int) -> PreferenceBatch:
    prompts, tokens = _PROMPTS.value, _TOKENS.value
    keys = jax.random.split(jax.random.key(round_))
    return PreferenceBatch(
      prompt=jax.random.randint(keys[0], (prompts, tokens), 0, self.vocabulary),
      prompt_length=jnp.full(prompts, tokens, jnp.int32),
      response=jax.random.randint(keys[1], (prompts, 2, tokens), 0, self.vocabulary),
      response_length=jnp.full((prompts, 2), tokens, jnp.int32),
      label=jnp.ones(prompts),
      weight=jnp.ones(prompts),
    )


def compare(title: str, bench: Updates | Steps) -> None:
  def build(merge: Callable[[], optax.GradientTransformation]) -> Update | Step:
    return bench.contender(optax.chain(optax.adam(RATE), merge()), bench)

  base = build(optax.identity)
  contenders = {name: build(merge) for name, merge in MERGES.items()}
  ratios, seconds, shuffle, order = {name: [] for name in contenders}, [], random.Random(0), list(contenders)
  for round_ in range(_WARMUP.value + _ROUNDS.value):
    shuffle.shuffle(order)
    for name in order:
      seconds.append(base.run(round_))
      ratios[name].append(contenders[name].run(round_) / seconds[-1])
    latest = ', '.join(f'{name} {ratios[name][-1]:.2f}' for name in contenders)
    print(f'{title}, round {round_ - _WARMUP.value + 1} of {_ROUNDS.value}: {latest}', file=sys.stderr, flush=True)
  size = sum(x.size for x in jax.tree.leaves(bench.params))
  print(f'\n{title}: {size / 1e6:.1f} million parameters, {ADAM}: {statistics.median(seconds):.3f} s')
  print('| optimizer | time / adam | quartiles | state, bytes per parameter |\n|---|---|---|---|')
  for name, contender in contenders.items():
    low, middle, high = statistics.quantiles(ratios[name][_WARMUP.value :], n=4)
    print(f'| `{name}` | {middle:.3f} | {low:.3f} to {high:.3f} | {contender.bytes / size:.1f} |', flush=True)


def main(_):
  logging.set_verbosity(logging.WARNING)
  config = dataclasses.replace(shapes.SMOLLM2_135M, layers=_LAYERS.value)
  model = transformer.build(config)
  if _UPDATE.value:
    compare('an update', Updates(model))
  if _STEP.value:
    compare('a DPO step', Steps(model, config.vocab_size))


if __name__ == '__main__':
  app.run(main)
