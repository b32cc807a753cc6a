"""Training adapters instead of a whole model: the adapter that the settings name, and its base model.

lora()        lora(rank=16, alpha=32, targets='attention+mlp')        lora(rank=8, targets='query+value')
"""

from collections.abc import Callable
import contextlib
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from alignjax import expressions
from alignjax.models import checkpoint_io, families, folders, layers, lora, peft, quantization, transformer
from alignjax.optim import bases
from alignjax.parallel import rules
from alignjax.run import fields, settings
from alignjax.training import processes
from alignjax.training.policy import Policy
from alignjax.types import Array, Params

ADAPTERS = {'lora': lora.LoRA}


def parse_adapter(text: str) -> lora.LoRA:
  """Reads an adapter from its expression, such as `'lora(rank=16, alpha=32)'`.

  Raises:
    ExpressionError: the text is not an adapter. The message shows where, gives the reason and lists the known names.
  """
  return expressions.parse(text, lora.LoRA, 'an adapter', {'adapters': ADAPTERS})


def configured(
  config: settings.ModelSettings, recipe: bases.Recipe, model_config: transformer.TransformerConfig
) -> lora.LoRA | None:
  """The adapter that a run trains; None if it trains the model's own parameters.

  Raises:
    ValueError: settings contradict one another, or the model does not have a target.
  """
  if config.adapter_from and recipe.needs_delta:
    raise ValueError(
      f'config.adapter_from = {config.adapter_from!r}: the optimizer {recipe.name} merges with model - base_model, '
      'and neither folder has the adapter: merge it first, alignjax merge --adapter=..., and give the result as --model'
    )
  if not config.adapter:
    if config.base_quantization != 'none':
      raise ValueError(
        f'config.base_quantization = {config.base_quantization!r} needs config.adapter: a model whose own parameters '
        'are trained keeps them in float32'
      )
    return None
  if recipe.needs_delta:
    raise ValueError(
      f'the optimizer {recipe.name} merges updates with a delta of whole weights, which the adapters of '
      f'config.adapter = {config.adapter!r} do not have: give one of the two'
    )
  adapter = fields.naming('config.adapter', parse_adapter, config.adapter)
  # Raises for targets that do not exist, before anything is read.
  Policy(transformer.build(model_config), adapter).trained_shapes()
  model_type = folders.read_json(pathlib.Path(config.model) / folders.CONFIG).get('model_type')
  if model_type in families.WRAPPERS:
    raise ValueError(
      f'config.adapter = {config.adapter!r}: adapters of {model_type} belong to a larger model than its text model, '
      f"which is trained here: store that alone first, alignjax merge --method='linear()' --models={config.model} "
      '--out=<folder>, and give the result as --model'
    )
  return adapter


def initial_params(policy: Policy, config: settings.InputSettings, mesh: jax.sharding.Mesh, key: Array) -> Params:
  """The initial parameters that a run trains: the model's, or the adapter's. Each is created on its own device."""
  shardings = rules.param_shardings(mesh, policy.trained_shapes())
  if policy.adapter is None:
    drawn = drawing_score(policy.model.config, config.seed)
    loading = checkpoint_io.Loading(together=processes.on_all, score=drawn)
    loading = with_adapter(loading, config, policy.model.config)
    return checkpoint_io.load_params(config.model, policy.model.config, shardings, loading)
  if config.adapter_from:
    return jax.jit(lambda factors: factors, out_shardings=shardings)(_stored_adapter(policy, config))
  model = policy.bind(_shapes(policy.model.config))
  drawn = jax.jit(model.init, out_shardings=shardings)(key)
  if lora.SCORE in drawn:
    with contextlib.ExitStack() as stack:  # the score head is that of the model, or a new one
      loading = checkpoint_io.Loading(together=processes.on_all, score=drawing_score(policy.model.config, config.seed))
      places = rules.param_shardings(mesh, _shapes(policy.model.config))
      leaves = checkpoint_io.deferred_params(config.model, policy.model.config, stack, places, loading)
      drawn[lora.SCORE] = {'kernel': leaves[lora.SCORE]['kernel'].load()}
  return drawn


def drawing_score(model_config: transformer.TransformerConfig, seed: int) -> Callable[[], Array]:
  """The function that draws the score head of a new reward model, for `Loading.score`."""
  return lambda: layers.score_kernel(jax.random.fold_in(jax.random.key(seed), 1), model_config.width)


def with_adapter(
  loading: checkpoint_io.Loading, config: settings.ModelSettings, model_config: transformer.TransformerConfig
) -> checkpoint_io.Loading:
  """`loading` of the model before training, which merges the adapter that the run starts from, if there is one.

  Merged leaves are float32 for any dtype of `loading`, so that a reference equals the model before training.
  """
  if not config.adapter_from:
    return loading
  return loading._replace(convert=peft.merging(config.adapter_from, model_config))


def _stored_adapter(policy: Policy, config: settings.ModelSettings) -> Params:
  """The factors in config.adapter_from, which must be those that config.adapter describes."""
  found, factors = peft.load(config.adapter_from, policy.model.config)
  shapes = jax.tree.map(lambda leaf: leaf.shape, factors)
  expected = jax.tree.map(lambda leaf: leaf.shape, policy.trained_shapes())
  if shapes != expected or found.scale != policy.adapter.scale:
    raise ValueError(
      f'config.adapter_from = {config.adapter_from!r}: is lora(rank={found.rank}, alpha={found.alpha:g}, '
      f'targets={found.targets!r}), and config.adapter = {config.adapter!r} is another one: give its values, or merge '
      'it into the model first, alignjax merge --adapter=...'
    )
  return jax.device_get(factors)


def load_base(
  adapter: lora.LoRA | None,
  config: settings.ModelSettings,
  model_config: transformer.TransformerConfig,
  mesh: jax.sharding.Mesh,
  record: Callable[[str, Array], None] = lambda path, leaf: None,
) -> Params | None:
  """The frozen model under an adapter, in the dtype of its file, each kernel quantised when it is read.

  Args:
    adapter: the adapter; without one, there is no such model, and the result is None.
    config: the folder of the model, and how it is quantised.
    model_config: its configuration.
    mesh: the mesh of the run.
    record: called with the path and the values of each leaf before it is quantised.
  """
  if adapter is None:
    return None
  shardings = rules.param_shardings(mesh, _shapes(model_config))
  return checkpoint_io.load_params(
    config.model, model_config, shardings, _loading_base(config, mesh, model_config.width, record)
  )


def deferred_base(
  adapter: lora.LoRA | None,
  config: settings.ModelSettings,
  model_config: transformer.TransformerConfig,
  mesh: jax.sharding.Mesh,
  stack: contextlib.ExitStack,
  record: Callable[[str, Array], None],
) -> Params | None:
  """The leaves of `load_base`, each to be read when it is needed, until `stack` closes."""
  if adapter is None:
    return None
  shardings = rules.param_shardings(mesh, _shapes(model_config))
  loading = _loading_base(config, mesh, model_config.width, record)
  return checkpoint_io.deferred_params(config.model, model_config, stack, shardings, loading)


def _loading_base(
  config: settings.ModelSettings, mesh: jax.sharding.Mesh, width: int, record: Callable[[str, Array], None]
) -> checkpoint_io.Loading:
  def place(path: str, part: Array) -> Array:  # the scales of a kernel get the sharding of the kernel
    return jax.device_put(part, NamedSharding(mesh, rules.partition_spec(path, part.shape, mesh)))

  def convert(path: str, leaf: Array) -> Any:
    record(path, leaf)
    if config.base_quantization == 'none':
      return leaf
    quantized = quantization.convert(path, leaf, config.base_quantization)
    return jax.tree.map(functools.partial(place, path), quantized)

  def no_score() -> Array:  # the score head is trained beside the adapter
    return jnp.zeros((width, 1))

  return checkpoint_io.Loading(None, convert, processes.on_all, no_score)


def describe(config: settings.ModelSettings, parameters: Params) -> str:
  """Describes the adapter in one line of the run's summary."""
  count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
  stored = ' and '.join(sorted(checkpoint_io.stored_dtypes(config.model)))
  base = stored if config.base_quantization == 'none' else config.base_quantization
  return f'{config.adapter}, {count:,} parameters on a base in {base}'


def _shapes(model_config: transformer.TransformerConfig) -> Params:
  return jax.eval_shape(transformer.build(model_config).init, jax.random.key(0))
