"""Adapters in and out as PEFT folders: adapter_config.json and adapter_model.safetensors.

PEFT holds lora_A [r, in] and lora_B [out, r] of each layer, named after the weight that they adapt:

  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, declaration, families, folders, transformer
from alignjax.models import lora as lora_lib
from alignjax.types import Params

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_FACTORS = {'lora_a': 'lora_A', 'lora_b': 'lora_B'}
_FIXED = {'peft_type': 'LORA', 'bias': 'none'}  # entries with the only value that is supported
_KNOWN = {*_FIXED, 'r', 'lora_alpha', 'target_modules'}
_IGNORED = {
  'auto_mapping',
  'base_model_name_or_path',
  'exclude_modules',  # the tensors say what is adapted
  'fan_in_fan_out',  # how the base stores its weights, which are not read here
  'inference_mode',
  'init_lora_weights',
  'lora_dropout',  # in training alone
  'megatron_core',
  'peft_version',
  'qalora_group_size',  # of no effect without use_qalora
  'revision',
  'task_type',
}


def save(
  folder: str | os.PathLike[str],
  config: transformer.TransformerConfig,
  lora: lora_lib.LoRA,
  adapters: Params,
  base: str | os.PathLike[str],
) -> None:
  """Writes a folder that PEFT loads onto the base model. In a run of several processes all of them call this.

  Args:
    folder: to write. If it exists, it must hold an adapter and nothing else.
    config: of the model.
    lora: which kernels are adapted, and how.
    adapters: the factors, on any sharding.
    base: the folder of the base model, for the entry that names it.

  Raises:
    ValueError: as for `check`; a value is not finite; or the folder is unfit.
  """
  check(config, adapters)
  tensors = {}
  for path, factor in jax.tree_util.tree_leaves_with_path(adapters):
    module, kind = _split(path)
    for name, value in zip(_names(config, module, kind), checkpoint_io.on_host(factor), strict=True):
      folders.check_finite(name, value)
      tensors[name] = np.ascontiguousarray(value.T, np.float32)
  if jax.process_index() == 0:
    with folders.replacing(folder, (CONFIG, WEIGHTS)) as partial:
      folders.write_json(partial / CONFIG, _entries(config, lora, adapters, base))
      safetensors_numpy.save_file(tensors, partial / WEIGHTS, metadata={'format': 'pt'})
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('alignjax.models.peft.save')


def load(folder: str | os.PathLike[str], config: transformer.TransformerConfig) -> tuple[lora_lib.LoRA, Params]:
  """Reads a folder that `save`, or PEFT, has written.

  Returns:
    What is adapted and how, and the factors in float32.

  Raises:
    ValueError: a file is absent or malformed; an entry is unknown or not supported; a tensor is missing, unexpected,
      mis-shaped or not finite; or as for `check`. The message names it.
  """
  folder = pathlib.Path(folder)
  entries = folders.read_json(folder / CONFIG)
  shapes = jax.eval_shape(transformer.build(config).init, jax.random.key(0))
  with folders.naming(folder / WEIGHTS):
    stored = safetensors_numpy.load_file(folder / WEIGHTS)
    modules = ['/'.join(path) for path in lora_lib.kernels(shapes)]
    adapted = [module for module in modules if _names(config, module, 'lora_a')[0] in stored]
    if not adapted:
      raise ValueError(f'adapts no kernel of the model; its tensors are {folders.listed(stored)}')
  with folders.naming(folder / CONFIG):
    _check_entries(entries)
    targets = '+'.join(module.removeprefix('layers/') for module in adapted)
    lora = lora_lib.LoRA(entries.get('r'), entries.get('lora_alpha'), targets)
  like = jax.eval_shape(lambda key: lora_lib.init(key, shapes, lora), jax.random.key(0))
  check(config, like)
  with folders.naming(folder / WEIGHTS):
    adapters = jax.tree_util.tree_map_with_path(lambda path, leaf: _read(config, path, leaf.shape, stored), like)
    if stored:
      raise ValueError(f'tensors unexpected: {folders.listed(stored)}')
  return lora, adapters


def check(config: transformer.TransformerConfig, adapters: Params) -> None:
  """Looks whether these adapters can be stored.

  Args:
    config: of the model.
    adapters: the factors, or their shapes.

  Raises:
    ValueError: the family stores an adapted kernel in one tensor with others, which are not adapted by one A.
  """
  family = families.of(config)
  leaves = checkpoint_io.parameter_shapes(config)[0]
  for path, _ in jax.tree_util.tree_leaves_with_path(adapters):
    kernel = f'{_split(path)[0]}/kernel'
    together = [leaf for leaf in leaves if family.tensor(leaf).name == family.tensor(kernel).name]
    if len(together) > 1:
      raise ValueError(
        f'model_type {config.model_type!r} stores {", ".join(together)} in one tensor, so their adapters cannot be '
        'written in PEFT layout: choose targets without them'
      )


def _split(path: tuple[Any, ...]) -> tuple[str, str]:
  """The module of a factor, 'layers/attention/query', and which factor it is."""
  *module, factor = (key.key for key in path)
  return '/'.join(module), factor


def _tensor(config: transformer.TransformerConfig, module: str) -> declaration.Tensor:
  return families.by_type(config.model_type).tensor(f'{module}/kernel')


def _names(config: transformer.TransformerConfig, module: str, factor: str) -> list[str]:
  """The stored names of a factor, layer by layer."""
  names = _tensor(config, module).names((config.layers,))
  return [f'{_PREFIX}{name.removesuffix(".weight")}.{_FACTORS[factor]}.weight' for name in names]


def _entries(
  config: transformer.TransformerConfig, lora: lora_lib.LoRA, adapters: Params, base: str | os.PathLike[str]
) -> dict[str, Any]:
  """The contents of adapter_config.json."""
  modules = {_split(path)[0] for path, _ in jax.tree_util.tree_leaves_with_path(adapters)}
  tensors = [_tensor(config, module) for module in sorted(modules)]
  return {
    **_FIXED,
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': os.fspath(base),
    'r': lora.rank,
    'lora_alpha': int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,  # some tools want an integer
    'lora_dropout': 0.0,
    'target_modules': [tensor.name.split('{layer}.')[1].removesuffix('.weight') for tensor in tensors],
    'fan_in_fan_out': not tensors[0].transposed,
    'inference_mode': True,
  }


def _check_entries(entries: Mapping[str, Any]) -> None:
  """Refuses what would make the adapter another function. PEFT writes every entry that it knows, set or not."""
  refused = [
    f'{key}={entries.get(key)!r} (only {value!r})' for key, value in _FIXED.items() if entries.get(key) != value
  ]
  refused += [f'{key}={value!r}' for key, value in entries.items() if value and key not in _KNOWN | _IGNORED]
  if refused:
    raise ValueError(f'entries that are not supported here: {", ".join(refused)}')


def _read(
  config: transformer.TransformerConfig, path: tuple[Any, ...], shape: tuple[int, ...], stored: dict[str, np.ndarray]
) -> jax.Array:
  """Takes one factor of all layers out of what is stored."""
  factor = np.empty(shape, np.float32)
  for name, row in zip(_names(config, *_split(path)), factor, strict=True):
    if name not in stored:
      raise ValueError(f'tensor missing: {name}')
    value = stored.pop(name)
    if value.shape != row.T.shape:
      raise ValueError(f'tensor {name}: expected shape {row.T.shape}, found {value.shape}')
    folders.check_finite(name, value)
    row[...] = value.T
  return jax.numpy.asarray(factor)
