"""Prepares a run: reads the configuration, builds the model, tokenises the data."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from alignjax import objectives, stats
from alignjax.data.reading import sources
from alignjax.data.tokens import tokenization, variables
from alignjax.models import checkpoint_io, transformer
from alignjax.optim import bases, recipes
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import (
  adapters,
  fields,
  first_start,
  inputs,
  loaded,
  on_policy,
  packing_choice,
  replay,
  settings,
  token_cache,
  trackers,
  uploads,
  user_code,
)
from alignjax.training import forward, placement, processes, references
from alignjax.training import state as training_state
from alignjax.training.policy import Policy
from alignjax.types import Params


@dataclasses.dataclass(frozen=True)
class Built:
  """What a run computes with on a mesh, before any data or weights are read."""

  objective: objectives.Objective
  recipe: bases.Recipe
  mesh: jax.sharding.Mesh
  policy: Policy
  shapes: Any  # shapes of the model's parameters
  shardings: Any  # shardings of the model's parameters


@dataclasses.dataclass(frozen=True)
class Prepared(Built):
  """A run whose weights are not loaded yet."""

  tokenizer: tokenization.Tokenizer
  reference: inputs.Reference
  training: inputs.Split
  held_out: inputs.Split | None
  weights: loaded.Loaded  # what is loaded besides the state, for checkpoints
  prompts: on_policy.Prompts | None = None  # of an on-policy run; without `data`, `training` is their split

  @property
  def joint(self) -> bool:
    """Whether an update has a batch of data and one of rollouts."""
    return self.prompts is not None and self.training is not self.prompts.split

  @property
  def trained(self) -> Any:
    """The shapes of the trained parameters: the model's, or an adapter's."""
    return self.policy.trained_shapes()


def check_settings(config: settings.Config) -> None:
  """Checks what needs no file but the user's own code: the objective, the optimizer, and whether it needs a base model.

  Raises:
    ValueError: they cannot be used together.
  """
  trackers.check(config.trackers)
  uploads.check(config.push_to_hub, config.workdir)
  user_code.load(config.imports)
  objective = fields.naming('config.objective', objectives.parse, config.objective)
  packing_choice.check(config, objective)
  if _recipe(config, config.base_model).needs_delta and stats.reads_final(objective.needs):
    raise ValueError(
      f'config.optimizer = {config.optimizer!r} merges with model - base_model, and the score head of {objective.name} '
      'has no such difference: choose an optimizer that does not merge'
    )
  on_policy.check(config, objective)


def build(config: settings.Config, mesh: jax.sharding.Mesh) -> Built:
  """Builds objective, optimizer and model from a configuration. Of the model's files, it reads config.json alone.

  Args:
    config: the configuration of the run.
    mesh: the mesh; an abstract one suffices to compute shapes and shardings.

  Raises:
    ValueError: the objective, the optimizer, the model or the adapter cannot be used.
  """
  objective = fields.naming('config.objective', objectives.parse, config.objective)
  recipe = _recipe(config, config.base_model)
  model_config = checkpoint_io.load_config(
    config.model,
    compute_dtype=config.compute_dtype,
    remat=config.remat,
    scan_layers=config.scan_layers,
    attention=config.attention,
    output=forward.output(objective.needs),
  )
  adapter = adapters.configured(config, recipe, model_config)
  policy = Policy(transformer.build(model_config, rules.constraint(mesh)), adapter)
  shapes = jax.eval_shape(policy.model.init, jax.random.key(config.seed))
  return Built(objective, recipe, mesh, policy, shapes, rules.param_shardings(mesh, shapes))


def prepare(
  config: settings.Config, announce: inputs.Announce, check: Callable[[Prepared], None] = lambda prepared: None
) -> Prepared:
  """Reads everything that a configuration names except weights, and creates missing caches of the reference.

  Args:
    config: the configuration of the run.
    announce: called with progress messages.
    check: called before the processes of the run compute anything together, without cached outputs of the reference.

  Raises:
    ValueError: the configuration, the model or the data cannot be used.
  """
  settings.require(config, 'model', *([] if config.prompts else ['data']))
  user_code.load(config.imports)
  objective = fields.naming('config.objective', objectives.parse, config.objective)
  on_policy.check(config, objective)
  on_policy.warn(config, objective)
  arguments = fields.naming('config.template_arguments', variables.parse, config.template_arguments)
  mesh = parallel_mesh.make_mesh(
    config.mesh.data,
    config.mesh.fsdp,
    config.mesh.tensor,
    slices=config.mesh.slices,
    allow_dcn_fsdp=config.mesh.allow_dcn_fsdp,
  )
  if config.data:
    check_batch_size(config, mesh)
  if config.prompts:
    on_policy.check_size(config, mesh)
  built = build(config, mesh)
  policy, model_config = built.policy, built.policy.model.config
  read = on_policy.reference_needs(config, objective) if config.prompts else objective
  reference = inputs.Reference(config, policy, read, mesh, built.shardings, announce)
  tokenizer = tokenization.Tokenizer.load(config.model, functools.partial(first_start.date, config.workdir))
  tokenizer = fields.naming('config.template_arguments', tokenizer.with_template_arguments, arguments)
  cache = token_cache.configured(config.token_cache, config.workdir)
  # The model reads all tokens of a response that it scores, and all but the last of one that it predicts.
  positions = model_config.max_positions - model_config.scored
  rows = packing_choice.rows(config, objective, parallel_mesh.batch_shards(mesh))
  reading = inputs.Reading(tokenizer, model_config.vocab_size, mesh, announce, cache, positions, rows)
  prompts = on_policy.read(config, reading) if config.prompts else None
  training, held_out = (
    _read(paths, config, reading, objective, training) if paths else None
    for paths, training in ((config.data, True), (config.eval_data, False))
  )
  weights = loaded.Loaded(model_config)
  prepared = Prepared(
    **vars(built),
    tokenizer=tokenizer,
    reference=reference,
    training=prompts.split if training is None else training,
    held_out=held_out,
    weights=weights,
    prompts=prompts,
  )
  check(prepared)
  if prompts:
    return prepared
  splits = [split for split in (training, held_out) if split is not None]
  training, held_out = (*reference.cached(splits), None)[:2]
  return dataclasses.replace(prepared, training=training, held_out=held_out)


def _read(
  paths: Sequence[str],
  config: settings.Config,
  reading: inputs.Reading,
  objective: objectives.Objective,
  training: bool,
) -> inputs.Split:
  """Reads a dataset with responses, and checks that the objective can use it."""
  if replay.named(paths):
    split = replay.read(paths, config, reading, objective, training=training)
  else:
    split = inputs.read_split(paths, config, reading, training=training)
  try:
    objectives.check_batch(objective, split.data.fields, split.data.responses)
  except objectives.ResponsesError as error:
    named = ', '.join(sources.forms_with(error.accepted))
    raise ValueError(
      f'{", ".join(paths)}: {error}: choose another objective, or data in one of the forms {named}'
    ) from None
  return split


def initial_params(config: settings.InputSettings, prepared: Prepared) -> Params:
  """The initial values of the trained parameters. If the reference starts from the same folder, it is read once."""
  shared = None if prepared.policy.adapter else prepared.reference.of_model()
  if shared is not None:
    places = jax.tree.map(lambda leaf: leaf.sharding, shared)
    return jax.jit(_copies_in_float32, out_shardings=places)(shared)
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  return adapters.initial_params(prepared.policy, config, prepared.mesh, key)


def _copies_in_float32(params: Params) -> Params:
  """Copies, because the trained parameters are donated to the step and the reference is not."""
  return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)


def load_base(config: settings.ModelSettings, prepared: Prepared) -> Params | None:
  """Loads the frozen model under an adapter; None without an adapter."""
  record = functools.partial(prepared.weights.add_leaf, 'base', config.model)
  return adapters.load_base(prepared.policy.adapter, config, prepared.policy.model.config, prepared.mesh, record)


def load_frozen(config: settings.ModelSettings, prepared: Prepared, base: Params | None) -> training_state.Frozen:
  """Reads what the training step only reads: the reference, and the delta of online merging.

  Args:
    config: the models.
    prepared: the result of `prepare`.
    base: the result of `load_base`.
  """
  delta, weights = None, prepared.weights
  if prepared.recipe.needs_delta:
    places = prepared.shardings
    if config.delta_memory == 'host':
      places = placement.in_host_memory(places)
    delta = checkpoint_io.delta_from(
      config.model,
      config.base_model,
      prepared.policy.model.config,
      places,
      config.delta_dtype,
      processes.on_all,
    )
    weights.add(f'delta in {config.delta_dtype}', f'{config.model} or {config.base_model}', delta)
  reference = prepared.reference.load()
  if isinstance(reference, references.Live):
    weights.add('reference', prepared.reference.folder, reference.params)
  return training_state.Frozen(reference=reference, delta=delta, base=base)


def check_batch_size(config: settings.InputSettings, mesh: jax.sharding.Mesh) -> None:
  """Raises a ValueError unless a batch divides into microbatches over the shards of the mesh."""
  least = parallel_mesh.batch_shards(mesh) * config.microbatches
  if config.batch_size % least:
    why = parallel_mesh.describe_division(mesh, config.microbatches)
    raise ValueError(f'config.batch_size = {config.batch_size}: must be a multiple of {least}, because {why}')


def _recipe(config: settings.OptimizerSettings, base_model: str) -> bases.Recipe:
  """Reads the optimizer, and checks that a base model is given exactly if the optimizer needs one."""
  recipe = fields.naming('config.optimizer', recipes.parse_optimizer, config.optimizer)
  if recipe.needs_delta and not base_model:
    raise ValueError(
      f'config.optimizer = {config.optimizer!r} merges with model - base_model: name the folder of the model '
      'before fine-tuning with --base_model=...'
    )
  if base_model and not recipe.needs_delta:
    raise ValueError(
      f'config.base_model = {base_model!r} is set, but nothing in config.optimizer = '
      f'{config.optimizer!r} merges with model - base_model, as online_dare and online_ties do'
    )
  return recipe
