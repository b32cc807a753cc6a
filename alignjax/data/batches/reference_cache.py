"""Outputs of the reference model for a dataset, on disk: computed once, then read row by row.

A cache is a folder, named by a hash of its *identity*: the tokens that the reference read, its weights, and the columns
that were kept. A different dataset, tokenizer, template, limit or model gets a different folder, so a cache is never
stale. It consists of shards, which are committed one by one, so a pass over the data that is interrupted goes on after
its last shard. The folder contains:

  identity.json    the identity, with shape and dtype of each column, for people
  <shard>/         some examples, in ascending order:
    ids.npy          [m] int64, indices into the dataset
    <column>.npy     [sum of their response lengths, ...]: response after response, example after example
    checksums.npy    [m] uint32: CRC-32 of each example's values, compared whenever they are read
    manifest.json    size and SHA-256 of each file

Shards are named by the examples that they hold. Which ones these are depends on batches and processes, but a cache that
was begun with others is completed all the same: examples that no shard holds are missing.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple
import zlib

from absl import logging
import ml_dtypes
import numpy as np

from alignjax import storage
from alignjax.data.tokens import dataset

VERSION = 2
DTYPES = ('float32', 'bfloat16')
VERIFIED = 2**33  # bytes of a cache up to which every byte is checked when it is opened, in about 8 s


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


class Location(NamedTuple):
  """Which cache, and where it is."""

  root: str | os.PathLike[str]  # the folder of all caches
  identity: Mapping[str, Any]
  data: dataset.TokenDataset  # the dataset that the cache belongs to

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the cache."""
    return pathlib.Path(self.root) / storage.name_of(self.identity)

  @property
  def columns(self) -> dict[str, Column]:
    """The columns of the cache."""
    return {name: Column(tuple(each['shape']), each['dtype']) for name, each in self.identity['columns'].items()}


class ReferenceCache:
  """An open cache. Columns are memory-mapped, so rows are read on demand.

  Args:
    location: the cache to open.
    shards: names of sound shards.

  Attributes:
    missing: [n] bool, the examples that no shard holds.

  Raises:
    DamageError: a shard is missing, or is not as it was written.
  """

  def __init__(self, location: Location, shards: Sequence[str]):
    self.folder, self.columns, self._data = location.folder, location.columns, location.data
    self._shards = [_Shard(self.folder / name, self.columns, self._data) for name in shards]
    self._shard_of = np.full(len(self._data), -1, np.int32)
    for number, shard in enumerate(self._shards):
      self._shard_of[shard.ids] = number

  def __getstate__(self) -> dict[str, Any]:
    raise TypeError('a ReferenceCache maps files into memory and cannot be pickled; open one in each process')

  @functools.cached_property
  def missing(self) -> np.ndarray:
    return self._shard_of < 0

  def read(self, index: int) -> dict[str, list[np.ndarray]]:
    """The values of an example: for each column, one array [tokens, ...] per response.

    Raises:
      CacheError: the bytes differ from what was written. The next start computes the shard again.
      KeyError: the example is missing.
    """
    number = self._shard_of[index]
    if number < 0:
      raise KeyError(f'{self._data.origin(index)} is not in {self.folder}')
    shard = self._shards[number]
    values, checksum = shard.values_of(index)
    if _checksum(values) != checksum:
      with contextlib.suppress(OSError):
        (shard.folder / storage.MANIFEST).unlink()  # no start uses the shard any more
      raise CacheError(
        f'{shard.folder}: the values of {self._data.origin(index)} differ from what was written: the files are '
        f'damaged. Start again: the {len(shard.ids)} examples of this shard are computed again'
      )
    cuts = np.cumsum(_lengths(self._data, index))[:-1]
    return {name: np.split(value.view(self.columns[name].seen), cuts) for name, value in values.items()}


def prepare(location: Location) -> None:
  """Makes the folder of a cache and its identity.json, and removes what killed processes have left in it.

  The caller must hold the lock of the folder.
  """
  folder = location.folder
  folder.mkdir(parents=True, exist_ok=True)
  for partial in folder.glob(f'.*{storage.PARTIAL}'):
    shutil.rmtree(partial, ignore_errors=True)
  partial, text = folder / 'identity.json.partial', json.dumps(location.identity, indent=2) + '\n'
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, folder / 'identity.json')


def sound(location: Location, tick: storage.Tick = storage.silent) -> list[str]:
  """The names of the shards of a cache that are as they were written. Warns of each other one, and removes it.

  Up to 8 GiB in all, every byte is checked. Of a larger cache, manifests and sizes are, and each example when it is
  read.
  """
  found = sorted(path for path in location.folder.glob('[!.]*') if path.is_dir())
  size = sum(path.stat().st_size for shard in found for path in shard.glob('*.npy'))
  names = []
  for shard in found:
    try:
      if size <= VERIFIED:
        storage.verify(shard, tick)
      _Shard(shard, location.columns, location.data)
      names.append(shard.name)
    except storage.DamageError as error:
      logging.warning('%s. The examples of this shard are computed again', error)
      with contextlib.suppress(OSError):  # a folder that cannot be written
        shutil.rmtree(shard)
    tick()
  return names


class _Shard:
  """An open shard."""

  def __init__(self, folder: pathlib.Path, columns: Mapping[str, Column], data: dataset.TokenDataset):
    self.folder = folder
    if storage.read_manifest(folder) != {'cache': folder.parent.name}:
      raise storage.DamageError(f'{folder}: belongs to a different cache')
    self.ids = self._load('ids')
    self._checksums = self._load('checksums')
    self._offsets = _offsets(data, self.ids)
    self._values = {name: self._load(name) for name in columns}
    for name, column in columns.items():
      value, shape = self._values[name], (int(self._offsets[-1]), *column.shape)
      if value.shape != shape or value.dtype != column.stored:
        raise storage.DamageError(
          f'{folder / name}.npy: is {value.dtype} {value.shape}, expected {column.stored} {shape}'
        )

  def values_of(self, index: int) -> tuple[dict[str, np.ndarray], int]:
    """The stored values of an example, and their checksum."""
    place = int(np.searchsorted(self.ids, index))
    rows = slice(*self._offsets[place : place + 2])
    return {name: column[rows] for name, column in self._values.items()}, int(self._checksums[place])

  def _load(self, name: str) -> np.ndarray:
    path = self.folder / f'{name}.npy'
    try:
      return np.asarray(np.load(path, mmap_mode='r', allow_pickle=False))
    except Exception as error:  # NumPy raises EOFError, ValueError, TokenError and others
      raise storage.DamageError(f'{path}: is not an array ({error})') from None


class Writer:
  """Writes the examples of a shard in any order. Created by `writing`."""

  def __init__(self, folder: pathlib.Path, ids: np.ndarray, location: Location):
    self._folder, self._ids, self._data, self._columns = folder, ids, location.data, location.columns
    self._offsets = _offsets(self._data, ids)
    self._values = {
      name: np.lib.format.open_memmap(
        folder / f'{name}.npy', 'w+', column.stored, (int(self._offsets[-1]), *column.shape)
      )
      for name, column in self._columns.items()
    }
    self._checksums = np.zeros(len(ids), '<u4')
    self._written = np.zeros(len(ids), bool)

  def write(self, ids: Sequence[int], values: Mapping[str, np.ndarray]) -> None:
    """Writes a batch.

    Args:
      ids: [B] indices into the dataset, of the shard; negative for padding rows.
      values: [B, N, R, ...] by column.

    Raises:
      ValueError: an example is written twice, or a value is not finite; the message names the example.
    """
    for row, index in enumerate(ids):
      if index >= 0:
        self._write_example(int(index), {name: value[row] for name, value in values.items()})

  def _write_example(self, index: int, values: Mapping[str, np.ndarray]) -> None:
    place = int(np.searchsorted(self._ids, index))
    if self._written[place]:
      raise ValueError(f'{self._data.origin(index)}: written twice')
    lengths = _lengths(self._data, index)
    stored = {}
    for name, column in self._columns.items():
      flat = np.concatenate([value[:length] for value, length in zip(values[name], lengths, strict=True)])
      if not np.isfinite(flat).all():
        raise ValueError(f'{self._data.origin(index)}: the reference computed a {name} that is not finite')
      stored[name] = np.ascontiguousarray(flat, column.seen).view(column.stored)
      self._values[name][slice(*self._offsets[place : place + 2])] = stored[name]
    self._checksums[place] = _checksum(stored)
    self._written[place] = True

  def finish(self) -> None:
    """Flushes everything to disk.

    Raises:
      ValueError: examples are missing.
    """
    if not self._written.all():
      missing = int(self._ids[np.argmin(self._written)])
      raise ValueError(f'{(~self._written).sum()} examples are missing, the first is {self._data.origin(missing)}')
    for value in self._values.values():
      value.flush()
    np.save(self._folder / 'ids.npy', self._ids)
    np.save(self._folder / 'checksums.npy', self._checksums)


@contextlib.contextmanager
def writing(location: Location, ids: np.ndarray) -> Iterator[Writer]:
  """Yields a `Writer` of a shard, which appears when the block succeeds; if it fails, nothing is left behind.

  Args:
    location: the cache.
    ids: [m] the examples of the shard, ascending.
  """
  cache, ids = location.folder, np.asarray(ids, '<i8')
  with storage.committing(cache / shard_name(ids)) as partial:
    writer = Writer(partial, ids, location)
    yield writer
    writer.finish()
    storage.write_manifest(partial, {'cache': cache.name})


def shard_name(ids: np.ndarray) -> str:
  """The name of the shard of these examples."""
  return f'{ids[0]:010d}-{hashlib.sha256(np.asarray(ids, "<i8")).hexdigest()[:12]}'


def _lengths(data: dataset.TokenDataset, index: int) -> list[int]:
  """The length of each response of an example."""
  return [each.stop - each.start for each in data.response_slices(index)]


def _offsets(data: dataset.TokenDataset, ids: np.ndarray) -> np.ndarray:
  """[m + 1] where the response tokens of each of these examples begin, if they follow one another."""
  ends = data.response_offsets[(ids + 1) * data.responses] - data.response_offsets[ids * data.responses]
  return np.concatenate([np.zeros(1, np.int64), np.cumsum(ends)])


def _checksum(values: Mapping[str, np.ndarray]) -> int:
  result = 0
  for name in sorted(values):
    result = zlib.crc32(np.ascontiguousarray(values[name]).data.cast('B') if values[name].size else b'', result)
  return result
