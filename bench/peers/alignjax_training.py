"""The training step of alignjax in bench.peers.training, built and called as `alignjax train` does it.

  python -m bench.peers.alignjax_training FOLDER [--packed] [--unrolled]

An epoch has the batches that a run would have: in length buckets, or with --packed of packed rows. --unrolled is
--scan_layers=false of `alignjax train`.
"""

import argparse
import dataclasses
import functools

import jax
import numpy as np

from alignjax import objectives, stats
from alignjax.data.batches import batching, packed
from alignjax.data.tokens import dataset
from alignjax.models import checkpoint_io, transformer
from alignjax.optim import recipes, schedules
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import arithmetic
from alignjax.training import forward, instrumentation, placement, programs, references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import BLOCK, PreferenceBatch
from bench.peers import protocol


class Step:
  """The compiled training step with its state."""

  def __init__(self, folder: str, case: protocol.Case, scan_layers: bool):
    self.mesh, self.objective = parallel_mesh.make_mesh(), objectives.parse(f'dpo(beta={case.beta})')
    config = checkpoint_io.load_config(
      f'{folder}/{protocol.POLICY}', compute_dtype=case.dtype, remat='dots', scan_layers=scan_layers
    )
    self.model = transformer.build(config, rules.constraint(self.mesh))
    shardings = rules.param_shardings(self.mesh, jax.eval_shape(self.model.init, jax.random.key(0)))
    params, self.reference = (
      checkpoint_io.load_params(f'{folder}/{name}', config, shardings) for name in (protocol.POLICY, protocol.REFERENCE)
    )
    self.frozen = training_state.Frozen() if case.cached else training_state.Frozen(references.Live(self.reference))
    recipe = recipes.parse_optimizer(f'adamw({case.learning_rate})')
    schedule = schedules.build_schedule('constant', recipe.learning_rate, steps=10**6)
    tx = recipes.build_optimizer(recipe, schedule, gradient_clip=1.0)
    self.state = placement.create_state(self.mesh, params, tx, jax.random.key(0), self.objective.memory.initial)
    step = training_step.build_train_step(Policy(self.model), self.objective, tx, mesh=self.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    self.program = programs.Programs(
      'training step',
      instrumentation.instrumented(step, schedule),
      print,
      donate_argnums=0,
      out_shardings=(shardings, rules.replicated(self.mesh)),
    )

  def __call__(self, batch: PreferenceBatch) -> tuple[float, int]:
    """An update; returns its loss and the number of its pairs."""
    data = placement.to_global(self.mesh, batch)
    self.state, (metrics, _) = jax.block_until_ready(self.program(self.state, self.frozen, data))
    return float(metrics['loss']), int(metrics['prompts'])

  def with_cache(self, batches: list[PreferenceBatch]) -> list[PreferenceBatch]:
    """The batches with what the reference computes of them; forgets the reference."""
    run = jax.jit(functools.partial(forward.hidden_states, self.model))
    needs = [stat for stat in self.objective.needs if stat.reference]
    table = jax.jit(functools.partial(stats.statistics, needs, chunk=1024))
    found = []
    for batch in batches:
      hidden = run(self.reference, batch)
      values = {name: np.asarray(value) for name, value in table(hidden, hidden, batch).values.items()}
      found.append(dataclasses.replace(batch, cached=values))
    del self.reference
    return found


def make_batches(case: protocol.Case, pairs: list[protocol.Pair], pack: bool) -> list[PreferenceBatch]:
  """The batches of an epoch; those of one shape are in the order of the pairs."""
  data = dataset.pack(dataset.TokenExample(pair.prompt, pair.responses) for pair in pairs)
  spec = batching.BatchSpec(case.batch, epochs=1, shuffle=False)
  batches = packed.make_batches(data, spec, packed.Rows()) if pack else batching.make_batches(data, spec)
  return [batch.data for batch in batches]


def work(batch: PreferenceBatch) -> protocol.Work:
  """The work on a batch. Of a packed one, all pairs in the blocks whose attention is computed."""
  if hasattr(batch, 'rows'):
    attended = int((batch.rows.pairs[..., 0] >= 0).sum()) * BLOCK**2
    return protocol.Work(batch.rows.tokens.size, attended, batch.rows.target.size)
  count, prompt = batch.prompt.shape
  responses, length = batch.response.shape[1:]
  return protocol.shared_rows(count, prompt, [length] * responses)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('folder')
  parser.add_argument('--packed', action='store_true')
  parser.add_argument('--unrolled', action='store_true')
  options = parser.parse_args()
  case, pairs = protocol.read(options.folder)
  batches, count = make_batches(case, pairs, options.packed), 0
  turns = protocol.Turns(case.warm_up, len(batches) if case.epoch else 1)
  turns.work = sum(map(work, batches), protocol.Work()) if case.epoch else work(batches[0])
  arithmetic.prepare()
  step = Step(options.folder, case, not options.unrolled)
  if case.cached:
    batches = step.with_cache(batches)
  while turns.begin_step():
    turns.end_step(*step(batches[count % len(batches)]))
    count += 1


if __name__ == '__main__':
  main()
