"""Aligns a language model with preference pairs.

  python -m experiments.train --model=models/smollm2 --data=train.jsonl --objective='dpo(beta=0.1)' --workdir=runs/first

The work directory gets config.json (the resolved configuration), metrics.jsonl and TensorBoard events, checkpoints, and
at the end, in Hugging Face layout, the aligned model in model/, its average in model_average/ if the optimizer keeps
one, and the adapter in adapter/ if one is trained. The same command again resumes an interrupted run, or says that it
is finished. On SIGTERM the run saves itself and leaves.

Exit codes: 0 done; 1 an error in configuration, data or numerics, for which a restart is no help; 42 told to stop, and
saved: start again; 134 a crash.

The settings below can be given in a file, --config=path.py, whose get_config() returns what
`experiments.config.config_dict` makes, and changed one by one, --config.batch_size=16:

"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import app, flags, logging
import jax

from alignjax.commands import doctor
from alignjax.data.batches import batching
from alignjax.data.tokens import dataset
from alignjax.optim import recipes, schedules
from alignjax.run import adapters, command_line, exports, inputs, preparation, settings
from alignjax.training import checkpoint, loop, metrics, placement, source
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib

DONE, REFUSED, PREEMPTED, CRASHED = 0, 1, 42, 134


def run(config: settings.Config) -> loop.Result:
  """Trains as configured, or goes on where an earlier run of the same work directory stopped.

  Raises:
    ValueError: for what is wrong with the configuration, the model or the data.
    NonFiniteError: if the loss or the gradient is not finite.
  """
  preparation.require(config, 'workdir')
  prepared = preparation.prepare(config, _announce)
  recipe, objective, mesh, policy = prepared.recipe, prepared.objective, prepared.mesh, prepared.policy
  data, batches, _ = prepared.training
  steps = config.steps or (config.epochs or 1) * batches.plan.steps_per_epoch
  schedule = schedules.build_schedule(
    config.schedule, recipe.learning_rate, steps=steps, warmup=round(config.warmup * steps)
  )
  tx = recipes.build_optimizer(recipe, schedule, config.gradient_clip)
  folders = {'model': config.model}
  if prepared.reference.needed:
    folders['reference'] = prepared.reference.folder
  if recipe.needs_delta:
    folders['base_model'] = config.base_model
  identity = _identity(config, data, batches, folders)
  workdir = pathlib.Path(config.workdir)
  batch_source = source.GrainSource(iter(batches))
  key = jax.random.key(config.seed)
  with checkpoint.Checkpoints(
    workdir / 'checkpoints', config=dataclasses.asdict(config), identity=identity, keep=config.keep
  ) as checkpoints:
    like = placement.abstract_state(mesh, prepared.trained, tx, key, objective.memory.initial)
    restored = _restore(checkpoints, like, batch_source, config)
    base = preparation.load_base(config, prepared)
    if restored is None:
      params = preparation.initial_params(config, prepared)
      state = placement.create_state(mesh, params, tx, key, objective.memory.initial)
      del params
    else:
      state = restored.state
      _announce(f'resuming from step {restored.step} in {workdir}')
      _warn_of_changes(restored.config, config)
      if restored.step >= steps:
        _announce(f'this run is finished: {restored.step} of {steps} steps are done')
        exports.export(policy, state, base, config, recipe, _announce)
        return loop.Result(state, restored.step, False, 0)
    frozen = preparation.load_frozen(config, prepared, base)
    _announce(_summary(config, prepared, steps))
    if restored is None and config.doctor != 'off':
      found = doctor.examine(config, prepared, state, frozen)
      doctor.report(found, stop=config.doctor == 'stop', notes=False, announce=_announce)
    _write_config(workdir, config)
    resumed_at = None if restored is None else restored.step
    writers = [
      metrics.JsonlWriter(workdir / 'metrics.jsonl', resumed_at),
      metrics.TensorBoardWriter(workdir / 'tensorboard', resumed_at),
      metrics.ConsoleWriter(steps, config.log_every),
    ]
    try:
      step = step_lib.build_train_step(
        policy, objective, tx, chunk=config.chunk, microbatches=config.microbatches, mesh=mesh
      )
      result = loop.train(
        state,
        batch_source,
        loop.Training(step, frozen, mesh, steps, schedule),
        log=loop.Logging(writers, _announce, data.origin),
        evaluation=_evaluation(config, prepared),
        saving=loop.Saving(checkpoints, config.save_every),
      )
    finally:
      for writer in writers:
        writer.close()
  if result.preempted:
    _announce(f'told to stop: saved at step {result.step} of {steps}. The same command goes on from there')
  else:
    _announce(f'{result.step} steps are done, with {result.compilations} compiled programs')
    exports.export(policy, result.state, base, config, recipe, _announce)
  return result


def _evaluation(config: settings.Config, prepared: preparation.Prepared) -> loop.Evaluation | None:
  if prepared.held_out is None:
    return None
  step = step_lib.build_eval_step(prepared.policy, prepared.objective, chunk=config.chunk, mesh=prepared.mesh)
  return loop.Evaluation(step, prepared.held_out.batches, config.eval_every, prepared.objective.summary)


def _restore(
  checkpoints: checkpoint.Checkpoints, like: state_lib.TrainState, batches: source.Source, config: settings.Config
) -> checkpoint.Restored | None:
  """Reads the newest checkpoint. If it does not fit, and the optimizer is another, that is likely to be why."""
  try:
    return checkpoints.restore(like, batches)
  except checkpoint.MismatchError as error:
    before = error.config.get('optimizer')
    if before == config.optimizer:
      raise
    raise ValueError(
      f'config.optimizer was {before!r} and is now {config.optimizer!r}. Numbers in it may change when a run '
      f'resumes, but not what it keeps from step to step: {error}'
    ) from error


def _identity(
  config: settings.Config, data: dataset.TokenDataset, batches: batching.Batches, folders: Mapping[str, str]
) -> dict[str, Any]:
  """What has to be the same for a run to be resumed."""
  values = settings.flat(config)
  identity = {name: values[name] for name, kind in settings.on_resume().items() if kind == settings.IDENTITY}
  identity['buckets'] = batches.plan.buckets  # those chosen from the data too
  identity['data_fingerprint'] = data.fingerprint
  return identity | {f'{name}_fingerprint': inputs.fingerprint(folder) for name, folder in folders.items()}


def _warn_of_changes(saved: Any, config: settings.Config) -> None:
  before, now = settings.flat(settings.from_dict(saved)), settings.flat(config)
  for name, kind in settings.on_resume().items():
    if kind == settings.WARNS and before[name] != now[name]:
      logging.warning('config.%s was %r and is now %r: the curve is not that of one run', name, before[name], now[name])


def _write_config(workdir: pathlib.Path, config: settings.Config) -> None:
  if jax.process_index() == 0:
    partial = workdir / 'config.json.partial'
    partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + '\n', encoding='utf-8')
    os.replace(partial, workdir / 'config.json')


def _summary(config: settings.Config, prepared: preparation.Prepared, steps: int) -> str:
  recipe, mesh, plan = prepared.recipe, prepared.mesh, prepared.training.batches.plan
  count = sum(leaf.size for leaf in jax.tree.leaves(prepared.shapes))
  axes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
  delta = f', delta to {config.base_model} in {config.delta_dtype}' if recipe.needs_delta else ''
  return '\n'.join(
    [
      f'objective  {config.objective}',
      f'model      {config.model}, {count:,} parameters, computed in {config.compute_dtype}',
      *([f'adapter    {adapters.describe(config, prepared.trained)}'] if config.adapter else []),
      f'optimizer  {config.optimizer}{delta}',
      f'devices    {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {axes}, processes {jax.process_count()}',
      f'batches    {config.batch_size} prompts in {config.microbatches} microbatches, shapes {list(plan.buckets)}, '
      f'{plan.steps_per_epoch} an epoch, {plan.padding_rows} padding rows',
      f'steps      {steps}, learning rate {recipe.learning_rate:g} {config.schedule}, warm-up {config.warmup:.0%}',
    ]
  )


def _announce(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)


def attempt(start: Callable[[], loop.Result]) -> int:
  """Runs, tells what went wrong, and returns the exit code."""
  try:
    return PREEMPTED if start().preempted else DONE
  except (ValueError, OSError, loop.NonFiniteError) as error:
    logging.debug('%s', traceback.format_exc())
    print(f'error: {error}\n(--verbosity=1 shows where)', file=sys.stderr)
    return REFUSED
  except Exception:  # whatever it is, the launcher must see that a restart may help
    traceback.print_exc()
    return CRASHED


def main(argv: Sequence[str]) -> None:
  command_line.begin(argv)
  code = attempt(lambda: run(command_line.resolve()))
  if code in (REFUSED, CRASHED) and flags.FLAGS.num_processes > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly exit would wait for the others, which may be waiting for this process
  sys.exit(code)


def start() -> None:
  """The program; flags are defined here and not on import, because they are global."""
  sys.modules['__main__'].__doc__ = __doc__ + settings.describe_fields()
  command_line.define_flags()
  app.run(main, flags_parser=command_line.parse)
