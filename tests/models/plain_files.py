"""A plain implementation of the export, with whole arrays: the bytes that the files must have."""

import pathlib

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from alignjax.models import families, lora, peft
from tests.models import model_folders


def weights(path: pathlib.Path, config, params, dtype='float32') -> bytes:
  """The weight file of a model, by safetensors' own writer."""
  params = jax.tree.map(lora.dense, params, is_leaf=lora.is_kernel)
  family, leaves, tensors = families.of(config), model_folders.flat(params), {}
  for leaf in leaves:
    tensor = family.tensor(leaf)
    if leaf == tensor.leaf:
      parts = [leaves[part] for part in tensor.leaves]
      names = tensor.names(parts[0].shape)
      for name, place in zip(names, np.ndindex(parts[0].shape[: tensor.depth]), strict=True):
        row = [part[place] for part in parts]
        tensors[name] = np.ascontiguousarray(tensor.join(row, tensor.group_count(config)).astype(dtype))
  return _written(path, tensors)


def adapter(path: pathlib.Path, config, adapters) -> bytes:
  """The weight file of an adapter: factors joined for all layers at once."""
  family, found, tensors = families.of(config), {}, {}
  for leaf, factor in model_folders.flat(adapters).items():
    kernel, kind = leaf.rsplit('/', 1)
    found.setdefault(family.tensor(f'{kernel}/kernel'), {}).setdefault(f'{kernel}/kernel', {})[kind] = factor
  for tensor, factors in found.items():
    a = np.concatenate([factors[leaf]['lora_a'] for leaf in tensor.leaves if leaf in factors], -1)
    parts, first = [], 0
    for leaf, outputs in zip(tensor.leaves, peft._outputs(tensor, config), strict=True):
      part = np.zeros((a.shape[0], a.shape[-1], outputs), np.float32)
      if leaf in factors:
        b = factors[leaf]['lora_b']
        part[:, first : first + b.shape[1]] = b
        first += b.shape[1]
      parts.append(part)
    b = tensor._replace(transposed=False).join(parts, tensor.group_count(config))
    for kind, layers in (('lora_a', a), ('lora_b', b)):
      for name, value in zip(peft._names(tensor, config, kind), layers, strict=True):
        tensors[name] = np.ascontiguousarray(value.T, np.float32)
  return _written(path, tensors)


def _written(path: pathlib.Path, tensors) -> bytes:
  safetensors_numpy.save_file(tensors, path, metadata={'format': 'pt'})
  return path.read_bytes()
