"""Writes safetensors files whose tensors arrive in blocks of rows, in any order.

The files have the bytes that `safetensors.numpy.save_file` would write.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from alignjax.models import folders

_STORED = {dtype: stored for stored, dtype in folders.DTYPES.items()}


class Planned(NamedTuple):
  """A tensor to write."""

  name: str
  shape: tuple[int, ...]
  dtype: str

  @property
  def nbytes(self) -> int:
    """The size of its values."""
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize

  @property
  def row_bytes(self) -> int:
    """The size of one entry along its first axis."""
    return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize


class Writer:
  """Open weight files. Blocks are written at their places."""

  def __init__(self, contents: Mapping[pathlib.Path, Sequence[Planned]], stack: contextlib.ExitStack):
    self._places: dict[str, tuple[int, int, Planned]] = {}
    self._missing = 0
    for path, tensors in contents.items():
      file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
      stack.callback(os.close, file)
      text = header(tensors)
      _write(file, text, 0)
      offset = len(text)
      for tensor in in_file_order(tensors):
        self._places[tensor.name] = file, offset, tensor
        offset += tensor.nbytes
        self._missing += tensor.nbytes

  def write(self, name: str, first: int, rows: np.ndarray) -> None:
    """Writes the rows of a tensor from `first` on.

    Raises:
      ValueError: a value is not finite in the planned dtype.
    """
    file, offset, tensor = self._places[name]
    with np.errstate(over='ignore'):  # the check raises an error that names the tensor
      values = np.ascontiguousarray(rows.astype(np.dtype(tensor.dtype), copy=False))
    folders.check_finite(name, values)
    _write(file, values.reshape(-1).view(np.uint8), offset + first * tensor.row_bytes)
    self._missing -= values.nbytes

  def check_complete(self) -> None:
    """Raises an AssertionError unless everything that was planned has been written."""
    assert not self._missing, f'{self._missing} bytes of the planned tensors were not written'


@contextlib.contextmanager
def writing(contents: Mapping[pathlib.Path, Sequence[Planned]]) -> Iterator[Writer]:
  """Creates weight files and yields their writer.

  Args:
    contents: the tensors of each file.
  """
  with contextlib.ExitStack() as stack:
    writer = Writer(contents, stack)
    yield writer
    writer.check_complete()


def divide(
  folder: pathlib.Path, tensors: Sequence[Planned], shard_bytes: int = folders.SHARD_BYTES
) -> dict[pathlib.Path, list[Planned]]:
  """Divides tensors among the weight files of a folder, and writes their index if there are several.

  Args:
    folder: the folder of the files.
    tensors: the tensors, in the order in which they are divided.
    shard_bytes: largest size of one file, in bytes; a larger tensor gets a file of its own.
  """
  parts = shards(tensors, shard_bytes)
  if len(parts) == 1:
    return {folder / folders.WEIGHTS: parts[0]}
  paths = [folder / f'model-{index + 1:05d}-of-{len(parts):05d}.safetensors' for index in range(len(parts))]
  contents = dict(zip(paths, parts, strict=True))
  weight_map = {tensor.name: path.name for path, part in contents.items() for tensor in part}
  total = sum(tensor.nbytes for tensor in tensors)
  folders.write_json(folder / folders.INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map})
  return contents


def shards(tensors: Sequence[Planned], shard_bytes: int) -> list[list[Planned]]:
  """Divides tensors into lists of at most `shard_bytes`, unless one tensor is larger."""
  parts: list[list[Planned]] = [[]]
  held = 0
  for tensor in tensors:
    if parts[-1] and held + tensor.nbytes > shard_bytes:
      parts.append([])
      held = 0
    parts[-1].append(tensor)
    held += tensor.nbytes
  return parts


def in_file_order(tensors: Sequence[Planned]) -> list[Planned]:
  """The order of tensors in a file: by size of an entry, the largest first, then by name."""
  return sorted(tensors, key=lambda tensor: (-np.dtype(tensor.dtype).itemsize, tensor.name))


def header(tensors: Sequence[Planned]) -> bytes:
  """The header of a safetensors file, padded so that the values are aligned."""
  entries: dict[str, object] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for tensor in in_file_order(tensors):
    end = offset + tensor.nbytes
    entries[tensor.name] = {'dtype': _STORED[tensor.dtype], 'shape': tensor.shape, 'data_offsets': [offset, end]}
    offset = end
  text = json.dumps(entries, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def _write(file: int, values: bytes | np.ndarray, offset: int) -> None:
  left = memoryview(values)
  while left:  # one call writes at most 2 GiB
    count = os.pwrite(file, left, offset)
    left, offset = left[count:], offset + count
