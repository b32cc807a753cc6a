"""The examination of a whole run before it trains: its tokenizer, its data, its models, its memory."""

import collections
from collections.abc import Sequence
import dataclasses

import jax
import optax

from alignjax.data.batches import shapes
from alignjax.doctor import examples, findings, tokenizers
from alignjax.models import checkpoint_io, transformer
from alignjax.optim import recipes, schedules
from alignjax.parallel import rules
from alignjax.run import inputs, preparation, settings
from alignjax.training import doctor, placement
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.types import PreferenceBatch

# Findings about labels, which do not matter to an objective that reads none.
OF_LABELS = ('bad_label', 'no_signal', 'one_class', 'rare_class', 'swapped_labels')


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
    state: before the first update.
    frozen: as the step will get it.
  """
  batch = _first_batch(prepared)
  return [
    *examine_data(prepared),
    *_start(config, prepared, state, frozen, batch),
    *_dtypes(config, prepared),
    *doctor.examine_embeddings(_embeddings(state, frozen), prepared.training.data, prepared.tokenizer, prepared.mesh),
    *_memory(state, frozen),
  ]


def examine_data(prepared: preparation.Prepared) -> list[findings.Finding]:
  """The part that needs no weights."""
  training, held_out = prepared.training, prepared.held_out
  found = [
    *tokenizers.examine(prepared.tokenizer, vocab_size=prepared.policy.model.config.vocab_size),
    *examples.examine(
      training.data,
      prepared.tokenizer,
      vocab_size=prepared.policy.model.config.vocab_size,
      max_positions=prepared.policy.model.config.max_positions,
    ),
    *doctor.examine_shapes(training.batches.plan, training.data),
    *doctor.examine_coupling(prepared.objective, training.data.responses),
  ]
  if 'label' not in prepared.objective.reads:
    found = [finding for finding in found if finding.name not in OF_LABELS]
  if held_out is not None:
    found += examples.examine_split(training.data, held_out.data)
  return found


def examine_thoroughly(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
) -> list[findings.Finding]:
  """`examine`, and what takes more programs to compile."""
  batch = _first_batch(prepared)
  found = [item for item in examine(config, prepared, state, frozen) if item.name != 'memory']
  measured = (state.params, frozen, batch)
  key = jax.random.key(config.seed)
  found += doctor.examine_sampling(prepared.policy, *measured, key, compute_dtype=config.compute_dtype)
  if config.compute_dtype != 'float32':
    exact = dataclasses.replace(prepared.policy.model.config, compute_dtype='float32', attention='xla')
    exact = transformer.build(exact, rules.activation_constraint(prepared.mesh))
    exact = dataclasses.replace(prepared.policy, model=exact)
    found += doctor.examine_precision(prepared.policy, exact, *measured, chunk=config.chunk)
  return [*found, *_compiled_memory(config, prepared, state, frozen, batch)]


def report(found: Sequence[findings.Finding], *, stop: bool, notes: bool, announce: inputs.Announce) -> None:
  """Announces what was found, the worst first; notes are only counted unless `notes`.

  Raises:
    ValueError: there are errors, and `stop`.
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


def _first_batch(prepared: preparation.Prepared) -> PreferenceBatch:
  return placement.to_global(prepared.mesh, next(iter(prepared.training.batches)).data)


def _embeddings(state: training_state.TrainState, frozen: training_state.Frozen) -> jax.Array:
  return (state.params if frozen.base is None else frozen.base)['embed']['embedding']


def _start(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
  batch: PreferenceBatch,
) -> list[findings.Finding]:
  measure = doctor.build_start(prepared.policy, prepared.objective, chunk=config.chunk, mesh=prepared.mesh)
  measure = jax.jit(measure, out_shardings=rules.replicated(prepared.mesh))
  values = measure(state.params, dataclasses.replace(frozen, memory=state.memory, step=state.step), batch)
  folder = prepared.reference.folder
  return doctor.examine_start(
    {name: value.item() for name, value in jax.device_get(values).items()},
    same_model=inputs.fingerprint(folder) == inputs.fingerprint(config.model),
    compute_dtype=config.compute_dtype,
    vocab_size=prepared.policy.model.config.vocab_size,
    reference=config.reference_cache or folder,
  )


def _dtypes(config: settings.InputSettings, prepared: preparation.Prepared) -> list[findings.Finding]:
  if not prepared.reference.needed:
    return []
  folders = (config.model, prepared.reference.folder)
  return doctor.examine_dtypes(*map(checkpoint_io.stored_dtypes, folders))


def _memory(state: training_state.TrainState, frozen: training_state.Frozen) -> list[findings.Finding]:
  parts = [
    ('parameters', doctor.bytes_on_device(state.params)),
    ('gradients', doctor.bytes_on_device(state.params)),
    ('optimizer state', doctor.bytes_on_device(state.opt_state)),
    ('reference, base and delta', doctor.bytes_on_device(frozen)),
  ]
  return doctor.examine_memory(parts, doctor.device_memory(jax.local_devices()[0]))


def _compiled_memory(
  config: settings.InputSettings,
  prepared: preparation.Prepared,
  state: training_state.TrainState,
  frozen: training_state.Frozen,
  batch: PreferenceBatch,
) -> list[findings.Finding]:
  """Compiles the training step for the largest shape, and reads the memory that it needs."""
  step = training_step.build_train_step(
    prepared.policy,
    prepared.objective,
    build_optimizer(prepared),
    chunk=config.chunk,
    microbatches=config.microbatches,
    mesh=prepared.mesh,
  )
  largest = _resized(batch, prepared.training.batches.plan.buckets[-1])
  places = jax.tree.map(lambda leaf: leaf.sharding, state), rules.replicated(prepared.mesh)
  compiled = jax.jit(step, donate_argnums=0, out_shardings=places).lower(state, frozen, largest).compile()
  memory = compiled.memory_analysis()
  if memory is None:
    return _memory(state, frozen)
  parts = [('arguments', memory.argument_size_in_bytes), ('temporaries', memory.temp_size_in_bytes)]
  return doctor.examine_memory(parts, doctor.device_memory(jax.local_devices()[0]))


def build_optimizer(prepared: preparation.Prepared) -> optax.GradientTransformation:
  """The optimizer of a run, at its highest learning rate. A clip of gradients would change neither state nor memory."""
  rate = schedules.build_schedule('constant', prepared.recipe.learning_rate, steps=1, warmup=0)
  return recipes.build_optimizer(prepared.recipe, rate)


def _resized(batch: PreferenceBatch, bucket: shapes.Bucket) -> PreferenceBatch:
  """The shapes of a batch of another bucket."""
  prompt, response = bucket

  def shape(leaf: jax.Array, axis: int, size: int) -> jax.ShapeDtypeStruct:
    sizes = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(sizes, leaf.dtype, sharding=leaf.sharding)

  return dataclasses.replace(
    batch,
    prompt=shape(batch.prompt, 1, prompt),
    response=shape(batch.response, 2, response),
    cached={name: shape(value, 2, response) for name, value in batch.cached.items()},
  )


def stops(config: settings.Config, announce: inputs.Announce) -> bool:
  """Examines a run thoroughly, and reports everything; returns whether errors would stop it."""
  prepared = preparation.prepare(config, announce)
  base, params = preparation.load_base(config, prepared), preparation.initial_params(config, prepared)
  key = jax.random.key(config.seed)
  state = placement.create_state(
    prepared.mesh, params, build_optimizer(prepared), key, prepared.objective.memory.initial
  )
  frozen = preparation.load_frozen(config, prepared, base)
  found = examine_thoroughly(config, prepared, state, frozen)
  report(found, stop=False, notes=True, announce=announce)
  errors = any(finding.severity == findings.ERROR for finding in found)
  return errors and config.doctor == 'stop'
