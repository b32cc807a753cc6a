"""Injects NaN and infinity into training on 8 devices, and compares the state before and after, bit for bit.

  python -m bench.survival.nan --count=100

Each run trains for 40 steps, of which 10 at random get a value that is not finite: in a row's score or log-probability,
in the loss, or in the gradient of one row, which one of the devices computes. A skipped step must leave parameters,
moments, memory and the count of updates as they were; the run must end with 0 and report how many steps it skipped.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import random
from typing import Any, NamedTuple
from unittest import mock

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from alignjax import exit_codes, stopping
from alignjax.commands import program, train
from alignjax.data.batches import batching
from alignjax.run import command_line
from alignjax.training import checksums, programs, source
from alignjax.training import step as training_step
from bench.survival import campaign, worlds

STEPS, PER_RUN, DEVICES = 40, 10, 8
MARK = 1e4  # the score of a row whose gradient is to be infinite
NAN, INFINITY = math.nan, math.inf
OBJECTIVES = {
  'online_dare(every=3)': 'importance_weighted(dpo(), clip=None) + 0.1 * odpo() + trap()',
  "alpha_dpo(normaliser='ema')": (
    "alpha_dpo(normaliser='ema') + importance_weighted(dpo(), clip=None) + 0.1 * odpo() + trap()"
  ),
}
TRAP = f"""
import jax
import jax.numpy as jnp

from alignjax import Term, objectives, stats


@objectives.factory
def trap():
  def apply(table, batch):
    margin = table.log_ratio()[:, 0]
    bad = batch.score[:, 0] == {MARK}
    return Term(jnp.sqrt(jnp.where(bad, margin - jax.lax.stop_gradient(margin), 1.0)) * bad, {{}})

  return objectives.Objective(frozenset({{stats.logp, stats.reference_logp}}), apply, reads=frozenset({{'score'}}))
"""


class Injection(NamedTuple):
  """A value, where it goes, and into which row of the batch."""

  where: str  # score, behaviour_logp, loss or gradient
  value: float
  row: int


KINDS = [
  ('score', NAN),
  ('score', INFINITY),
  ('behaviour_logp', NAN),
  ('behaviour_logp', -INFINITY),
  ('behaviour_logp', -1e30),  # finite, but the weight of its row is not
  ('loss', NAN),
  ('loss', INFINITY),
  ('gradient', INFINITY),
]


def inject(batch: batching.Batch, injection: Injection) -> batching.Batch:
  """Puts a value into a row of a batch. `label` of 2 marks a batch whose loss gets it."""
  name = {'gradient': 'score', 'loss': 'label'}.get(injection.where, injection.where)
  value = {'gradient': MARK, 'loss': 2.0 if math.isnan(injection.value) else 3.0}.get(injection.where, injection.value)
  column = np.array(getattr(batch.data, name))
  column[injection.row] = value
  return batching.Batch(dataclasses.replace(batch.data, **{name: column}), batch.ids)


def poisoned(build: Any) -> Any:
  """Wraps `build_train_step`: the loss of a marked batch is NaN or infinite."""

  def build_poisoned(*args: Any, **options: Any) -> Any:
    step = build(*args, **options)

    def run(state: Any, frozen: Any, batch: Any) -> Any:
      mark = jnp.max(batch.label)
      new, values = step(state, frozen, dataclasses.replace(batch, label=jnp.minimum(batch.label, 1.0)))
      wrong = jnp.where(mark == 2, NAN, jnp.where(mark == 3, INFINITY, values['loss']))
      return new, values | {'loss': wrong}

    return run

  return build_poisoned


def bits(state: Any) -> dict[str, bytes]:
  """The bits of everything that a skipped batch must not change, by name."""
  kept = {'params': state.params, 'moments': state.opt_state, 'memory': state.memory, 'key': state.key}
  kept['updates'] = state.updates
  leaves = jax.tree_util.tree_leaves_with_path(kept)
  return {jax.tree_util.keystr(path): np.asarray(checksums.raw_data(leaf)).tobytes() for path, leaf in leaves}


class Observer:
  """Injects into the batches of a run, and compares the states around each step."""

  def __init__(self, plan: dict[int, Injection]):
    self.plan, self.records, self.unexpected = plan, [], 0
    self._next, self._call = source.GrainSource.next, programs.Programs.__call__

  def next(self, batches: source.GrainSource, state: Any) -> batching.Batch:
    batch = self._next(batches, state)
    injection = self.plan.get(int(state.step) + 1)
    return batch if injection is None else inject(batch, injection)

  def call(self, run: programs.Programs, *args: Any) -> Any:
    if run._name != 'training step':
      return self._call(run, *args)
    before, step = bits(args[0]), int(args[0].step) + 1  # the step donates its state
    state, (values, verdict) = self._call(run, *args)
    skipped, injection = int(verdict.in_a_row) > 0, self.plan.get(step)
    if injection is None:
      self.unexpected += skipped
      return state, (values, verdict)
    after = bits(state)
    changed = sorted(name for name in before if after[name] != before[name])
    self.records.append(
      {'step': step, 'where': injection.where, 'value': repr(injection.value), 'skipped': skipped, 'changed': changed}
    )
    return state, (values, verdict)


def draw_plan(draw: random.Random, count: int) -> dict[int, Injection]:
  """Injections by step, at most 4 in a row, which the run skips."""
  while True:
    steps = sorted(draw.sample(range(1, STEPS + 1), count))
    if not any(set(range(step, step + 5)) <= set(steps) for step in steps):
      return {step: Injection(*draw.choice(KINDS), draw.randrange(5)) for step in steps}


def write_rows(path: pathlib.Path, draw: random.Random) -> None:
  """Adds scores and log-probabilities of the behaviour policy to a file of pairs."""
  rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  for row in rows:
    row['score'] = [draw.gauss(0, 1), draw.gauss(0, 1)]
    row['behaviour_logp'] = [-draw.expovariate(0.1), -draw.expovariate(0.1)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def train_once(config: Any, plan: dict[int, Injection]) -> campaign.Record:
  """Runs the program with injections; returns what was seen."""
  observer, output = Observer(plan), io.StringIO()
  logging.set_verbosity(logging.ERROR)  # each skipped step is a warning
  with (
    mock.patch.object(source.GrainSource, 'next', lambda batches, state: observer.next(batches, state)),
    mock.patch.object(programs.Programs, '__call__', lambda run, *args: observer.call(run, *args)),
    mock.patch.object(training_step, 'build_train_step', poisoned(training_step.build_train_step)),
    contextlib.redirect_stdout(output),
    stopping.listening(),
  ):
    code = program.attempt(train.PROGRAM, command_line.Invocation(config))
  if len(observer.records) != len(plan):
    raise RuntimeError(f'the run has ended early, with exit code {code}')
  reported = f'skipped {len(plan)} of {STEPS} batches' in output.getvalue()
  return {'injections': observer.records, 'code': code, 'reported': reported, 'unexpected': observer.unexpected}


def injections(results: campaign.Results) -> list[campaign.Record]:
  """All injections so far."""
  return [each for record in results.records for each in record['injections']]


def run(results: campaign.Results, count: int, seed: int) -> None:
  """Trains until the results hold so many injections."""
  draw = random.Random(seed)
  with campaign.workspace() as folder:
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES} {os.environ.get("XLA_FLAGS", "")}'
    jax.config.update('jax_compilation_cache_dir', str(folder))
    files = worlds.write_files(folder / 'files')
    write_rows(files / 'train.jsonl', draw)
    (files / 'trap.py').write_text(TRAP)
    while (done := len(injections(results))) < count:
      scenario = list(OBJECTIVES)[len(results.records) % 2]
      options = {'objective': OBJECTIVES[scenario], 'imports': (str(files / 'trap.py'),), 'save_every': 0}
      config = worlds.configure(files, folder / f'run{done}', scenario, steps=STEPS, **options)
      results.add({'scenario': scenario, **train_once(config, draw_plan(draw, min(PER_RUN, count - done)))})
      results.progress(len(injections(results)), count)


def report(results: campaign.Results) -> int:
  """Prints the tables, and returns how many injections changed the state, and how many runs ended in another way."""
  rows, found = [], injections(results)
  for where, value in [*KINDS, ('all', NAN)]:
    some = [each for each in found if where == 'all' or (each['where'], each['value']) == (where, repr(value))]
    changed = sum(bool(each['changed']) for each in some)
    rows.append([where, '' if where == 'all' else value, len(some), sum(each['skipped'] for each in some), changed])
  print(campaign.table(['injected into', 'value', 'times', 'skipped', 'state changed'], rows) + '\n')
  rows = []
  for scenario in OBJECTIVES:
    runs = results.of(scenario=scenario)
    ended = len(results.of(scenario=scenario, code=exit_codes.DONE))
    reported = len(results.of(scenario=scenario, reported=True))
    rows.append([scenario, len(runs), ended, reported, sum(record['unexpected'] for record in runs)])
  print(campaign.table(['run', 'runs', 'exit code 0', 'reported the number skipped', 'other steps skipped'], rows))
  wrong = sum(bool(each['changed']) or not each['skipped'] for each in found)
  return wrong + sum(record['code'] != exit_codes.DONE or not record['reported'] for record in results.records)


if __name__ == '__main__':
  campaign.main('nan', __doc__, run, report)
