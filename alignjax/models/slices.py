"""Reads the parts of a model's leaves that the devices of this process hold, each byte of a file at most once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from alignjax.models import declaration, folders

BLOCK_ENTRIES = 2**23  # entries of a tensor in host memory at a time, besides those of the leaf, unless a row has more
Range = tuple[int, int]  # first and one past the last
Index = tuple[Range, ...]  # of a part of a leaf, one range for each axis


class Stored(NamedTuple):
  """Where a leaf is stored.

  Attributes:
    leaf: the path of the leaf.
    shape: its shape.
    tensor: the declaration of its tensor.
    sizes: the numbers of outputs of the tensor's leaves.
    groups: the number of groups in which these leaves alternate.
    files: the stored tensors, one for each of the tensor's `places`.
  """

  leaf: str
  shape: tuple[int, ...]
  tensor: declaration.Tensor
  sizes: Sequence[int]
  groups: int
  files: Sequence[folders.StoredTensor]

  @property
  def dtype(self) -> str:
    """The dtype of the stored tensors; float32 if they differ."""
    found = {folders.DTYPES[file.dtype] for file in self.files}
    return found.pop() if len(found) == 1 else 'float32'

  def read(self, indices: Sequence[Index], dtype: str) -> list[np.ndarray]:
    """Reads parts of the leaf.

    Args:
      indices: the parts.
      dtype: the dtype of the result.

    Raises:
      ValueError: a tensor cannot be read, or a value is not finite.
    """
    parts = [np.empty([last - first for first, last in index], np.dtype(dtype)) for index in indices]
    for place, file in zip(self.tensor.places(self.shape), self.files, strict=True):
      needed: dict[Range, list[tuple[Range, np.ndarray]]] = {}
      for part, index in zip(parts, indices, strict=True):
        outer, index = index[: len(place)], index[len(place) :]
        if not all(first <= at < last for at, (first, last) in zip(place, outer, strict=True)):
          continue
        part = part[tuple(at - first for at, (first, _) in zip(place, outer, strict=True))]
        for rows, columns, target in self._stored(part, index):
          needed.setdefault(rows, []).append((columns, target))
      for rows, targets in needed.items():
        for whole in _united([columns for columns, _ in targets]):
          held = [(columns, target) for columns, target in targets if whole[0] <= columns[0] < whole[1]]
          for first, last in _blocks(rows, whole):
            block = file.read((first, last), whole)
            for columns, target in held:
              target[first - rows[0] : last - rows[0]] = block[:, columns[0] - whole[0] : columns[1] - whole[0]]
    return parts

  def _stored(self, part: np.ndarray, index: Sequence[Range]) -> Iterator[tuple[Range, Range, np.ndarray]]:
    """The rows and columns of the stored tensor that hold a part of one layer, and the views of the part to fill."""
    *inputs, outputs = index
    for place, stored in self._outputs(outputs):
      view = part[..., place[0] - outputs[0] : place[1] - outputs[0]]
      if not inputs:
        yield stored, (0, 1), view[:, None]
      elif self.tensor.transposed:
        yield stored, inputs[0], view.T
      else:
        yield inputs[0], stored, view

  def _outputs(self, outputs: Range) -> Iterator[tuple[Range, Range]]:
    """Consecutive outputs of the leaf, and their places in the stored tensor."""
    which = self.tensor.leaves.index(self.leaf)
    of_leaves = [size // self.groups for size in self.sizes]
    size, before, of_group = of_leaves[which], sum(of_leaves[:which]), sum(of_leaves)
    if size == of_group:  # the tensor holds no other leaf
      yield outputs, outputs
      return
    for group in range(outputs[0] // size, -(-outputs[1] // size)):
      first, last = max(outputs[0], group * size), min(outputs[1], (group + 1) * size)
      shift = group * (of_group - size) + before
      yield (first, last), (first + shift, last + shift)


def place(stored: Stored, sharding: jax.sharding.Sharding | None, read: Callable[[Sequence[Index]], list[Any]]) -> Any:
  """Reads what this process needs of a leaf, and places it on the devices.

  Args:
    stored: the leaf.
    sharding: its sharding; None for the default device.
    read: reads parts of the leaf, such as `Stored.read` in one dtype.
  """
  if sharding is None:
    return jax.device_put(read([_index((), stored.shape)])[0])
  indices = {_index(index, stored.shape) for index in sharding.addressable_devices_indices_map(stored.shape).values()}
  ordered = sorted(indices)
  parts: Mapping[Index, np.ndarray] = dict(zip(ordered, read(ordered), strict=True))
  return jax.make_array_from_callback(stored.shape, sharding, lambda index: parts[_index(index, stored.shape)])


def _index(slices: Sequence[slice], shape: tuple[int, ...]) -> Index:
  filled = itertools.chain(slices, [slice(None)] * (len(shape) - len(slices)))
  return tuple(part.indices(size)[:2] for part, size in zip(filled, shape, strict=True))


def _blocks(rows: Range, columns: Range) -> Iterator[Range]:
  """Divides rows into ranges of at most BLOCK_ENTRIES entries, but at least one row."""
  step = max(1, BLOCK_ENTRIES // (columns[1] - columns[0]))
  for first in range(*rows, step):
    yield first, min(first + step, rows[1])


def _united(ranges: Sequence[Range]) -> list[Range]:
  """The union of ranges, as few ranges as possible."""
  united: list[Range] = []
  for first, last in sorted(set(ranges)):
    if united and first <= united[-1][1]:
      united[-1] = united[-1][0], max(last, united[-1][1])
    else:
      united.append((first, last))
  return united
