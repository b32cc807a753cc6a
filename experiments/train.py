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

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from alignjax import stats
from alignjax.data import batching, pairs, sources, tokenization
from alignjax.data import report as report_lib
from alignjax.models import base as models
from alignjax.models import checkpoint_io, transformer
from alignjax.models import lora as lora_lib
from alignjax.parallel import distributed, rules
from alignjax.parallel import mesh as mesh_lib
from alignjax.training import checkpoint, loop, metrics, optimizer, placement
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from experiments import adapters, exports, expressions, optimizers
from experiments import config as config_lib

DONE, REFUSED, PREEMPTED, CRASHED = 0, 1, 42, 134

# Settings with a flag of their own, because nearly every run gives them.
SHORT = ('model', 'reference', 'base_model', 'data', 'eval_data', 'objective', 'optimizer', 'adapter', 'workdir')


def run(config: config_lib.Config) -> loop.Result:
  """Trains as configured, or goes on where an earlier run of the same work directory stopped.

  Raises:
    ValueError: for what is wrong with the configuration, the model or the data.
    NonFiniteError: if the loss or the gradient is not finite.
  """
  for name in ('model', 'data', 'workdir'):
    if not getattr(config, name):
      raise ValueError(f'config.{name} is missing: give --{name}=...')
  objective = expressions.parse_objective(config.objective)
  recipe = _recipe(config)
  model_config = checkpoint_io.load_config(
    config.model,
    compute_dtype=config.compute_dtype,
    remat=config.remat,
    scan_layers=config.scan_layers,
    attention=config.attention,
  )
  lora = adapters.configured(config, recipe, model_config)
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  data = _read(config.data, config, model_config.vocab_size)
  batches = _batches(data, config, mesh, shuffle=True)
  steps = config.steps or (config.epochs or 1) * batches.plan.steps_per_epoch
  schedule = optimizer.build_schedule(
    config.schedule, recipe.learning_rate, steps=steps, warmup=round(config.warmup * steps)
  )
  tx = optimizers.build_optimizer(recipe, schedule, config.gradient_clip)
  model = transformer.build(model_config, rules.activation_constraint(mesh))
  folders = {'model': config.model}
  if stats.missing_reference(objective.needs, ()):
    folders['reference'] = config.reference or config.model
  if recipe.needs_delta:
    folders['base_model'] = config.base_model
  identity = _identity(config, data, batches, folders)
  workdir = pathlib.Path(config.workdir)
  key = jax.random.key(config.seed)
  shapes = jax.eval_shape(model.init, key)
  shardings = rules.param_shardings(mesh, shapes)
  trained = adapters.trained(lora, shapes)
  iterator = iter(batches)
  with checkpoint.Checkpoints(
    workdir / 'checkpoints', config=dataclasses.asdict(config), identity=identity, keep=config.keep
  ) as checkpoints:
    like = placement.abstract_state(mesh, trained, tx, key, objective.memory.initial)
    restored = _restore(checkpoints, like, iterator, config)
    base = adapters.load_base(lora, config, model_config, mesh)
    if restored is None:
      params = adapters.initial_params(lora, config, model_config, mesh, jax.random.fold_in(key, 0))
      state = placement.create_state(mesh, params, tx, key, objective.memory.initial)
      del params
    else:
      state = restored.state
      _announce(f'resuming from step {restored.step} in {workdir}')
      _warn_of_changes(restored.config, config)
      if restored.step >= steps:
        _announce(f'this run is finished: {restored.step} of {steps} steps are done')
        exports.export(workdir, model_config, state, config, recipe, _announce, lora, base)
        return loop.Result(state, restored.step, False, 0)
    _write_config(workdir, config)
    reference = delta = None
    if 'reference' in folders and not (lora and folders['reference'] == config.model):  # else the base is the reference
      reference = checkpoint_io.load_params(folders['reference'], model_config, shardings)
    if recipe.needs_delta:
      places = placement.in_host_memory(shardings) if config.delta_memory == 'host' else shardings
      delta = checkpoint_io.delta_from(config.model, config.base_model, model_config, places, config.delta_dtype)
    _announce(_summary(config, recipe, mesh, shapes, trained, batches, steps))
    resumed_at = None if restored is None else restored.step
    writers = [
      metrics.JsonlWriter(workdir / 'metrics.jsonl', resumed_at),
      metrics.TensorBoardWriter(workdir / 'tensorboard', resumed_at),
      metrics.ConsoleWriter(steps, config.log_every),
    ]
    try:
      result = loop.train(
        state,
        state_lib.Frozen(reference=reference, delta=delta, base=base),
        step_lib.build_train_step(
          model, objective, tx, lora=lora, chunk=config.chunk, microbatches=config.microbatches, mesh=mesh
        ),
        iterator,
        mesh=mesh,
        steps=steps,
        schedule=schedule,
        writers=writers,
        evaluation=_evaluation(config, model, lora, objective, model_config, mesh),
        checkpoints=checkpoints,
        save_every=config.save_every,
        origin=data.origin,
        announce=_announce,
      )
    finally:
      for writer in writers:
        writer.close()
  if result.preempted:
    _announce(f'told to stop: saved at step {result.step} of {steps}. The same command goes on from there')
  else:
    _announce(f'{result.step} steps are done, with {result.compilations} compiled programs')
    exports.export(workdir, model_config, result.state, config, recipe, _announce, lora, base)
  return result


def _recipe(config: config_lib.Config) -> optimizers.Recipe:
  """The optimizer, after a look at whether it has the base model that it needs."""
  recipe = optimizers.parse_optimizer(config.optimizer)
  if recipe.needs_delta and not config.base_model:
    raise ValueError(
      f'config.optimizer = {config.optimizer!r} merges with model - base_model: say with --base_model=... which folder '
      'the model was fine-tuned from'
    )
  if config.base_model and not recipe.needs_delta:
    raise ValueError(
      f'config.base_model = {config.base_model!r} has no use: nothing in config.optimizer = {config.optimizer!r} '
      'merges with model - base_model, as online_dare and online_ties do'
    )
  return recipe


def _read(paths: Sequence[str], config: config_lib.Config, vocab_size: int) -> pairs.TokenizedPairs:
  """Reads and tokenises pairs, and prints what became of them."""
  report = report_lib.DropReport()
  data = pairs.tokenize(
    sources.read_pairs(paths, report, ignore_fields=config.ignore_fields),
    tokenization.Tokenizer.load(config.model),
    max_prompt=config.max_prompt,
    max_response=config.max_response,
    vocab_size=vocab_size,
    report=report,
  )
  _announce(f'{", ".join(paths)}: {data.report}')
  return data


def _batches(
  data: pairs.TokenizedPairs, config: config_lib.Config, mesh: jax.sharding.Mesh, *, shuffle: bool
) -> batching.Batches:
  index, count = placement.row_group(mesh)
  return batching.make_batches(
    data,
    batch_size=config.batch_size,
    seed=config.seed,
    epochs=None if shuffle else 1,
    process_index=index,
    process_count=count,
    buckets=config.buckets or None,
    shuffle=shuffle,
  )


def _evaluation(
  config: config_lib.Config,
  model: models.LanguageModel,
  lora: lora_lib.LoRA | None,
  objective: Any,
  model_config: transformer.TransformerConfig,
  mesh: jax.sharding.Mesh,
) -> loop.Evaluation | None:
  if not config.eval_data:
    return None
  data = _read(config.eval_data, config, model_config.vocab_size)
  return loop.Evaluation(
    step_lib.build_eval_step(model, objective, lora=lora, chunk=config.chunk, mesh=mesh),
    _batches(data, config, mesh, shuffle=False),
    config.eval_every,
    objective.summary,
  )


def _restore(
  checkpoints: checkpoint.Checkpoints, like: state_lib.TrainState, iterator: Any, config: config_lib.Config
) -> checkpoint.Restored | None:
  """Reads the newest checkpoint. If it does not fit, and the optimizer is another, that is likely to be why."""
  try:
    return checkpoints.restore(like, iterator)
  except checkpoint.MismatchError as error:
    before = error.config.get('optimizer')
    if before == config.optimizer:
      raise
    raise ValueError(
      f'config.optimizer was {before!r} and is now {config.optimizer!r}. Numbers in it may change when a run '
      f'resumes, but not what it keeps from step to step: {error}'
    ) from error


def _identity(
  config: config_lib.Config, data: pairs.TokenizedPairs, batches: batching.Batches, folders: Mapping[str, str]
) -> dict[str, Any]:
  """What has to be the same for a run to be resumed."""
  values = config_lib.flat(config)
  identity = {name: values[name] for name, kind in config_lib.on_resume().items() if kind == config_lib.IDENTITY}
  identity['buckets'] = batches.plan.buckets  # those chosen from the data too
  identity['data_fingerprint'] = data.fingerprint
  return identity | {f'{name}_fingerprint': fingerprint(folder) for name, folder in folders.items()}


def fingerprint(folder: str) -> str:
  """A hash of a model: its small files in full, and of its weights the sizes and 32 samples of 64 KiB."""
  digest = hashlib.sha256()
  files = [pathlib.Path(folder) / name for name in ('config.json', 'tokenizer.json', 'tokenizer_config.json')]
  for file in [file for file in files if file.exists()]:
    digest.update(f'{file.name}:{file.stat().st_size}:'.encode() + file.read_bytes())
  for file in sorted(pathlib.Path(folder).glob('*.safetensors')):
    size = file.stat().st_size
    digest.update(f'{file.name}:{size}:'.encode())
    with file.open('rb') as stream:
      for sample in range(32):
        stream.seek(size * sample // 32)
        digest.update(stream.read(2**16))
  return digest.hexdigest()


def _warn_of_changes(saved: Any, config: config_lib.Config) -> None:
  before, now = config_lib.flat(config_lib.from_dict(saved)), config_lib.flat(config)
  for name, kind in config_lib.on_resume().items():
    if kind == config_lib.WARNS and before[name] != now[name]:
      logging.warning('config.%s was %r and is now %r: the curve is not that of one run', name, before[name], now[name])


def _write_config(workdir: pathlib.Path, config: config_lib.Config) -> None:
  if jax.process_index() == 0:
    partial = workdir / 'config.json.partial'
    partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + '\n', encoding='utf-8')
    os.replace(partial, workdir / 'config.json')


def _summary(
  config: config_lib.Config,
  recipe: optimizers.Recipe,
  mesh: jax.sharding.Mesh,
  shapes: Any,
  trained: Any,
  batches: batching.Batches,
  steps: int,
) -> str:
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  axes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
  plan = batches.plan
  delta = f', delta to {config.base_model} in {config.delta_dtype}' if recipe.needs_delta else ''
  return '\n'.join(
    [
      f'objective  {config.objective}',
      f'model      {config.model}, {count:,} parameters, computed in {config.compute_dtype}',
      *([f'adapter    {adapters.describe(config, trained)}'] if config.adapter else []),
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


def define_flags() -> None:
  """The flags of the program. Not on import: flags are global, and other programs have flags of the same names."""
  with _refusing_unknown_settings():
    config_flags.DEFINE_config_file(
      'config',
      str(pathlib.Path(__file__).parent / 'configs' / 'dpo.py'),
      'A file whose get_config() gives the settings; --config.<name>=<value> changes one of them.',
    )
  for name in SHORT:
    if name in ('data', 'eval_data'):
      flags.DEFINE_multi_string(name, None, f'Short for --config.{name}; may be repeated.')
    else:
      flags.DEFINE_string(name, None, f'Short for --config.{name}.')
  flags.DEFINE_string('coordinator', None, 'host:port of process 0, where there are several processes.')
  flags.DEFINE_integer('num_processes', 1, 'Processes in the run.')
  flags.DEFINE_integer('process_id', 0, 'Of this process, from 0.')
  flags.DEFINE_integer('local_devices', 0, 'Virtual CPU devices of this process; 0: the real devices.')


@contextlib.contextmanager
def _refusing_unknown_settings() -> Iterator[None]:
  """ml_collections reports --config.<name> of a name that does not exist by exceptions, with a good message."""
  try:
    yield
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    print(f'error: in the flags: {error.args[0] if error.args else error}', file=sys.stderr)
    sys.exit(REFUSED)


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
  with _refusing_unknown_settings():
    return app.parse_flags_with_usage(argv)


def resolve() -> config_lib.Config:
  """The configuration that the flags describe."""
  values = flags.FLAGS.config.to_dict()
  given = {name: flags.FLAGS[name].value for name in SHORT}
  return config_lib.from_dict(values | {name: value for name, value in given.items() if value is not None})


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
  if argv[1:]:
    raise app.UsageError(f'what is {argv[1]!r}? Settings are given as --config.<name>=<value>')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # at INFO, every checkpoint writes 40 lines
  given = flags.FLAGS

  def start() -> loop.Result:
    config = resolve()
    distributed.initialize(given.coordinator, given.num_processes, given.process_id, given.local_devices)
    return run(config)

  code = attempt(start)
  if code in (REFUSED, CRASHED) and given.num_processes > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly exit would wait for the others, which may be waiting for this process
  sys.exit(code)


if __name__ == '__main__':
  __doc__ += config_lib.describe_fields()
  define_flags()
  app.run(main, flags_parser=_parse_flags)
