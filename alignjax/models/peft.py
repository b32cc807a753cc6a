"""Reads and writes adapters as PEFT folders: adapter_config.json and adapter_model.safetensors.

PEFT stores lora_A [r, in] and lora_B [out, r] for each layer, named after the weight that they adapt:

  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight

Kernels that a family fuses into one tensor share one pair of factors in PEFT. The separate factors are joined, which
changes only the rank: A is concatenated and B is block diagonal, x [A1 A2] [[B1, 0], [0, B2]] = [x A1 B1, x A2 B2].

The score head of a reward model is stored whole, as a module of `modules_to_save`: base_model.model.score.weight.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import itertools
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from alignjax.models import (
  checkpoint_io,
  classifiers,
  declaration,
  families,
  folders,
  lora,
  manifest,
  peft_entries,
  pieces,
  transformer,
  weight_files,
)
from alignjax.types import Params

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_FACTORS = {'lora_a': 'lora_A', 'lora_b': 'lora_B'}
_SCORE = _PREFIX + classifiers.SCORE


def save(
  folder: str | os.PathLike[str],
  config: transformer.TransformerConfig,
  settings: lora.LoRA,
  adapters: Params,
  base: str | os.PathLike[str],
  about: folders.About = folders.UNTOLD,
) -> None:
  """Writes a folder that PEFT can load onto the base model. In a multi-process run, all processes must call it.

  Args:
    folder: the folder to write. If it exists, it must hold an adapter and nothing else.
    config: the configuration of the model.
    settings: which kernels are adapted, and how.
    adapters: the factors, with any sharding.
    base: the folder of the base model, recorded as `base_model_name_or_path`.
    about: the run and the step of the factors, stored in the manifest, and the model card.

  Raises:
    ValueError: a value is not finite, or the folder holds other files.
  """
  score = {name: inner for name, inner in adapters.items() if name == lora.SCORE}
  by_tensor = _by_tensor(config, {name: inner for name, inner in adapters.items() if name not in score})
  ranks = {_module_name(tensor): _rank(tensor, factors) for tensor, factors in by_tensor.items()}
  entries = {
    **peft_entries.FIXED,
    'task_type': 'SEQ_CLS' if score else 'CAUSAL_LM',
    'base_model_name_or_path': os.fspath(base),
    'r': settings.rank,
    'lora_alpha': _plain(settings.alpha),
    'lora_dropout': 0.0,
    'target_modules': sorted(ranks),
    'rank_pattern': {name: rank for name, rank in ranks.items() if rank != settings.rank},
    'alpha_pattern': {name: _plain(rank * settings.scale) for name, rank in ranks.items() if rank != settings.rank},
    'fan_in_fan_out': not any(tensor.transposed for tensor in by_tensor),
    'inference_mode': True,
  }
  planned, tensors = _planned(config, by_tensor), _stored_tensors(config, by_tensor)
  if score:
    entries['modules_to_save'] = [lora.SCORE]
    planned.append(weight_files.Planned(_SCORE, (1, config.width), 'float32'))
    tensors = itertools.chain(tensors, _stored_score(score[lora.SCORE]['kernel']))
  if jax.process_index() == 0:
    with folders.replacing(folder, (CONFIG, WEIGHTS, folders.CARD), about) as partial:
      folders.write_json(partial / CONFIG, entries)
      with weight_files.writing({partial / WEIGHTS: planned}) as writer:
        for name, value in tensors:
          writer.write(name, 0, value)
  else:
    for _ in tensors:  # all processes must take part in gathering sharded factors
      pass
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('alignjax.models.peft.save')


def load(folder: str | os.PathLike[str], config: transformer.TransformerConfig) -> tuple[lora.LoRA, Params]:
  """Reads a folder written by `save` or PEFT.

  Returns:
    The settings, and the factors in float32. Kernels that are fused into one tensor get copies of the same A, with the
    rank that it has in the file.

  Raises:
    ValueError: a file is missing, malformed or different from the manifest, an entry is unknown or unsupported, or a
      tensor is missing, unexpected, of the wrong shape or not finite. The message names the file, entry or tensor.
  """
  folder = pathlib.Path(folder)
  manifest.check_settings(folder)
  manifest.check_weights(folder)
  entries = folders.read_json(folder / CONFIG)
  with folders.naming(folder / CONFIG):
    peft_entries.check_kind(entries)
  shapes = jax.eval_shape(transformer.build(config).init, jax.random.key(0))
  family = families.of(config)
  with folders.naming(folder / WEIGHTS):
    if not (folder / WEIGHTS).exists() and (folder / 'adapter_model.bin').exists():
      raise ValueError(
        'is missing, there is only adapter_model.bin, whose pickles can run code. If you trust its source, convert it '
        f'where torch is installed: python -c "import torch; from safetensors.torch import save_file; '
        f"save_file(torch.load('{folder / 'adapter_model.bin'}', weights_only=True), '{folder / WEIGHTS}')\""
      )
    stored = safetensors_numpy.load_file(folder / WEIGHTS)
    tensors = {path: family.tensor('/'.join((*path, 'kernel'))) for path in lora.kernels(shapes)}
    adapted = {
      path: tensor for path, tensor in tensors.items() if not stored.keys().isdisjoint(_names(tensor, config, 'lora_a'))
    }
    if not adapted:
      raise ValueError(f'no tensor adapts a kernel of the model; the tensors are {folders.listed(stored)}')
  with folders.naming(folder / CONFIG):
    targets = '+'.join('/'.join(path[1:]) for path in adapted)
    settings = peft_entries.settings(entries, targets)
    modules = {_module_name(tensor): _modules(tensor, config) for tensor in adapted.values()}
    if config.scored and entries.get('modules_to_save'):  # PEFT also lists names that the model does not have
      _check_saved_modules(entries['modules_to_save'])
      entries = {**entries, 'modules_to_save': None}
    ranks = peft_entries.ranks(entries, settings, modules)
  with folders.naming(folder / WEIGHTS):
    adapters: dict[str, Any] = {}
    for path, tensor in adapted.items():
      place = adapters
      for name in path:
        place = place.setdefault(name, {})
      place |= _read(tensor, '/'.join((*path, 'kernel')), config, ranks[_module_name(tensor)], stored)
    known = {name for tensor in adapted.values() for factor in _FACTORS for name in _names(tensor, config, factor)}
    if config.scored:
      known |= {_SCORE}
      adapters[lora.SCORE] = {'kernel': _read_score(config, stored)}
    if unexpected := stored.keys() - known:
      raise ValueError(f'tensors unexpected: {folders.listed(unexpected)}')
  return settings, adapters


def merging(
  folder: str | os.PathLike[str], config: transformer.TransformerConfig
) -> Callable[[str, jax.Array], jax.Array]:
  """A `Loading.convert` that merges an adapter into the kernels of its base: W + alpha / r A B, in float32.

  Args, Raises: see `load`.
  """
  settings, adapters = load(folder, config)
  score = adapters.pop(lora.SCORE, None)
  leaves = {}
  for path, factor in jax.tree_util.tree_leaves_with_path(adapters):
    *module, kind = (key.key for key in path)
    leaves.setdefault('/'.join((*module, 'kernel')), {})[kind] = np.asarray(factor)

  def convert(path: str, leaf: jax.Array) -> jax.Array:
    leaf = leaf.astype(jnp.float32)
    if path == checkpoint_io.SCORE:
      return jax.device_put(score['kernel'], leaf.sharding)
    if path not in leaves:
      return leaf
    add = jax.jit(functools.partial(_added, settings.scale), out_shardings=leaf.sharding)
    return add(leaf, leaves[path]['lora_a'], leaves[path]['lora_b'])

  return convert


def _added(scale: float, kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  return kernel + scale * jnp.matmul(a, b, precision='highest')


def _stored_score(kernel: Any) -> Iterator[tuple[str, np.ndarray | None]]:
  """Yields the name and the values of the score head; only process 0 gets values."""
  value = pieces.fetch_all(pieces.loaded(kernel))
  yield _SCORE, None if value is None else value.T


def _read_score(config: transformer.TransformerConfig, stored: Mapping[str, np.ndarray]) -> jax.Array:
  """The score head, [D, 1]."""
  if _SCORE not in stored:
    raise ValueError(f'tensor missing: {_SCORE}, the score head of a reward model')
  if stored[_SCORE].shape != (1, config.width):
    raise ValueError(f'tensor {_SCORE}: expected shape {(1, config.width)}, found {stored[_SCORE].shape}')
  folders.check_finite(_SCORE, stored[_SCORE])
  return jnp.asarray(stored[_SCORE].T, jnp.float32)


def _check_saved_modules(names: Any) -> None:
  known = {lora.SCORE, 'classifier'}
  if not isinstance(names, list) or not set(names) <= known or lora.SCORE not in names:
    raise ValueError(f'modules_to_save={names!r}: only {[lora.SCORE]!r} is supported')


def _by_tensor(
  config: transformer.TransformerConfig, adapters: Params
) -> dict[declaration.Tensor, dict[str, dict[str, Any]]]:
  """The factors of each adapted kernel, grouped by the tensor that stores it in the base."""
  family, found = families.of(config), {}
  for path, factor in jax.tree_util.tree_leaves_with_path(adapters):
    *module, kind = (key.key for key in path)
    kernel = '/'.join((*module, 'kernel'))
    found.setdefault(family.tensor(kernel), {}).setdefault(kernel, {})[kind] = factor
  return found


def _rank(tensor: declaration.Tensor, factors: Mapping[str, Mapping[str, Any]]) -> int:
  """The rank of the joined factors of a tensor."""
  return sum(factors[leaf]['lora_a'].shape[-1] for leaf in tensor.leaves if leaf in factors)


def _planned(
  config: transformer.TransformerConfig, by_tensor: Mapping[declaration.Tensor, Mapping[str, Any]]
) -> list[weight_files.Planned]:
  """The tensors to store."""
  planned = []
  for tensor, factors in by_tensor.items():
    rank, inputs = _rank(tensor, factors), next(iter(factors.values()))['lora_a'].shape[1]
    for factor, shape in (('lora_a', (rank, inputs)), ('lora_b', (sum(_outputs(tensor, config)), rank))):
      planned += [weight_files.Planned(name, shape, 'float32') for name in _names(tensor, config, factor)]
  return planned


def _stored_tensors(
  config: transformer.TransformerConfig, by_tensor: Mapping[declaration.Tensor, Mapping[str, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the names and values to store, layer by layer; only process 0 gets values."""
  for tensor, deferred in by_tensor.items():
    factors = pieces.loaded(deferred)
    for layer in range(config.layers):
      held = {
        leaf: {kind: pieces.fetch_all(value, (layer,)) for kind, value in pair.items()}
        for leaf, pair in factors.items()
      }
      joined = _joined(tensor, held, config) if jax.process_index() == 0 else dict.fromkeys(_FACTORS)
      for factor, value in joined.items():
        yield _names(tensor, config, factor)[layer], value if value is None else value.T


def _joined(
  tensor: declaration.Tensor, factors: Mapping[str, Mapping[str, np.ndarray]], config: transformer.TransformerConfig
) -> dict[str, np.ndarray]:
  """One pair of factors, [in, r] and [r, out], for all kernels in a tensor, adapted or not."""
  a = np.concatenate([factors[leaf]['lora_a'] for leaf in tensor.leaves if leaf in factors], -1)
  parts, first = [], 0
  for leaf, outputs in zip(tensor.leaves, _outputs(tensor, config), strict=True):
    part = np.zeros((a.shape[-1], outputs), np.float32)
    if leaf in factors:
      b = factors[leaf]['lora_b']
      part[first : first + len(b)] = b
      first += len(b)
    parts.append(part)
  return {'lora_a': a, 'lora_b': tensor._replace(transposed=False).join(parts, tensor.group_count(config))}


def _read(
  tensor: declaration.Tensor,
  kernel: str,
  config: transformer.TransformerConfig,
  rank: int,
  stored: Mapping[str, np.ndarray],
) -> dict[str, jax.Array]:
  """The factors of one kernel, stacked over layers."""
  shapes = checkpoint_io.parameter_shapes(config)[0]
  outputs = _outputs(tensor, config)
  expected = {'lora_a': (rank, shapes[kernel][1]), 'lora_b': (sum(outputs), rank)}
  layers: dict[str, list[np.ndarray]] = {factor: [] for factor in _FACTORS}
  for factor, shape in expected.items():
    for name in _names(tensor, config, factor):
      if name not in stored:
        raise ValueError(f'tensor missing: {name}')
      if stored[name].shape != shape:
        raise ValueError(f'tensor {name}: expected shape {shape}, found {stored[name].shape}')
      folders.check_finite(name, stored[name])
      layers[factor].append(stored[name].astype(np.float32))
  split = tensor._replace(transposed=True)  # B is stored as [out, r], regardless of the layout of the kernel
  b = [split.part(value, kernel, outputs, tensor.group_count(config)) for value in layers['lora_b']]
  return {'lora_a': jnp.stack([value.T for value in layers['lora_a']]), 'lora_b': jnp.stack(b)}


def _outputs(tensor: declaration.Tensor, config: transformer.TransformerConfig) -> list[int]:
  """The number of outputs of each kernel in a tensor."""
  shapes = checkpoint_io.parameter_shapes(config)[0]
  return [shapes[leaf][-1] for leaf in tensor.leaves]


def _module_name(tensor: declaration.Tensor) -> str:
  """The PEFT name of a module in a layer: 'self_attn.q_proj'."""
  return tensor.name.split('{layer}.')[1].removesuffix('.weight')


def _modules(tensor: declaration.Tensor, config: transformer.TransformerConfig) -> list[str]:
  """The full names of a module, one per layer."""
  return [name.removesuffix('.weight') for name in tensor.names((config.layers,))]


def _names(tensor: declaration.Tensor, config: transformer.TransformerConfig, factor: str) -> list[str]:
  """The stored names of a factor, one per layer."""
  return [f'{_PREFIX}{name}.{_FACTORS[factor]}.weight' for name in _modules(tensor, config)]


def _plain(number: float) -> int | float:
  """Converts whole numbers to int, because some tools require integers."""
  return int(number) if float(number).is_integer() else number
