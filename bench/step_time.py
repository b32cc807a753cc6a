"""Time and memory of the training step in this checkout compared with another checkout.

  python -m bench.step_time --against=../other                                     on one device
  python -m bench.step_time --against=../other --devices=8 --case=dpo --case=lora   on 8 virtual CPU devices

Each checkout runs its own copy of this file in a separate process, so the other checkout must have the file. Both
compile all cases first. Each round then runs a few steps of each case in both checkouts, in random order. Ratios are
medians over rounds, with ranges. `temporaries` is the memory per device that the compiled program needs in addition to
its arguments, as reported by the compiler. `loss` is the relative difference between the last losses.
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
import optax

from alignjax import objectives
from alignjax.models import lora, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from bench import shapes

CASES: dict[str, tuple[objectives.Objective, dict[str, Any]]] = {
  'dpo': (objectives.dpo(), {}),
  'dpo_microbatches': (objectives.dpo(), {'microbatches': 2}),
  'alpha_dpo': (objectives.alpha_dpo(), {}),
  'alpha_dpo_microbatches': (objectives.alpha_dpo(), {'microbatches': 2}),
  'lora': (objectives.dpo(), {'adapter': lora.LoRA()}),
}
_AGAINST = flags.DEFINE_string('against', '', 'Folder of the other checkout; empty compares this one with itself.')
_CASES = flags.DEFINE_multi_enum('case', list(CASES), list(CASES), 'Steps to measure.')
_DEVICES = flags.DEFINE_integer('devices', 1, 'Number of devices; more than one uses virtual CPU devices on axis data.')
_PROMPTS = flags.DEFINE_integer('prompts', 16, 'Prompts in the batch, two responses each.')
_PROMPT = flags.DEFINE_integer('prompt', 32, 'Tokens per prompt.')
_RESPONSE = flags.DEFINE_integer('response', 32, 'Tokens per response.')
_CHUNK = flags.DEFINE_integer('chunk', 128, 'Response tokens whose logits are in memory at once on a device.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measured rounds, after one warm-up round.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 2, 'Steps per case and round.')
_WORKER = flags.DEFINE_bool('worker', False, 'Run steps on request from standard input; set by the parent process.')


class Contender:
  """The compiled training step of one case."""

  def __init__(self, case: str):
    objective, options = CASES[case]
    options = dict(options)
    mesh = parallel_mesh.make_mesh(_DEVICES.value, 1, 1, devices=jax.devices()[: _DEVICES.value])
    policy = Policy(transformer.build(shapes.NARROW, rules.constraint(mesh)), options.pop('adapter', None))
    model, tx = policy.model, optax.sgd(1e-2)
    base, other = (model.init(jax.random.key(seed)) for seed in range(2))
    if policy.adapter is None:
      params, frozen = base, training_state.Frozen(references.Live(other))
    else:
      params = policy.init(jax.random.key(2), base)
      frozen = training_state.Frozen(references.Base(), base=base)
    whole = rules.replicated(mesh)
    state = training_state.TrainState.create(params, tx, jax.random.key(0), objective.memory.initial)
    self.state, self.frozen = jax.device_put((state, frozen), whole)
    self.batch = jax.device_put(
      shapes.random_pairs(shapes.NARROW.vocab_size, _PROMPTS.value, _PROMPT.value, _RESPONSE.value),
      rules.batch_sharding(mesh),
    )
    step = training_step.build_train_step(policy, objective, tx, chunk=_CHUNK.value, mesh=mesh, **options)
    step = jax.jit(step, donate_argnums=0, out_shardings=whole)
    self.program = step.lower(self.state, self.frozen, self.batch).compile()

  def run(self) -> dict[str, float]:
    """Runs a few steps; returns their time in seconds and the last loss."""
    start = time.perf_counter()
    for _ in range(_STEPS.value):
      self.state, metrics = jax.block_until_ready(self.program(self.state, self.frozen, self.batch))
    return {'seconds': time.perf_counter() - start, 'loss': float(metrics['loss'])}


def serve() -> None:
  """Compiles all cases and reports their memory, then runs the case named on each line of standard input."""
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
  print('| case | seconds per step | time / other | range | temporaries, MiB | other temporaries, MiB | loss |')
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
