"""Aligns a real language model on this machine and shows the result.

  make quickstart                                                   the default objective, dpo(beta=0.1)
  OBJECTIVE='simpo(beta=2.0, gamma=0.5) + 0.1 * sft()' make quickstart

Controlled sentiment generation: SmolLM2-135M-Instruct answers everyday prompts, a gold reward (VADER sentiment) picks
the more positive of two answers, and the objective trains the model on these pairs. The model answers held-out prompts
before, during and after training. The folder --workdir receives

  summary.json   results, costs, settings and versions
  figure.png     training curves, and reward against KL
  samples.md     answers before and after, side by side
  pairs.jsonl    the preference pairs
  metrics.jsonl  the metrics of every step
  model/         the aligned model, in Hugging Face layout
"""

from collections.abc import Mapping
import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
from rich import console as rich_console

from alignjax import exit_codes, objectives, rewards, stats
from alignjax.commands import program
from alignjax.data.batches import batching
from alignjax.data.reading import drops, sources
from alignjax.data.tokens import dataset, encoding
from alignjax.evaluation import evaluator
from alignjax.models import checkpoint_io
from alignjax.optim import bases, recipes, schedules
from alignjax.run import costs
from alignjax.training import held_out, hooking, loop, metrics, placement, references, source, state, step
from alignjax.training.policy import Policy
from alignjax.types import Params
from experiments.quickstart import command_line, evaluations, figures, outputs, prompts, responses, shared


def run(settings: command_line.Settings, reward: rewards.Score) -> dict[str, Any]:
  """Runs all stages.

  Args:
    settings: the command-line settings.
    reward: the gold reward.

  Returns:
    The contents of summary.json.

  Raises:
    ValueError: an objective or setting is invalid; raised before anything expensive starts.
  """
  objective = objectives.parse(settings.objective)
  recipe = recipes.parse_optimizer(settings.optimizer)
  if recipe.needs_delta or recipe.averages:
    raise ValueError(f'--optimizer={settings.optimizer}: merging and averaging need `alignjax train`')
  figures.drawing()
  train_prompts, held_out = prompts.split(settings.train_prompts, settings.held_out_prompts)
  console, clock = rich_console.Console(), costs.Clock()
  with clock('load'):
    setup = shared.set_up(settings, reward, train_prompts + held_out)
    responder = setup.responder(settings.group, settings.samples)
  console.print(
    f'objective  {objective.name}\nmodel      {setup.folder}, computed in {setup.config.compute_dtype}', soft_wrap=True
  )
  draw_key, evaluation_key, state_key = jax.random.split(jax.random.key(settings.seed), 3)
  with clock('sample'), console.status('sampling answers to the training prompts'):
    drawn = responder.draw(setup.reference, train_prompts, draw_key, settings.draws)
  with clock('evaluate'), console.status('sampling answers to the held-out prompts'):
    before = responder.draw(setup.reference, held_out, evaluation_key)
  data = {
    'train': _make_pairs(setup, console, 'pairs', drawn, settings.pairs_per_prompt),
    'held_out': _make_pairs(setup, console, 'pairs_held_out', before, 1),
  }
  evaluated = evaluations.Evaluations(responder, setup.reference, before, evaluation_key, clock, console)
  with clock('train'):
    params = _train(setup, objective, recipe, data, state_key, evaluated)
  with clock('report'):
    checkpoint_io.save(setup.workdir / 'model', setup.config, params, assets_from=setup.folder)
    results = _results(setup, drawn, evaluated)
    _show(setup, objective, params, evaluated)
  return outputs.report(setup, objective.name, results, clock, console)


def _make_pairs(
  setup: shared.Setup, console: rich_console.Console, name: str, drawn: responses.Drawn, per_prompt: int
) -> dataset.TokenDataset:
  """Writes pairs to a file and reads them back like any other preference data."""
  path = setup.workdir / f'{name}.jsonl'
  ties = responses.write_pairs(path, drawn, per_prompt)
  report = drops.DropReport()
  # A response that was cut off while sampling is trained without an end token.
  limits = encoding.Limits(*setup.shape, setup.config.vocab_size, truncate_response=True)
  tokenized = encoding.tokenize(sources.read_examples(path, report), setup.tokenizer, limits, report)
  console.print(
    f'{path}: {len(tokenized)} pairs; left out: {ties} ties, {report.read - report.kept} unfit', highlight=False
  )
  return tokenized


def _train(
  setup: shared.Setup,
  objective: objectives.Objective,
  recipe: bases.Recipe,
  data: Mapping[str, dataset.TokenDataset],
  key: jax.Array,
  evaluated: evaluations.Evaluations,
) -> Params:
  """Trains one epoch on the training pairs; returns the parameters."""
  settings, mesh = setup.settings, setup.mesh

  def batches(name: str, epochs: int | None) -> batching.Batches:
    spec = batching.BatchSpec(
      settings.batch_size, seed=settings.seed, epochs=epochs, buckets=[setup.shape], shuffle=name == 'train'
    )
    return batching.make_batches(data[name], spec)

  train = batches('train', None)
  steps = train.plan.steps_per_epoch
  every = -(-steps // settings.evaluations)
  schedule = schedules.build_schedule('linear', recipe.learning_rate, steps=steps, warmup=min(4, steps))
  tx = recipes.build_optimizer(recipe, schedule, settings.gradient_clip)
  needs_reference = bool(stats.missing_reference(objective.needs, ()))
  update = step.build_train_step(Policy(setup.model), objective, tx, chunk=responses.CHUNK, mesh=mesh)
  frozen = state.Frozen(references.Live(setup.reference) if needs_reference else references.NotLoaded())
  writers = [metrics.JsonlWriter(setup.workdir / 'metrics.jsonl'), metrics.ConsoleWriter(steps, every=4)]
  try:
    result = loop.train(
      placement.create_state(mesh, jax.tree.map(jnp.copy, setup.reference), tx, key, objective.memory.initial),
      source.GrainSource(iter(train)),
      loop.Training(update, frozen, mesh, steps, schedule),
      log=loop.Logging(writers, origin=data['train'].origin),
      evaluation=held_out.Evaluation(
        step.build_eval_step(Policy(setup.model), objective, chunk=responses.CHUNK, mesh=mesh),
        batches('held_out', 1),
        summary=objective.summary,
        pool=step.build_pool_step(Policy(setup.model), objective, chunk=responses.CHUNK, mesh=mesh),
      ),
      hooks=[hooking.at({*range(every, steps, every), steps}, evaluated)],
    )
  finally:
    for writer in writers:
      writer.close()
  if result.preempted:
    sys.exit('quickstart: stopped by SIGTERM')
  return result.state.params


def _results(setup: shared.Setup, drawn: responses.Drawn, evaluated: evaluations.Evaluations) -> dict[str, Any]:
  """The reproducible part of the summary: equal in all runs with the same settings."""
  records = metrics.read_jsonl(setup.workdir / 'metrics.jsonl')
  return {
    'gold_reward_of_training_samples': dataclasses.asdict(evaluator.clustered_mean(drawn.rewards)),
    **outputs.compare(evaluated.before, evaluated.after, evaluated.kl),
    'reward_accuracy': records[-1].get('eval/reward_accuracy'),
    'steps': records[-1]['step'],
    'frontier': [dataclasses.asdict(point) for point in evaluated.points],
  }


def _show(
  setup: shared.Setup, objective: objectives.Objective, params: Params, evaluated: evaluations.Evaluations
) -> None:
  """Draws the figure, and writes greedy answers before and after training side by side."""
  before, after = evaluated.before, evaluated.after
  title = outputs.title(objective.name, before, after)
  # Other records hold only evaluations.
  steps = [record for record in metrics.read_jsonl(setup.workdir / 'metrics.jsonl') if 'loss' in record]
  panels = [
    figures.loss(steps),
    figures.sides(steps),
    figures.tradeoff(evaluated.points),
    figures.histogram(before.rewards, after.rewards),
  ]
  figures.save(setup.workdir / 'figure.png', title, panels)
  outputs.write_samples(setup, title, before.prompts, params)


PROGRAM = program.Program(
  'quickstart',
  __doc__,
  command_line.Settings,
  lambda settings: run(settings, rewards.vader()) and exit_codes.DONE,
  codes={**dict.fromkeys(program.EXPECTED, exit_codes.REFUSED), loop.NonFiniteError: exit_codes.NOT_FINITE},
)


def start() -> None:
  """The program."""
  program.start(PROGRAM)
