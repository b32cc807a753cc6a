"""What every program about a run begins with: the configuration read, the model built, the data tokenised."""

import dataclasses
from typing import Any

import jax

from alignjax import objectives
from alignjax.data.tokens import tokenization
from alignjax.models import base, checkpoint_io, transformer
from alignjax.models import lora as lora_lib
from alignjax.optim import recipes
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.run import adapters, inputs, settings
from alignjax.training import placement
from alignjax.training import state as state_lib
from alignjax.types import Params


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A run before any weights are read."""

  objective: objectives.Objective
  recipe: recipes.Recipe
  lora: lora_lib.LoRA | None  # what is trained instead of the model's own parameters
  tokenizer: tokenization.Tokenizer
  mesh: jax.sharding.Mesh
  model: base.LanguageModel
  shapes: Any  # of the parameters
  shardings: Any  # of the parameters
  reference: inputs.Reference
  training: inputs.Split
  held_out: inputs.Split | None

  @property
  def trained(self) -> Any:
    """The shapes of what is trained: the model's parameters, or an adapter's."""
    return adapters.trained(self.lora, self.shapes)


def prepare(config: settings.Config, announce: inputs.Announce) -> Prepared:
  """Reads everything that a configuration names but weights; caches of the reference are made where they are missing.

  Raises:
    ValueError: for what is wrong with the configuration, the model or the data.
  """
  require(config, 'model', 'data')
  objective = objectives.parse(config.objective)
  recipe = _recipe(config)
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  model_config = checkpoint_io.load_config(
    config.model,
    compute_dtype=config.compute_dtype,
    remat=config.remat,
    scan_layers=config.scan_layers,
    attention=config.attention,
  )
  lora = adapters.configured(config, recipe, model_config)
  model = transformer.build(model_config, rules.activation_constraint(mesh))
  shapes = jax.eval_shape(model.init, jax.random.key(config.seed))
  shardings = rules.param_shardings(mesh, shapes)
  reference = inputs.Reference(config, model, lora, objective, mesh, shardings, announce)
  tokenizer = tokenization.Tokenizer.load(config.model)
  splits = [
    inputs.read_split(paths, config, tokenizer, model_config.vocab_size, mesh, announce, training=training)
    for paths, training in ((config.data, True), (config.eval_data, False))
    if paths
  ]
  for split in splits:
    objectives.check_batch(objective, split.data.fields, split.data.responses)
  training, held_out = (*reference.cached(splits), None)[:2]
  return Prepared(objective, recipe, lora, tokenizer, mesh, model, shapes, shardings, reference, training, held_out)


def initial_params(config: settings.Config, prepared: Prepared) -> Params:
  """What is trained, before the first step."""
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  return adapters.initial_params(prepared.lora, config, prepared.model.config, prepared.mesh, key)


def load_base(config: settings.Config, prepared: Prepared) -> Params | None:
  """The model under an adapter; None without one."""
  return adapters.load_base(prepared.lora, config, prepared.model.config, prepared.mesh)


def load_frozen(config: settings.Config, prepared: Prepared, base: Params | None) -> state_lib.Frozen:
  """Reads what the training step only reads: the reference, and the delta of online merging.

  Args:
    config: of the run.
    prepared: from `prepare`.
    base: from `load_base`.
  """
  delta = None
  if prepared.recipe.needs_delta:
    places = prepared.shardings
    if config.delta_memory == 'host':
      places = placement.in_host_memory(places)
    delta = checkpoint_io.delta_from(config.model, config.base_model, prepared.model.config, places, config.delta_dtype)
  return state_lib.Frozen(reference=prepared.reference.load(), delta=delta, base=base)


def require(config: settings.Config, *names: str) -> None:
  """Raises a ValueError if one of these settings is empty."""
  for name in names:
    if not getattr(config, name):
      raise ValueError(f'config.{name} is missing: give --{name}=...')


def _recipe(config: settings.Config) -> recipes.Recipe:
  """The optimizer, after a look at whether it has the base model that it needs."""
  recipe = recipes.parse_optimizer(config.optimizer)
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
