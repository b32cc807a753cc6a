"""A check of the lengths and counts in a GGUF header, before the `gguf` package believes them.

That package loops over whatever count it reads and makes an object of each item, and reading beyond the end gives it
empty arrays instead of an error: a damaged header could keep it busy, and growing, for ever.
"""

import itertools
import math
import os
import pathlib
import struct
from typing import Any, BinaryIO, NamedTuple

MAGIC = b'GGUF'
VERSIONS = (2, 3)
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each type of value
UINT32, STRING, ARRAY = 4, 8, 9  # types of values
ITEMS = 2**22  # in all arrays together, several times what the largest vocabularies need
DIMENSIONS = 4
ALIGNMENT_KEY, ALIGNMENT = b'general.alignment', 32


class Extent(NamedTuple):
  """Where a tensor says that it lies."""

  name: str
  start: int  # bytes from the first tensor on
  size: int  # bytes


class _Cursor:
  """Reads forward, and refuses to go beyond the end."""

  def __init__(self, file: BinaryIO):
    self.file = file
    self.size = os.fstat(file.fileno()).st_size
    self.items = 0  # of arrays, so far

  def take(self, layout: str) -> Any:
    """The next number of a `struct` layout, little-endian."""
    return struct.unpack('<' + layout, self.bytes(struct.calcsize('<' + layout)))[0]

  def bytes(self, count: int) -> bytes:
    """The next bytes."""
    self.check(count)
    return self.file.read(count)

  def skip(self, count: int) -> None:
    """Passes over bytes."""
    self.check(count)
    self.file.seek(count, os.SEEK_CUR)

  def check(self, count: int) -> None:
    """Refuses a length beyond the end."""
    position = self.file.tell()
    if count > self.size - position:
      raise ValueError(f'malformed header: {count} bytes from byte {position} on, but the file has {self.size}')


def check(path: pathlib.Path, block_sizes: dict[int, tuple[int, int]]) -> None:
  """Follows a header to its end, holding nothing of it but the places of tensors.

  Args:
    path: a GGUF file.
    block_sizes: for each type of tensor, how many numbers a block holds, and in how many bytes.

  Raises:
    ValueError: a length, a count or a place goes beyond the file, two tensors overlap, or a type is unknown.
  """
  with path.open('rb') as file:
    cursor = _Cursor(file)
    if cursor.bytes(4) != MAGIC:
      raise ValueError('not a GGUF file')
    version = cursor.take('I')
    if version not in VERSIONS:
      raise ValueError(f'version {version} is not one of {", ".join(map(str, VERSIONS))}, little-endian')
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
      raise ValueError(f'malformed header: arrays of {cursor.items} items and more')
    if of in SCALARS:
      cursor.skip(count * SCALARS[of])
    elif of == STRING:
      for _ in range(count):
        cursor.skip(cursor.take('Q'))
    else:
      raise ValueError(f'an array of values of type {of} is not supported')
  else:
    raise ValueError(f'a value of type {kind} is not supported')


def _extent(cursor: _Cursor, block_sizes: dict[int, tuple[int, int]]) -> Extent:
  name = cursor.bytes(cursor.take('Q')).decode()
  dimensions = cursor.take('I')
  if dimensions > DIMENSIONS:
    raise ValueError(f'tensor {name}: {dimensions} dimensions')
  count = math.prod(cursor.take('Q') for _ in range(dimensions))
  kind, start = cursor.take('I'), cursor.take('Q')
  if kind not in block_sizes:
    raise ValueError(f'tensor {name}: a type of number {kind} is not known')
  numbers, size = block_sizes[kind]
  return Extent(name, start, -(-count // numbers) * size)


def _check_extents(extents: list[Extent], available: int) -> None:
  extents = sorted(extents, key=lambda extent: (extent.start, extent.size))
  for extent in extents:
    if extent.start + extent.size > available:
      raise ValueError(f'tensor {extent.name}: {extent.size} bytes from {extent.start} on, but there are {available}')
  for before, after in itertools.pairwise(extents):
    if before.start + before.size > after.start:
      raise ValueError(f'tensors {before.name} and {after.name} overlap')
