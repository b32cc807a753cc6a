"""Divides leaves into blocks of rows of the tensors that store them, and fetches the blocks from the devices."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from alignjax.models import declaration, folders, lora, pieces, transformer, weight_files
from alignjax.types import Params


def checked(expected: Mapping[str, tuple[int, ...]], params: Params) -> dict[str, Any]:
  """The parameters by path, after comparing their names and shapes with the expected ones.

  Raises:
    ValueError: they differ. The message names the parameters.
  """
  paths, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=lora.is_kernel)
  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}
  if different := expected.keys() ^ leaves.keys():
    raise ValueError(f'parameters do not match the configuration: missing or unexpected {folders.listed(different)}')
  for leaf, shape in expected.items():
    if leaves[leaf].shape != shape:
      raise ValueError(f'parameter {leaf}: expected shape {shape}, found {leaves[leaf].shape}')
  return leaves


def planned(
  family: declaration.Family, shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> list[weight_files.Planned]:
  """The tensors that store parameters of these shapes, in the order of the leaves."""
  tensors = []
  for leaf, shape in shapes.items():
    tensor = family.tensor(leaf)
    if leaf == tensor.leaf:  # other leaves are stored as part of that leaf's tensor
      stored = tensor.stored_shape([shapes[part] for part in tensor.leaves])
      tensors += [weight_files.Planned(name, stored, dtype) for name in tensor.names(shape)]
  return tensors


def blocks(
  family: declaration.Family, config: transformer.TransformerConfig, leaves: Mapping[str, Any]
) -> Iterator[tuple[str, int, np.ndarray | None]]:
  """Yields the values to store in blocks of rows, leaf by leaf: name, first row and rows; only process 0 gets rows."""
  for leaf in leaves:
    tensor = family.tensor(leaf)
    if leaf != tensor.leaf:
      continue
    yield from _tensor_blocks(tensor, config, {part: pieces.loaded(leaves[part]) for part in tensor.leaves})


def _tensor_blocks(
  tensor: declaration.Tensor, config: transformer.TransformerConfig, parts: Mapping[str, Any]
) -> Iterator[tuple[str, int, np.ndarray | None]]:
  """The part of `blocks` for the leaves of one tensor."""
  shape = parts[tensor.leaf].shape
  for place, name in zip(tensor.places(shape), tensor.names(shape), strict=True):
    rows = {part: lora.merged_part(value, place) for part, value in parts.items()}
    shapes = [value.shape[len(place) :] for value, place in rows.values()]
    size = max(value.dtype.itemsize for value, _ in rows.values())
    for block in tensor.blocks(shapes, tensor.group_count(config), pieces.PIECE // size):
      values = [_fetch(*rows[part], block.axis, *extent) for part, extent in block.parts.items()]
      yield name, block.first, tensor.join(values, block.groups) if jax.process_index() == 0 else None


def _fetch(value: Any, place: tuple[int, ...], axis: int, first: int, count: int) -> np.ndarray | None:
  """Fetches the entries first : first + count along an axis of value[place]."""
  row = value.shape[len(place) :]
  axis %= len(row)
  start, sizes = [0] * len(row), list(row)
  start[axis], sizes[axis] = first, count
  block = pieces.fetch(value, (*place, *start), (*(1 for _ in place), *sizes))
  return None if block is None else block.reshape(sizes)
