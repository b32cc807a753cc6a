"""The training step of a configuration with the shapes and shardings of its arguments: no weights, no data."""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.data.batches import order, shapes
from alignjax.models import checkpoint_io, folders, quantization
from alignjax.objectives import declarations
from alignjax.optim import recipes, schedules
from alignjax.parallel import rules
from alignjax.run import preparation, settings
from alignjax.training import caching, instrumentation, placement, references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.types import Head, Params, PreferenceBatch

STEPS = 1000  # of the schedule, if the settings give no number: it does not change any shape
PAIR = 2  # responses to a prompt, unless the objective is defined for other numbers


class Program(NamedTuple):
  """The training step and its arguments, as shapes with shardings."""

  built: preparation.Built
  step: Callable[..., Any]  # as the training loop runs it, not jitted
  state: training_state.TrainState
  frozen: training_state.Frozen
  batch: PreferenceBatch

  @property
  def arguments(self) -> tuple[Any, ...]:
    """The arguments of the step."""
    return self.state, self.frozen, self.batch

  def lower(self) -> jax.stages.Lowered:
    """The step, lowered for the devices of its mesh, as the training loop compiles it."""
    places = jax.tree.map(lambda leaf: leaf.sharding, self.state), rules.replicated(self.built.mesh)
    return jax.jit(self.step, donate_argnums=0, out_shardings=places).lower(*self.arguments)


def build(config: settings.Config, mesh: jax.sharding.Mesh, responses: int = 0) -> Program:
  """Builds the step that `alignjax train` would run, for batches of the largest shape.

  Args:
    config: the configuration of the run. Of the model's files, only config.json is needed.
    mesh: the mesh; an abstract one if the step is not compiled.
    responses: responses to a prompt; 0 for the number for which the objective is defined.

  Raises:
    ValueError: the settings cannot be used.
  """
  preparation.check_batch_size(config, mesh)
  built = preparation.build(config, mesh)
  steps = config.steps or STEPS
  warmup = schedules.warmup_steps(config.warmup, steps)
  schedule = schedules.build_schedule(config.schedule, built.recipe.learning_rate, steps=steps, warmup=warmup)
  tx = recipes.build_optimizer(built.recipe, schedule, config.gradient_clip)
  step = training_step.build_train_step(
    built.policy, built.objective, tx, chunk=config.chunk, microbatches=config.microbatches, mesh=mesh
  )
  state = placement.abstract_state(
    mesh, built.policy.trained_shapes(), tx, jax.random.key(config.seed), built.objective.memory.initial
  )
  frozen, cached = _frozen(config, built)
  batch = _batch(config, built, _responses(built, responses), cached)
  return Program(built, instrumentation.instrumented(step, schedule), state, frozen, batch)


def shapes_of(prepared: preparation.Prepared) -> tuple[shapes.Bucket, ...]:
  """The batch shapes of a run that can be planned: none for packed rows, or if the policy draws its responses."""
  batches = prepared.training.batches.plan
  covered = prepared.prompts is None and isinstance(batches, order.Plan)
  return tuple(batches.buckets) if covered else ()


def of_run(config: settings.Config, prepared: preparation.Prepared, buckets: Sequence[shapes.Bucket]) -> Program:
  """The step of a prepared run, for the largest of these batch shapes."""
  config = dataclasses.replace(config, buckets=tuple(buckets))
  return build(config, prepared.mesh, prepared.training.data.responses)


def stored_dtype(folder: str) -> str:
  """The dtype of a model's weights: that of its files, or else the one that config.json states; float32 if unknown."""
  if any(pathlib.Path(folder).glob('*.safetensors')):
    found = checkpoint_io.stored_dtypes(folder)
    return found.pop() if len(found) == 1 else 'float32'
  entries = folders.read_json(pathlib.Path(folder) / folders.CONFIG)
  stated = entries.get('dtype') or entries.get('torch_dtype')
  return stated if stated in ('bfloat16', 'float16', 'float32') else 'float32'


def _responses(built: preparation.Built, given: int) -> int:
  declared = [declarations.accepted(leaf.responses) for leaf in built.objective.leaves]
  allowed = frozenset.intersection(*(numbers for numbers in declared if numbers is not None)) if any(declared) else None
  if given or allowed is None or PAIR in allowed:
    return given or PAIR
  return min(allowed)


def _frozen(
  config: settings.Config, built: preparation.Built
) -> tuple[training_state.Frozen, dict[str, tuple[tuple[int, ...], str]]]:
  """What the step only reads, and the columns, by name, that a cached reference adds to the batch."""
  policy, needs = built.policy, built.objective.needs
  folder = config.reference or config.model
  own = policy.adapter is None or folder != config.model
  base = None if policy.adapter is None else _base(config, built)
  delta = None
  if built.recipe.needs_delta:
    places = placement.in_host_memory(built.shardings) if config.delta_memory == 'host' else built.shardings
    delta = _placed(built.shapes, places, config.delta_dtype)
  reference, cached = references.NotLoaded(), {}
  if stats.missing_reference(needs, ()):
    if config.reference_cache:
      columns = caching.columns(needs, policy.model.config.width, config.compute_dtype)
      cached = {name: (column.shape, column.dtype) for name, column in columns.items()}
      if references.STATES in cached:
        reference = references.CachedStates(_head(built, stored_dtype(folder)))
    elif own:
      reference = references.Live(_placed(built.shapes, built.shardings, stored_dtype(folder)))
    else:
      reference = references.Base()
  return training_state.Frozen(reference=reference, delta=delta, base=base), cached


def _base(config: settings.Config, built: preparation.Built) -> Params:
  """The frozen model under an adapter."""
  base = _placed(built.shapes, built.shardings, stored_dtype(config.model))
  if config.base_quantization == 'none':
    return base
  quantized = jax.eval_shape(lambda params: quantization.quantize(params, config.base_quantization), base)

  def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    name = '/'.join(str(key.key) for key in path if hasattr(key, 'key'))
    sharding = jax.sharding.NamedSharding(built.mesh, rules.partition_spec(name, leaf.shape, built.mesh))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(place, quantized)


def _head(built: preparation.Built, dtype: str) -> Head:
  params = _placed(built.shapes, built.shardings, dtype)
  head = jax.eval_shape(built.policy.model.head, params)
  tied = built.policy.model.config.tied_embeddings
  spec = (built.shardings['embed']['embedding'] if tied else built.shardings['unembed']['kernel']).spec
  sharding = jax.sharding.NamedSharding(built.mesh, jax.P(*reversed(spec)) if tied else spec)
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), head)


def _batch(
  config: settings.Config, built: preparation.Built, responses: int, cached: dict[str, tuple[tuple[int, ...], str]]
) -> PreferenceBatch:
  """A batch of the largest shape."""
  prompt, response = max(config.buckets, key=sum) if config.buckets else (config.max_prompt, config.max_response)
  size, sharding = config.batch_size, rules.batch_sharding(built.mesh)

  def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

  reads = {*built.objective.reads}
  of_response = {'score', 'behaviour_logp'} & reads
  cached = cached | dict.fromkeys({stats.BEHAVIOUR_TOKEN_LOGP} & reads, ((), 'float32'))
  batch = PreferenceBatch(
    prompt=array(prompt),
    prompt_length=array(),
    response=array(responses, response),
    response_length=array(responses),
    label=array(dtype=jnp.float32),
    weight=array(dtype=jnp.float32),
    cached={name: array(responses, response, *shape, dtype=dtype) for name, (shape, dtype) in cached.items()},
  )
  return dataclasses.replace(batch, **{name: array(responses, dtype=jnp.float32) for name in of_response})


def _placed(shapes: Params, shardings: Any, dtype: str | os.PathLike[str]) -> Params:
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding), shapes, shardings
  )
