"""Outputs of the reference model for a dataset, on disk: computed once, then read row by row.

A cache is a folder, named by a hash of its *identity*: the tokens that the reference read, its weights, and the columns
that were kept. A different dataset, tokenizer, template, limit or model gets a different folder, so a cache is never
stale. The folder contains:

  identity.json    the identity, with shape and dtype of each column
  <column>.npy     [sum of response lengths, ...]: response after response, row after row, as in `TokenDataset`
  checksums.npy    [n] uint32: CRC-32 of each example's values, compared whenever they are read

A cache is written completely or not at all. Anything wrong in it is an error that names the file.
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

from alignjax import files
from alignjax.data.tokens import dataset

VERSION = 1
DTYPES = ('float32', 'bfloat16')


class CacheError(ValueError):
  """A cache that cannot be used. The message starts with the faulty file and ends with what to do."""


@dataclasses.dataclass(frozen=True)
class Column:
  """What is stored for each response token: a number if `shape` is empty, otherwise an array of this shape."""

  shape: tuple[int, ...]
  dtype: str  # float32 or bfloat16

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(f'dtype={self.dtype!r}: a cached column must be {" or ".join(DTYPES)}')

  @property
  def stored(self) -> np.dtype:
    """The dtype in the .npy file. The format does not support bfloat16."""
    return np.dtype('<u2' if self.dtype == 'bfloat16' else '<f4')

  @property
  def seen(self) -> np.dtype:
    """The dtype of the values that `read` returns."""
    return np.dtype(ml_dtypes.bfloat16 if self.dtype == 'bfloat16' else np.float32)


def identity(data: dataset.TokenDataset, reference: str, columns: Mapping[str, Column], **how: str) -> dict[str, Any]:
  """Identifies a cache: two caches with the same identity have the same contents.

  Args:
    data: the dataset. Its tokens determine text, tokenizer, template and limits.
    reference: a fingerprint of the reference's weights.
    columns: what is stored, by name.
    **how: how it was computed, such as the dtype of activations.
  """
  kept = {name: {'shape': list(column.shape), 'dtype': column.dtype} for name, column in sorted(columns.items())}
  return {'version': VERSION, 'data': data.fingerprint, 'reference': reference, 'columns': kept, **how}


def folder_of(root: str | os.PathLike[str], identity: Mapping[str, Any]) -> pathlib.Path:
  """The folder of the cache with this identity, under `root`."""
  text = json.dumps(identity, sort_keys=True)
  return pathlib.Path(root) / hashlib.sha256(text.encode()).hexdigest()[:24]


class ReferenceCache:
  """An open, complete cache. Columns are memory-mapped, so rows are read on demand.

  Args:
    root: the folder of all caches.
    identity: the identity of the cache to open.
    data: the dataset that the cache belongs to.

  Raises:
    CacheError: the cache is missing, incomplete, or does not match its name.
  """

  def __init__(self, root: str | os.PathLike[str], identity: Mapping[str, Any], data: dataset.TokenDataset):
    self.folder = folder_of(root, identity)
    self._data = data
    self._check_identity(identity)
    self.columns = _columns(identity)
    tokens = int(data.response_offsets[-1])
    self._values = {
      name: self._open(f'{name}.npy', (tokens, *column.shape), column.stored) for name, column in self.columns.items()
    }
    self._checksums = self._open('checksums.npy', (len(data),), np.dtype('<u4'))

  def __getstate__(self) -> dict[str, Any]:
    raise TypeError('a ReferenceCache maps files into memory and cannot be pickled; open one in each process')

  def read(self, index: int) -> dict[str, list[np.ndarray]]:
    """The values of an example: for each column, one array [tokens, ...] per response.

    Raises:
      CacheError: the bytes differ from what was written.
    """
    first, last = _rows_of(self._data, index)
    values = {name: np.asarray(column[first:last]) for name, column in self._values.items()}
    if _checksum(values) != self._checksums[index]:
      raise self._error(
        'checksums.npy',
        f'the values of {self._data.origin(index)} differ from what was written: the files are damaged',
      )
    cuts = [each.stop - first for each in self._data.response_slices(index)[:-1]]
    return {name: np.split(value.view(self.columns[name].seen), cuts) for name, value in values.items()}

  def _check_identity(self, identity: Mapping[str, Any]) -> None:
    path = self.folder / 'identity.json'
    try:
      found = json.loads(files.check_regular(path).read_bytes()) if path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
      raise self._error('identity.json', f'is not readable: {error}') from None
    if found is None:
      raise self._error('identity.json', 'is missing, so the cache is incomplete')
    if not isinstance(found, dict):
      raise self._error('identity.json', 'must hold a JSON object')
    if found != identity:
      different = ', '.join(sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key)))
      raise self._error(
        'identity.json', f'belongs to a different cache ({different} differs), although the folder name matches'
      )

  def _open(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    path = self.folder / name
    try:
      array = np.load(files.check_regular(path), mmap_mode='r', allow_pickle=False)
    except Exception as error:  # NumPy raises EOFError, ValueError, TokenError and others
      raise self._error(name, f'is missing, truncated or not an array ({error})') from None
    if array.shape != shape or array.dtype != dtype:
      raise self._error(name, f'is {array.dtype} {array.shape}, expected {dtype} {shape}')
    return array

  def _error(self, name: str, what: str) -> CacheError:
    return CacheError(f'{self.folder / name}: {what}. Delete the folder {self.folder} to have it computed again')


class Writer:
  """Writes the rows of a cache in any order. Created by `writing`."""

  def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any], data: dataset.TokenDataset):
    self._folder = folder
    self._identity = identity
    self._data = data
    self._columns = _columns(identity)
    tokens = int(data.response_offsets[-1])
    self._values = {
      name: np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', column.stored, (tokens, *column.shape))
      for name, column in self._columns.items()
    }
    self._checksums = np.zeros(len(data), '<u4')
    self._written = np.zeros(len(data), bool)

  def write(self, ids: Sequence[int], values: Mapping[str, np.ndarray]) -> None:
    """Writes a batch.

    Args:
      ids: [B] indices into the dataset; negative for padding rows.
      values: [B, N, R, ...] by column.

    Raises:
      ValueError: an example is written twice, or a value is not finite; the message names the example.
    """
    for row, index in enumerate(ids):
      if index >= 0:
        self._write_example(int(index), {name: value[row] for name, value in values.items()})

  def _write_example(self, index: int, values: Mapping[str, np.ndarray]) -> None:
    if self._written[index]:
      raise ValueError(f'{self._data.origin(index)}: written twice')
    first, last = _rows_of(self._data, index)
    lengths = self._data.response_length[index]
    stored = {}
    for name, column in self._columns.items():
      flat = np.concatenate([value[:length] for value, length in zip(values[name], lengths, strict=True)])
      if not np.isfinite(flat).all():
        raise ValueError(f'{self._data.origin(index)}: the reference computed a {name} that is not finite')
      stored[name] = np.ascontiguousarray(flat, column.seen).view(column.stored)
      self._values[name][first:last] = stored[name]
    self._checksums[index] = _checksum(stored)
    self._written[index] = True

  def finish(self) -> None:
    """Flushes everything to disk, the identity last.

    Raises:
      ValueError: examples are missing.
    """
    if not self._written.all():
      missing = int(np.argmin(self._written))
      raise ValueError(f'{(~self._written).sum()} examples are missing, the first is {self._data.origin(missing)}')
    for value in self._values.values():
      value.flush()
    np.save(self._folder / 'checksums.npy', self._checksums)
    (self._folder / 'identity.json').write_text(json.dumps(self._identity, indent=2) + '\n', encoding='utf-8')


@contextlib.contextmanager
def writing(root: str | os.PathLike[str], identity: Mapping[str, Any], data: dataset.TokenDataset) -> Iterator[Writer]:
  """Yields a `Writer`. The cache appears under `root` when the block succeeds; if it fails, nothing is left behind.

  If two runs write the same cache at the same time, the first one to finish wins.
  """
  folder = folder_of(root, identity)
  partial = folder.with_name(f'.{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial')
  partial.mkdir(parents=True)
  try:
    writer = Writer(partial, identity, data)
    yield writer
    writer.finish()
    for path in partial.iterdir():
      with path.open('rb') as file:
        os.fsync(file.fileno())
    try:
      partial.rename(folder)
    except OSError:
      if not folder.exists():  # otherwise another run has just finished it
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _columns(identity: Mapping[str, Any]) -> dict[str, Column]:
  return {name: Column(tuple(entry['shape']), entry['dtype']) for name, entry in identity['columns'].items()}


def _rows_of(data: dataset.TokenDataset, index: int) -> tuple[int, int]:
  """First and one past the last response token of an example."""
  offsets = data.response_offsets
  return int(offsets[index * data.responses]), int(offsets[(index + 1) * data.responses])


def _checksum(values: Mapping[str, np.ndarray]) -> int:
  result = 0
  for name in sorted(values):
    result = zlib.crc32(np.ascontiguousarray(values[name]).data.cast('B') if values[name].size else b'', result)
  return result
