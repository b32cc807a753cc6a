"""Reads and writes tensors of Hugging Face folders by rows, so that models of any size need little memory.

Weights are safetensors only. The safetensors library checks the headers. Values are then read at the offsets in the
headers instead of from a memory map, because pages of a memory map stay in memory after they are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import pathlib

import numpy as np

from alignjax import merging
from alignjax.models import checkpoint_io, folders, tied_heads, transformer, weight_files

BLOCK_ENTRIES = 2**20  # entries of a tensor in memory at a time, unless one row has more
_STORED = {dtype: stored for stored, dtype in folders.DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Place:
  """Location of the values of a tensor."""

  name: str
  path: pathlib.Path
  shape: tuple[int, ...]
  dtype: str  # one of the values of folders.DTYPES
  offset: int  # bytes from the start of the file

  def blocks(self) -> Iterator[np.ndarray]:
    """Its rows in order, in arrays [rows, columns] of the type on disk.

    Raises:
      ValueError: the file became shorter, or a value is not finite.
    """
    rows, columns = merging.rows_and_columns(self.shape)
    step = max(1, BLOCK_ENTRIES // columns)
    with self.path.open('rb') as file:
      file.seek(self.offset)
      for first in range(0, rows, step):
        count = min(step, rows - first) * columns
        values = np.fromfile(file, np.dtype(self.dtype), count)
        with folders.naming(self.path):
          if values.size != count:
            raise ValueError(f'tensor {self.name}: the file ends in the middle of it')
          folders.check_finite(self.name, values)
        yield values.reshape(-1, columns)


def places(folder: pathlib.Path, config: transformer.TransformerConfig | None = None) -> dict[str, Place]:
  """The tensors of a folder by name, sorted.

  Args:
    folder: a Hugging Face folder.
    config: its configuration: tensors get the full names of its family, and a head that repeats a tied embedding and
      tensors that are not parameters are left out. None: all tensors as they are stored.

  Raises:
    ValueError: a weight file is absent or malformed, the type of a tensor is not in folders.DTYPES, or the head of a
      tied model differs from its embedding.
  """
  family = None if config is None else checkpoint_io.family_of(folder)
  with contextlib.ExitStack() as stack:
    tensors = folders.open_tensors(folder, stack, family.ignored_tensors if family else ())
    if family:
      with folders.naming(folder):
        tensors = family.prefixed(tensors)
        tensors = tied_heads.without(family, tensors) if config.tied_embeddings else tensors
    return {
      name: Place(name, tensor.path, tensor.shape, folders.DTYPES[tensor.dtype], tensor.offset)
      for name, tensor in sorted(tensors.items())
    }


def write(
  folder: pathlib.Path,
  tensors: Sequence[weight_files.Planned],
  blocks: Callable[[str], Iterable[np.ndarray]],
  metadata: Mapping[str, str],
  shard_bytes: int = folders.SHARD_BYTES,
) -> None:
  """Writes model.safetensors or, above `shard_bytes`, numbered files and their index, block by block.

  Args:
    folder: the folder to write.
    tensors: the tensors to write, in this order.
    blocks: returns the rows of a tensor by its name, in order. They are rounded to the planned type.
    metadata: entries for the headers.
    shard_bytes: largest size of one file, in bytes, unless one tensor is larger.

  Raises:
    ValueError: a value is not finite in the planned type.
  """
  shards = weight_files.shards(tensors, shard_bytes)
  single = len(shards) == 1
  weight_map = {}
  for index, shard in enumerate(shards):
    file = folders.WEIGHTS if single else f'model-{index + 1:05d}-of-{len(shards):05d}.safetensors'
    with (folder / file).open('wb') as stream:
      stream.write(_header(shard, metadata))
      for tensor in shard:
        for block in blocks(tensor.name):
          with np.errstate(over='ignore'):  # the check below raises for overflows
            stored = np.ascontiguousarray(block.astype(np.dtype(tensor.dtype)))
          folders.check_finite(tensor.name, stored)
          stream.write(stored.view(np.uint8))
    weight_map |= {tensor.name: file for tensor in shard}
  if not single:
    total = sum(tensor.nbytes for tensor in tensors)
    folders.write_json(folder / folders.INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map})


def _header(tensors: Sequence[weight_files.Planned], metadata: Mapping[str, str]) -> bytes:
  """The header of a safetensors file, padded so that the values are aligned."""
  entries: dict[str, object] = {'__metadata__': {'format': 'pt', **metadata}}
  offset = 0
  for tensor in tensors:
    end = offset + tensor.nbytes
    entries[tensor.name] = {'dtype': _STORED[tensor.dtype], 'shape': tensor.shape, 'data_offsets': [offset, end]}
    offset = end
  text = json.dumps(entries).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text
