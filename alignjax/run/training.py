"""A training run from its configuration: prepare, restore, examine, train, export."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import itertools
import pathlib

import jax

from alignjax import paths, refusals, stopping, storage
from alignjax.optim import recipes, schedules
from alignjax.planning import utilisation
from alignjax.run import (
  about,
  agreement,
  examination,
  exports,
  fields,
  first_start,
  locations,
  model_card,
  on_policy,
  places,
  preparation,
  profiling,
  record,
  recovery,
  reward_scales,
  rollout_source,
  settings,
  trackers,
  uploads,
)
from alignjax.training import checkpoint, held_out, loop, metrics, mirror, owner, placement, processes, watchdog
from alignjax.training import state as training_state
from alignjax.training import step as training_step


def announce(text: str) -> None:
  """Prints a line on process 0."""
  if jax.process_index() == 0:
    print(text, flush=True)


def train(config: settings.Config) -> loop.Result:
  """Trains, or resumes an earlier run in the same work directory.

  Raises:
    Refused: the configuration, the model or the data cannot be used, or another run owns the work directory.
    NonFiniteError: the loss or the gradient is not finite.
    SaveError: a checkpoint cannot be written.
    ExportError: the run is trained and saved, but the model cannot be written.
    Stopped: SIGTERM or Ctrl-C came before the first step, or after the last one was saved.
  """
  with watchdog.watching(dataclasses.asdict(config.watch)), refusals.checking() as checks:
    settings.require(config, 'workdir', 'model', *([] if config.prompts else ['data']))
    with owner.owned(paths.path(config.workdir)) as claim:
      config = first_start.settled(config)
      with places.on_disk(config, announce) as on_disk:
        preparation.check_settings(on_disk)
        return _train(locations.with_paths(on_disk), config, checks, claim)


def _train(config: settings.Config, given: settings.Config, checks: refusals.Checks, claim: owner.Claim) -> loop.Result:
  """Trains with the paths of `config`, which are on this disk, and records those of `given`."""
  check = functools.partial(agreement.check, config, workdir_id=claim.seen())
  prepared = preparation.prepare(config, announce, check)
  recipe, objective = prepared.recipe, prepared.objective
  steps = config.steps or _steps(config, prepared)
  if steps > fields.LARGEST:
    raise ValueError(f'config.epochs = {config.epochs}: {steps:,} steps are more than {fields.LARGEST:,}')
  warmup = schedules.warmup_steps(config.warmup, steps)
  schedule = schedules.build_schedule(config.schedule, recipe.learning_rate, steps=steps, warmup=warmup)
  tx = recipes.build_optimizer(recipe, schedule, config.gradient_clip)
  identity = record.identity(config, prepared)
  workdir = paths.path(config.workdir)
  records = exports.Records(
    functools.partial(model_card.render, dataclasses.asdict(given), workdir),
    functools.partial(reward_scales.after, workdir),
  )
  origin = exports.Origin(config.model, identity['model_fingerprint'], prepared.policy, recipe.averages, records)
  if config.doctor != 'off' and (line := examination.verdict(config, prepared)):
    announce(line)
  batch_source = rollout_source.configured(config, prepared, workdir / 'rollouts', announce)
  key = jax.random.key(config.seed)
  with checkpoint.Checkpoints(
    workdir / 'checkpoints',
    config=dataclasses.asdict(given),
    identity=identity,
    keep=config.keep,
    accepted=record.accepted(config, identity),
  ) as checkpoints:
    try:
      like = placement.abstract_state(prepared.mesh, prepared.trained, tx, key, objective.memory.initial)
      restored = recovery.restore(checkpoints, like, batch_source)
    except checkpoint.MismatchError as error:
      raise record.explain(error, identity, config) from error
    base = preparation.load_base(config, prepared)
    if restored is not None:
      prepared.weights.check(restored.loaded, restored.config)
    owed = restored is not None and _evaluation_owed(config, prepared, restored.step, steps)
    if restored is None:
      params = preparation.initial_params(config, prepared)
      state = placement.create_state(prepared.mesh, params, tx, key, objective.memory.initial)
      del params
    else:
      state = restored.state
      announce(f'resuming from step {restored.step} in {workdir}')
      record.warn_of_changes(restored, given)
      if restored.step >= steps and not owed:
        announce(f'this run is finished: it has done {restored.step} of {steps} steps')
        exports.export(workdir, origin, state, base, announce)
        uploads.upload(config.push_to_hub, workdir / 'model', announce)
        return loop.Result(state, restored.step, False, 0)
    frozen = preparation.load_frozen(config, prepared, base)
    if restored is not None:
      prepared.weights.check(restored.loaded, restored.config)
    checkpoints.loaded = prepared.weights.sums()
    announce(summary := record.summary(given, prepared, steps))
    if prepared.prompts is not None:
      (batch_source.drawn if prepared.joint else batch_source).frozen = frozen
    found = None
    if restored is None and config.doctor != 'off':
      examined = rollout_source.first_round(config, prepared, batch_source, state)
      found = examination.examine(config, examined, state, frozen)
      examination.report(found, stop=config.doctor == 'stop', notes=False, announce=announce)
    if restored is None and jax.process_index() == 0:
      doctor = None if found is None else [each._asdict() for each in found]
      about.write(workdir, summary=summary, doctor=doctor, steps=steps, devices=about.devices())
    record.write_config(workdir, given)
    step = rollout_source.build_step(config, prepared, tx)
    times = utilisation.of_run(config, prepared)

    def attempt(state: training_state.TrainState, resumed_at: int | None) -> loop.Result:
      checks.over = True
      evaluation = _evaluation(prepared, config.chunk, config.eval_every)
      if owed and resumed_at == restored.step:
        evaluation = dataclasses.replace(evaluation, owed=True)
      profiler = profiling.Profiler(profiling.parse(config.profile_steps), workdir, announce)
      with _writers(given, workdir, resumed_at, steps) as (writers, flush), profiler:

        def confirm() -> None:
          flush()  # metrics before the checkpoint, which may be all that is left of the run
          claim.confirm()

        return loop.train(
          state,
          batch_source,
          loop.Training(step, frozen, prepared.mesh, steps, schedule, config.nonfinite_limit),
          log=loop.Logging(writers, announce, prepared.training.data.origin, times),
          evaluation=evaluation,
          saving=loop.Saving(checkpoints, config.save_every, confirm, config.save_minutes),
          hooks=profiler.hooks,
        )

    if restored is None:
      result = attempt(state, None)
    else:
      again = functools.partial(recovery.restore, checkpoints, like, batch_source)
      result = recovery.resume(attempt, restored, checkpoints, again)
    saved = f'saved at step {result.step}' if result.step in checkpoints.steps() else 'nothing to save yet, at step 0'
  if result.preempted:
    announce(f'stopped on request: {saved} of {steps}. The same command resumes the run')
  else:
    announce(f'finished {result.step} steps, with {result.compilations} compiled programs')
    if skipped := int(result.state.skips.total):
      announce(f'skipped {skipped} of {result.step} batches, because their loss or gradient was not finite')
    stopping.check()
    claim.confirm()
    exports.export(workdir, origin, result.state, base, announce)
    uploads.upload(config.push_to_hub, workdir / 'model', announce)
  return result


def _steps(config: settings.Config, prepared: preparation.Prepared) -> int:
  """The updates of a run that is given in epochs."""
  if prepared.prompts is not None and not prepared.joint:
    return on_policy.steps(config, len(prepared.training.data))
  return (config.epochs or 1) * prepared.training.batches.plan.steps_per_epoch


def _evaluation_owed(config: settings.Config, prepared: preparation.Prepared, step: int, steps: int) -> bool:
  """Whether SIGTERM has cut the evaluation after a step short, so that its record has no results."""
  due = step == steps or (config.eval_every and step % config.eval_every == 0)
  if prepared.held_out is None or not due:
    return False
  file = paths.path(config.workdir) / 'metrics.jsonl'

  def without_results(alive: storage.Tick) -> str:
    del alive
    records = metrics.read_jsonl(file) if file.exists() else []
    names = [record.keys() for record in records if record['step'] == step]
    return 'owed' if names and not any(name.startswith('eval/') for name in itertools.chain(*names)) else ''

  return bool(processes.from_first(without_results))


@contextlib.contextmanager
def _writers(
  config: settings.Config, workdir: pathlib.Path, resumed_at: int | None, steps: int
) -> Iterator[tuple[list[metrics.Writer], Callable[[], None]]]:
  """The writers of a run, and a function that makes their files complete."""
  name = config.run_name or pathlib.PurePath(config.workdir).name
  shown = trackers.Run(config.tracker_project, name, dataclasses.asdict(config))
  with contextlib.ExitStack() as stack:
    copy = stack.enter_context(mirror.mirrored(workdir, ['metrics.jsonl']))
    writers = [
      metrics.JsonlWriter(copy.local / 'metrics.jsonl', resumed_at),
      metrics.TensorBoardWriter(copy.local / 'tensorboard', resumed_at),
      copy,
      metrics.ConsoleWriter(steps, config.log_every),
      *trackers.writers(config.trackers, shown, workdir, resumed_at),
    ]
    for writer in reversed(writers):
      stack.callback(writer.close)
    yield writers, copy.flush


def _evaluation(prepared: preparation.Prepared, chunk: int, every: int) -> held_out.Evaluation | None:
  if prepared.held_out is None:
    return None
  objective = prepared.objective
  step, pool = (
    build(prepared.policy, objective, chunk=chunk, mesh=prepared.mesh)
    for build in (training_step.build_eval_step, training_step.build_pool_step)
  )
  return held_out.Evaluation(step, prepared.held_out.batches, every, objective.summary, pool=pool)
