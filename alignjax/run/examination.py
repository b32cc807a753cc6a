"""Examines a whole run before it trains: its tokenizer, data, models and memory."""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
import tempfile

import jax
import optax

from alignjax.data.batches import order
from alignjax.doctor import (
  batches,
  consistency,
  declarations,
  embeddings,
  examples,
  findings,
  memory,
  rollouts,
  start,
  tokenizers,
)
from alignjax.models import checkpoint_io, fingerprints, transformer
from alignjax.optim import recipes, schedules
from alignjax.parallel import rules
from alignjax.planning import memory as planned_memory
from alignjax.planning import program as planned_program
from alignjax.run import agreement, first_start, inputs, locations, preparation, rollout_source, settings
from alignjax.training import placement
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.types import PreferenceBatch


def examine(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
) -> list[findings.Finding]:
  """Examines a run that is about to begin.

  Args:
    config: the models, the data and how the run computes.
    prepared: the result of `preparation.prepare`.
    state: the state before the first update.
    frozen: the arrays that the step only reads.
  """
  planned, available = plan(config, prepared), memory.of_device(jax.local_devices()[0])
  parts = memory.of_state(state, frozen) if planned is None else list(planned.parts.items())
  return [
    *_examine_arrays(config, prepared, state, frozen),
    *memory.examine(parts, available, 0.0 if planned is None else planned_memory.ERROR),
  ]


def plan(config: settings.Config, prepared: preparation.Prepared) -> planned_memory.Estimate | None:
  """Estimates the memory of a training step on the largest batch shape, as `alignjax plan` does.

  Returns None for what the planner does not cover: packed rows, and responses that the policy draws.
  """
  buckets = planned_program.shapes_of(prepared)
  return planned_memory.estimate(planned_program.of_run(config, prepared, buckets), config) if buckets else None


def verdict(config: settings.Config, prepared: preparation.Prepared) -> str:
  """A line on the planned memory of a run, before its weights are loaded; '' if it is not known."""
  planned, available = plan(config, prepared), memory.of_device(jax.local_devices()[0])
  if planned is None or available is None:
    return ''
  return (
    f'memory     {memory.in_units(planned.peak)} of {memory.in_units(available)} planned on each device: '
    f'{planned.verdict(available)}'
  )


def examine_thoroughly(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
) -> list[findings.Finding]:
  """Runs the checks of `examine`, and those that compile more programs.

  The latter are: sampling against training, the compute dtype against float32, and the memory of the compiled step.
  """
  batch = _first_batch(prepared)
  subject = consistency.Subject(prepared.policy, state.params, frozen, batch)
  found = _examine_arrays(config, prepared, state, frozen)
  predicts = prepared.policy.model.config.output != 'score'  # otherwise there are no log-probabilities to compare
  if predicts:
    found += consistency.examine_sampling(subject, jax.random.key(config.seed), compute_dtype=config.compute_dtype)
  if predicts and config.compute_dtype != 'float32':
    exact = dataclasses.replace(prepared.policy.model.config, compute_dtype='float32', attention='xla')
    exact = transformer.build(exact, rules.constraint(prepared.mesh))
    exact = dataclasses.replace(prepared.policy, model=exact)
    found += consistency.examine_precision(subject, exact, chunk=config.chunk)
  step = _compile_step(config, prepared, state, frozen, batch)
  needed = memory.of_program(step) or memory.of_state(state, frozen)
  return [*found, *memory.examine(needed, memory.of_device(jax.local_devices()[0]))]


def examine_data(prepared: preparation.Prepared) -> list[findings.Finding]:
  """Examines tokenizer, data and objective. No weights are needed."""
  training, held_out = prepared.training, prepared.held_out
  drawn = prepared.prompts is not None and not prepared.joint
  model = prepared.policy.model.config
  found = [
    *tokenizers.examine(prepared.tokenizer, vocab_size=model.vocab_size),
    *examples.examine(
      training.data, prepared.tokenizer, vocab_size=model.vocab_size, max_positions=model.max_positions
    ),
    *batches.examine(training.batches.plan, training.data),
    *declarations.examine_coupling(prepared.objective, training.data.responses),
    *declarations.examine_batch_size(prepared.objective, training.batches.plan.batch_size),
    *declarations.examine_samples(prepared.objective, on_policy=drawn),
  ]
  if drawn:
    found = rollouts.examine(found)
  split = [] if held_out is None else examples.examine_split(training.data, held_out.data)
  return [*declarations.relevant(found, prepared.objective), *split]


def report(found: Sequence[findings.Finding], *, stop: bool, notes: bool, announce: inputs.Announce) -> None:
  """Announces findings, the worst first, and how many there are of each severity.

  Args:
    found: the findings.
    stop: whether to raise if there are errors.
    notes: whether to announce notes; otherwise they are only counted.
    announce: called with each line.

  Raises:
    ValueError: if there are errors and `stop` is true.
  """
  for finding in findings.worst_first(found):
    if notes or finding.severity != findings.NOTE:
      announce(f'doctor     {finding}')
  counts = collections.Counter(finding.severity for finding in found)
  total = ', '.join(f'{counts[severity]} {severity}s' for severity in findings.SEVERITIES)
  announce(f'doctor     {total}' + ('' if notes else ' (alignjax doctor with these settings reports more)'))
  errors = [finding for finding in found if finding.severity == findings.ERROR]
  if errors and stop:
    listed = '\n'.join(f'  {finding.name}: {finding.seen}. {finding.advice}' for finding in errors)
    raise ValueError(f'the doctor found errors, so nothing was trained (--doctor=warn trains anyway):\n{listed}')


def build_optimizer(prepared: preparation.Prepared) -> optax.GradientTransformation:
  """The optimizer of a run at its highest learning rate, without gradient clipping, which changes no state."""
  rate = schedules.build_schedule('constant', prepared.recipe.learning_rate, steps=1, warmup=0)
  return recipes.build_optimizer(prepared.recipe, rate)


def stops(config: settings.Config, announce: inputs.Announce) -> bool:
  """Examines a run thoroughly, announces every finding, and returns whether errors would stop the run."""
  preparation.check_settings(config)
  config = locations.with_paths(first_start.settled(config))
  prepared = preparation.prepare(config, announce, functools.partial(agreement.check, config))
  base, params = preparation.load_base(config, prepared), preparation.initial_params(config, prepared)
  key = jax.random.key(config.seed)
  state = placement.create_state(
    prepared.mesh, params, build_optimizer(prepared), key, prepared.objective.memory.initial
  )
  frozen = preparation.load_frozen(config, prepared, base)
  with tempfile.TemporaryDirectory() as folder:
    if prepared.prompts is not None and not prepared.joint:
      batches = rollout_source.build(config, prepared, pathlib.Path(folder), announce)
      batches.frozen = frozen
      prepared = rollout_source.with_first_round(config, prepared, batches, state)
    found = examine_thoroughly(config, prepared, state, frozen)
  report(found, stop=False, notes=True, announce=announce)
  errors = any(finding.severity == findings.ERROR for finding in found)
  return errors and config.doctor == 'stop'


def _examine_arrays(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
) -> list[findings.Finding]:
  """Examines everything except memory."""
  table = (state.params if frozen.base is None else frozen.base)['embed']['embedding']
  reference = prepared.reference.folder if prepared.reference.needed else config.model
  return [
    *examine_data(prepared),
    *_examine_start(config, prepared, state, frozen),
    *start.examine_dtypes(checkpoint_io.stored_dtypes(config.model), checkpoint_io.stored_dtypes(reference)),
    *embeddings.examine(table, prepared.training.data, prepared.tokenizer, prepared.mesh),
  ]


def _examine_start(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
) -> list[findings.Finding]:
  measure = start.build_measurement(prepared.policy, prepared.objective, chunk=config.chunk, mesh=prepared.mesh)
  measure = jax.jit(measure, out_shardings=rules.replicated(prepared.mesh))
  frozen = dataclasses.replace(frozen, memory=state.memory, step=state.updates)
  values = measure(state.params, frozen, _first_batch(prepared))
  folder = prepared.reference.folder
  return start.examine(
    {name: value.item() for name, value in jax.device_get(values).items()},
    same_model=fingerprints.of(folder) == fingerprints.of(config.model),
    compute_dtype=config.compute_dtype,
    vocab_size=prepared.policy.model.config.vocab_size,
    reference=config.reference_cache or folder,
  )


def _first_batch(prepared: preparation.Prepared) -> PreferenceBatch:
  return placement.to_global(prepared.mesh, next(iter(prepared.training.batches)).data)


def _compile_step(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
  batch: PreferenceBatch,
) -> jax.stages.Compiled:
  """Compiles the training step for the largest batch shape."""
  step = training_step.build_train_step(
    prepared.policy,
    prepared.objective,
    build_optimizer(prepared),
    chunk=config.chunk,
    microbatches=config.microbatches,
    mesh=prepared.mesh,
  )
  plan = prepared.training.batches.plan
  largest = memory.abstract_batch(batch, plan.buckets[-1]) if isinstance(plan, order.Plan) else batch
  places = jax.tree.map(lambda leaf: leaf.sharding, state), rules.replicated(prepared.mesh)
  return jax.jit(step, donate_argnums=0, out_shardings=places).lower(state, frozen, largest).compile()
