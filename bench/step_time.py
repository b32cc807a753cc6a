"""Time and memory of the training step of this checkout against that of another one.

  python -m bench.step_time --against=../other                                     on one device
  python -m bench.step_time --against=../other --devices=8 --case=dpo --case=lora   on 8 virtual CPU devices

Each checkout runs its own copy of this file in a process of its own, so the other one must have it. Both compile every
case first. Then each round runs a few steps of each case in both, in an order that changes from round to round. A
ratio is the median over rounds of the times of such a pair, with its range. `temporaries` is what the compiled program
needs beyond its arguments on each device, by the compiler's own account. `loss` is the relative difference of the last
losses.
"""

import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import objectives
from alignjax.models import lora, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import references
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from alignjax.types import PreferenceBatch
from bench import shapes

CASES: dict[str, tuple[objectives.Objective, dict[str, Any]]] = {
  'dpo': (objectives.dpo(), {}),
  'dpo_microbatches': (objectives.dpo(), {'microbatches': 2}),
  'alpha_dpo': (objectives.alpha_dpo(), {}),
  'alpha_dpo_microbatches': (objectives.alpha_dpo(), {'microbatches': 2}),
  'lora': (objectives.dpo(), {'adapter': lora.LoRA()}),
}
_AGAINST = flags.DEFINE_string('against', '', 'Folder of the other checkout; empty measures this one alone.')
_CASES = flags.DEFINE_multi_enum('case', list(CASES), list(CASES), 'Steps to measure.')
_DEVICES = flags.DEFINE_integer('devices', 1, 'Devices; more than one are virtual CPU devices on the axis `data`.')
_PROMPTS = flags.DEFINE_integer('prompts', 16, 'Prompts in the batch, two responses each.')
_PROMPT = flags.DEFINE_integer('prompt', 32, 'Tokens of a prompt.')
_RESPONSE = flags.DEFINE_integer('response', 32, 'Tokens of a response.')
_CHUNK = flags.DEFINE_integer('chunk', 128, 'Response tokens whose logits exist at once on a device.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds, after one to warm up.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 2, 'Steps of a case in a round.')
_WORKER = flags.DEFINE_bool('worker', False, 'Serve steps on standard input and output; set by the parent process.')


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
  """The compiled training step of one case."""

  def __init__(self, case: str):
    objective, options = CASES[case]
    options = dict(options)
    mesh = mesh_lib.make_mesh(_DEVICES.value, 1, 1, devices=jax.devices()[: _DEVICES.value])
    policy = Policy(transformer.build(shapes.NARROW, rules.activation_constraint(mesh)), options.pop('adapter', None))
    model, tx = policy.model, optax.sgd(1e-2)
    base, other = (model.init(jax.random.key(seed)) for seed in range(2))
    if policy.adapter is None:
      params, frozen = base, state_lib.Frozen(references.Live(other))
    else:
      params = policy.init(jax.random.key(2), base)
      frozen = state_lib.Frozen(references.Base(), base=base)
    whole = rules.replicated(mesh)
    state = state_lib.TrainState.create(params, tx, jax.random.key(0), objective.memory.initial)
    self.state, self.frozen = jax.device_put((state, frozen), whole)
    self.batch = jax.device_put(batch_of(shapes.NARROW.vocab_size), rules.batch_sharding(mesh))
    step = step_lib.build_train_step(policy, objective, tx, chunk=_CHUNK.value, mesh=mesh, **options)
    step = jax.jit(step, donate_argnums=0, out_shardings=whole)
    self.program = step.lower(self.state, self.frozen, self.batch).compile()

  def run(self) -> dict[str, float]:
    """Seconds and loss of a few steps."""
    start = time.perf_counter()
    for _ in range(_STEPS.value):
      self.state, metrics = jax.block_until_ready(self.program(self.state, self.frozen, self.batch))
    return {'seconds': time.perf_counter() - start, 'loss': float(metrics['loss'])}


def serve() -> None:
  """Compiles all cases and reports their memory, then runs a case for each line of standard input that names it."""
  jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  contenders = {case: Contender(case) for case in _CASES.value}
  memory = {case: one.program.memory_analysis().temp_size_in_bytes for case, one in contenders.items()}
  print(json.dumps(memory), flush=True)
  for line in sys.stdin:
    print(json.dumps(contenders[line.strip()].run()), flush=True)


class Worker:
  """A process that runs the steps of one checkout."""

  def __init__(self, folder: pathlib.Path):
    command = [sys.executable, '-m', 'bench.step_time', '--worker', *sys.argv[1:]]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    self.process = subprocess.Popen(command, cwd=folder, env=os.environ | {'PYTHONPATH': str(folder)}, **pipes)

  def read(self) -> dict[str, float]:
    return json.loads(self.process.stdout.readline())

  def run(self, case: str) -> dict[str, float]:
    print(case, file=self.process.stdin, flush=True)
    return self.read()


def compare() -> None:
  here = pathlib.Path(__file__).parent.parent
  workers = [Worker(here), Worker(pathlib.Path(_AGAINST.value).absolute() if _AGAINST.value else here)]
  memory = [worker.read() for worker in workers]
  ratios, seconds, shuffle = {case: [] for case in _CASES.value}, {case: [] for case in _CASES.value}, random.Random(0)
  losses = {}
  for _ in range(_ROUNDS.value + 1):
    for case in _CASES.value:
      order = shuffle.sample(range(2), 2)
      results = {index: workers[index].run(case) for index in order}
      seconds[case].append(results[0]['seconds'] / _STEPS.value)
      ratios[case].append(results[0]['seconds'] / results[1]['seconds'])
      losses[case] = abs(results[0]['loss'] / results[1]['loss'] - 1)
  for worker in workers:
    worker.process.stdin.close()
    worker.process.wait()
  print(f'{_DEVICES.value} device(s), {_ROUNDS.value} rounds of {_STEPS.value} steps')
  print('| case | seconds a step | time / other | range | temporaries, MiB | of the other, MiB | loss |')
  print('|---|---|---|---|---|---|---|')
  for case in _CASES.value:
    own = ratios[case][1:]  # the first round warms up
    times = (
      f'{statistics.median(seconds[case][1:]):.3f} | {statistics.median(own):.3f} | {min(own):.3f} to {max(own):.3f}'
    )
    sizes = ' | '.join(f'{side[case] / 2**20:.1f}' for side in memory)
    print(f'| `{case}` | {times} | {sizes} | {losses[case]:.1e} |')


def main(_):
  serve() if _WORKER.value else compare()


if __name__ == '__main__':
  app.run(main)
