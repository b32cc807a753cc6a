"""What a reference model says of a data set, on disk: computed once, read row by row ever after.

A cache is a folder, named by a hash of its *identity*: the tokens that the reference saw, its weights, and what was
kept of it. So another data set, tokenizer, template, limit or model has another cache, and nothing stale is ever found.
In the folder:

  identity.json    the identity, and shape and dtype of each column
  <column>.npy     [sum of response lengths, ...]: response after response, row after row, as in `TokenizedPairs`
  checksums.npy    [n] uint32: CRC-32 of each pair's values, compared whenever they are read

It appears complete or not at all. Whatever in it is not as it should be is refused, with the name of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from typing import Any
import zlib

import ml_dtypes
import numpy as np

from alignjax.data import pairs as pairs_lib

VERSION = 1
DTYPES = ('float32', 'bfloat16')


class CacheError(ValueError):
  """A cache that cannot be used. Its text starts with the file at fault and says what to do."""


@dataclasses.dataclass(frozen=True)
class Column:
  """What is kept for each response token: a number (`shape` is empty), or an array of this shape."""

  shape: tuple[int, ...]
  dtype: str  # float32 or bfloat16

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(f'dtype={self.dtype!r}: a cached column must be of {" or ".join(DTYPES)}')

  @property
  def stored(self) -> np.dtype:
    """The dtype in the .npy file, whose format knows no bfloat16."""
    return np.dtype('<u2' if self.dtype == 'bfloat16' else '<f4')

  @property
  def seen(self) -> np.dtype:
    """The dtype of what is read."""
    return np.dtype(ml_dtypes.bfloat16 if self.dtype == 'bfloat16' else np.float32)


def identity(
  pairs: pairs_lib.TokenizedPairs, reference: str, columns: Mapping[str, Column], **how: str
) -> dict[str, Any]:
  """What makes two caches the same.

  Args:
    pairs: their tokens stand for the text, the tokenizer, the template and the limits.
    reference: a fingerprint of the reference's weights.
    columns: what is kept, by name.
    **how: it was computed, such as the dtype of activations.
  """
  kept = {name: {'shape': list(column.shape), 'dtype': column.dtype} for name, column in sorted(columns.items())}
  return {'version': VERSION, 'data': pairs.fingerprint, 'reference': reference, 'columns': kept, **how}


def folder_of(root: str | os.PathLike[str], identity: Mapping[str, Any]) -> pathlib.Path:
  """Where the cache of this identity lies under `root`."""
  text = json.dumps(identity, sort_keys=True)
  return pathlib.Path(root) / hashlib.sha256(text.encode()).hexdigest()[:24]


class ReferenceCache:
  """A complete cache, opened. Columns are mapped into memory, so rows are read when they are asked for.

  Args:
    root: the folder that holds caches.
    identity: of the one to open.
    pairs: that it was made for.

  Raises:
    CacheError: it is not there, not complete, or not what its name says.
  """

  def __init__(self, root: str | os.PathLike[str], identity: Mapping[str, Any], pairs: pairs_lib.TokenizedPairs):
    self.folder = folder_of(root, identity)
    self._pairs = pairs
    self._check_identity(identity)
    self.columns = _columns(identity)
    tokens = int(pairs.response_offsets[-1])
    self._values = {
      name: self._open(f'{name}.npy', (tokens, *column.shape), column.stored) for name, column in self.columns.items()
    }
    self._checksums = self._open('checksums.npy', (len(pairs),), np.dtype('<u4'))

  def __getstate__(self) -> dict[str, Any]:
    raise TypeError('a ReferenceCache maps files into memory: open it anew in each process')

  def read(self, index: int) -> dict[str, list[np.ndarray]]:
    """The values of a pair: for each column one array a response, [tokens, ...].

    Raises:
      CacheError: the bytes are not those that were written.
    """
    first, last = _rows_of(self._pairs, index)
    values = {name: np.asarray(column[first:last]) for name, column in self._values.items()}
    if _checksum(values) != self._checksums[index]:
      raise self._error(
        'checksums.npy',
        f'the values of {self._pairs.origin(index)} are not those that were written: the files are damaged',
      )
    cuts = self._pairs.response_offsets[index * self._pairs.responses + 1 : (index + 1) * self._pairs.responses] - first
    return {name: np.split(value.view(self.columns[name].seen), cuts) for name, value in values.items()}

  def _check_identity(self, identity: Mapping[str, Any]) -> None:
    path = self.folder / 'identity.json'
    try:
      found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
      raise self._error('identity.json', 'is missing, so this cache is not complete') from None
    except ValueError as error:
      raise self._error('identity.json', f'cannot be read: {error}') from None
    if found != identity:
      of = ', '.join(sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key)))
      raise self._error('identity.json', f'is of another cache (another {of}), though the folder has its name')

  def _open(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    path = self.folder / name
    try:
      array = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
      raise self._error(name, f'is missing, cut off or no array ({error})') from None
    if array.shape != shape or array.dtype != dtype:
      raise self._error(name, f'holds {array.dtype} {array.shape}, expected {dtype} {shape}')
    return array

  def _error(self, name: str, what: str) -> CacheError:
    return CacheError(f'{self.folder / name}: {what}. Delete the folder {self.folder}, and it is made again')


class Writer:
  """Takes the rows of a cache in any order. Made by `writing`."""

  def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any], pairs: pairs_lib.TokenizedPairs):
    self._folder = folder
    self._identity = identity
    self._pairs = pairs
    self._columns = _columns(identity)
    tokens = int(pairs.response_offsets[-1])
    self._values = {
      name: np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', column.stored, (tokens, *column.shape))
      for name, column in self._columns.items()
    }
    self._checksums = np.zeros(len(pairs), '<u4')
    self._written = np.zeros(len(pairs), bool)

  def write(self, ids: Sequence[int], values: Mapping[str, np.ndarray]) -> None:
    """Takes a batch.

    Args:
      ids: [B] of the pairs; negative ones are padding rows.
      values: [B, N, R, ...] by column.

    Raises:
      ValueError: a pair comes twice, or a value is not finite; the message names the pair.
    """
    for row, index in enumerate(ids):
      if index >= 0:
        self._write_pair(int(index), {name: value[row] for name, value in values.items()})

  def _write_pair(self, index: int, values: Mapping[str, np.ndarray]) -> None:
    if self._written[index]:
      raise ValueError(f'{self._pairs.origin(index)}: came twice')
    first, last = _rows_of(self._pairs, index)
    lengths = self._pairs.response_length[index]
    stored = {}
    for name, column in self._columns.items():
      flat = np.concatenate([value[:length] for value, length in zip(values[name], lengths, strict=True)])
      if not np.isfinite(flat).all():
        raise ValueError(f'{self._pairs.origin(index)}: the reference gives a {name} that is not finite')
      stored[name] = np.ascontiguousarray(flat, column.seen).view(column.stored)
      self._values[name][first:last] = stored[name]
    self._checksums[index] = _checksum(stored)
    self._written[index] = True

  def finish(self) -> None:
    """Writes out everything, the identity last.

    Raises:
      ValueError: pairs are missing.
    """
    if not self._written.all():
      missing = int(np.argmin(self._written))
      raise ValueError(f'{(~self._written).sum()} pairs did not come, the first {self._pairs.origin(missing)}')
    for value in self._values.values():
      value.flush()
    np.save(self._folder / 'checksums.npy', self._checksums)
    (self._folder / 'identity.json').write_text(json.dumps(self._identity, indent=2) + '\n', encoding='utf-8')


@contextlib.contextmanager
def writing(
  root: str | os.PathLike[str], identity: Mapping[str, Any], pairs: pairs_lib.TokenizedPairs
) -> Iterator[Writer]:
  """Yields a `Writer`; its cache appears under `root` when the block ends well, and leaves nothing behind if it fails.

  Of two runs that make the same cache at the same time, the first one to be done wins.
  """
  folder = folder_of(root, identity)
  partial = folder.with_name(f'.{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial')
  partial.mkdir(parents=True)
  try:
    writer = Writer(partial, identity, pairs)
    yield writer
    writer.finish()
    for path in partial.iterdir():
      with path.open('rb') as file:
        os.fsync(file.fileno())
    try:
      partial.rename(folder)
    except OSError:
      if not folder.exists():  # else another run has just made it
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _columns(identity: Mapping[str, Any]) -> dict[str, Column]:
  return {name: Column(tuple(entry['shape']), entry['dtype']) for name, entry in identity['columns'].items()}


def _rows_of(pairs: pairs_lib.TokenizedPairs, index: int) -> tuple[int, int]:
  """First and one past the last response token of a pair."""
  offsets = pairs.response_offsets
  return int(offsets[index * pairs.responses]), int(offsets[(index + 1) * pairs.responses])


def _checksum(values: Mapping[str, np.ndarray]) -> int:
  result = 0
  for name in sorted(values):
    result = zlib.crc32(np.ascontiguousarray(values[name]).data.cast('B') if values[name].size else b'', result)
  return result
