"""Validates the lengths and counts in a GGUF header before the `gguf` package uses them.

That package loops over any count that it reads and creates an object per item, and reading beyond the end of the file
returns empty arrays instead of raising an error. A corrupt header could make it loop and allocate memory endlessly.
"""

import itertools
import math
import os
import pathlib
import struct
from typing import Any, BinaryIO, NamedTuple

MAGIC = b'GGUF'
VERSIONS = (2, 3)
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # size in bytes, by value type
UINT32, STRING, ARRAY = 4, 8, 9  # value types
ITEMS = 2**22  # limit on the items of all arrays together, several times what the largest vocabularies need
DIMENSIONS = 4
ALIGNMENT_KEY, ALIGNMENT = b'general.alignment', 32


class Extent(NamedTuple):
  """The location of a tensor according to the header."""

  name: str
  start: int  # offset from the first tensor, in bytes
  size: int  # size in bytes


class _Cursor:
  """Reads a file sequentially and raises an error instead of reading beyond its end."""

  def __init__(self, file: BinaryIO):
    self.file = file
    self.size = os.fstat(file.fileno()).st_size
    self.items = 0  # number of array items so far

  def take(self, layout: str) -> Any:
    """Reads the next little-endian number in a `struct` layout."""
    return struct.unpack('<' + layout, self.bytes(struct.calcsize('<' + layout)))[0]

  def bytes(self, count: int) -> bytes:
    """Reads the next `count` bytes."""
    self.check(count)
    return self.file.read(count)

  def skip(self, count: int) -> None:
    """Skips the next `count` bytes."""
    self.check(count)
    self.file.seek(count, os.SEEK_CUR)

  def check(self, count: int) -> None:
    """Raises a ValueError if fewer than `count` bytes are left."""
    position = self.file.tell()
    if count > self.size - position:
      raise ValueError(
        f'malformed header: expected {count} bytes at byte {position}, but the file has only {self.size} bytes'
      )


def check(path: pathlib.Path, block_sizes: dict[int, tuple[int, int]]) -> None:
  """Walks through a header to its end, keeping only the locations of tensors.

  Args:
    path: a GGUF file.
    block_sizes: for each tensor type, the number of values per block and the number of bytes per block.

  Raises:
    ValueError: a length, count or location exceeds the file, two tensors overlap, or a type is unknown.
  """
  with path.open('rb') as file:
    cursor = _Cursor(file)
    if cursor.bytes(4) != MAGIC:
      raise ValueError('not a GGUF file')
    version = cursor.take('I')
    if version not in VERSIONS:
      raise ValueError(f'unsupported version {version}; known: {", ".join(map(str, VERSIONS))} (little-endian)')
    tensors, entries = cursor.take('Q'), cursor.take('Q')
    alignment = ALIGNMENT
    for _ in range(entries):
      key, kind = cursor.bytes(cursor.take('Q')), cursor.take('I')
      if key == ALIGNMENT_KEY and kind == UINT32:
        alignment = cursor.take('I')
      else:
        _skip_value(cursor, kind)
    extents = [_extent(cursor, block_sizes) for _ in range(tensors)]
    if alignment == 0:
      raise ValueError('general.alignment must not be 0')
    first = -(-file.tell() // alignment) * alignment
    _check_extents(extents, cursor.size - first)


def _skip_value(cursor: _Cursor, kind: int) -> None:
  if kind in SCALARS:
    cursor.skip(SCALARS[kind])
  elif kind == STRING:
    cursor.skip(cursor.take('Q'))
  elif kind == ARRAY:
    of, count = cursor.take('I'), cursor.take('Q')
    cursor.items += count
    if cursor.items > ITEMS:
      raise ValueError(f'malformed header: arrays with at least {cursor.items} items; the limit is {ITEMS}')
    if of in SCALARS:
      cursor.skip(count * SCALARS[of])
    elif of == STRING:
      for _ in range(count):
        cursor.skip(cursor.take('Q'))
    else:
      raise ValueError(f'arrays of value type {of} are not supported')
  else:
    raise ValueError(f'value type {kind} is not supported')


def _extent(cursor: _Cursor, block_sizes: dict[int, tuple[int, int]]) -> Extent:
  name = cursor.bytes(cursor.take('Q')).decode()
  dimensions = cursor.take('I')
  if dimensions > DIMENSIONS:
    raise ValueError(f'tensor {name}: has {dimensions} dimensions, but at most {DIMENSIONS} are supported')
  count = math.prod(cursor.take('Q') for _ in range(dimensions))
  kind, start = cursor.take('I'), cursor.take('Q')
  if kind not in block_sizes:
    raise ValueError(f'tensor {name}: unknown tensor type {kind}')
  numbers, size = block_sizes[kind]
  return Extent(name, start, -(-count // numbers) * size)


def _check_extents(extents: list[Extent], available: int) -> None:
  extents = sorted(extents, key=lambda extent: (extent.start, extent.size))
  for extent in extents:
    if extent.start + extent.size > available:
      raise ValueError(
        f'tensor {extent.name}: expected {extent.size} bytes at offset {extent.start}, '
        f'but the tensor data has only {available} bytes'
      )
  for before, after in itertools.pairwise(extents):
    if before.start + before.size > after.start:
      raise ValueError(f'tensors {before.name} and {after.name} overlap')
