"""Batches of a few static shapes in one global order that does not depend on the number of processes.

Each epoch has a *plan*: its global batches, as rows of example ids. The plan is a pure function of (data, seed, global
batch size, buckets, epoch); process p of n assembles rows [p * B / n, (p + 1) * B / n) of every batch. So the position
in the plan, one integer that is the same on every process, is the whole state of an iterator.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import itertools
import sys
from typing import NamedTuple

import grain
import numpy as np

from alignjax.data import pairs as pairs_lib
from alignjax.data import reference_cache
from alignjax.types import PreferenceBatch

Bucket = tuple[int, int]  # prompt tokens P, response tokens R

PADDING_ID = -1


class Batch(NamedTuple):
  """The rows of a global batch that belong to one process."""

  data: PreferenceBatch  # numpy arrays, B / n rows
  ids: np.ndarray  # [B / n] int64, indices into the pairs; -1 for a padding row


@dataclasses.dataclass(eq=False)
class Plan:
  """The global batches of every epoch.

  Each batch takes its rows from one bucket. The last batch of a bucket is filled up with padding rows (id -1): nothing
  is ever dropped. With `shuffle`, the examples of a bucket and the batches of all buckets are permuted anew each epoch.
  """

  bucket_of: np.ndarray  # [n] int64, index into `buckets`
  buckets: tuple[Bucket, ...]
  batch_size: int
  seed: int
  shuffle: bool
  _drawn: tuple[int, np.ndarray, np.ndarray] | None = dataclasses.field(default=None, init=False, repr=False)

  @functools.cached_property
  def steps_per_epoch(self) -> int:
    counts = np.bincount(self.bucket_of, minlength=len(self.buckets))
    return int(np.sum(-(-counts // self.batch_size)))

  @property
  def padding_rows(self) -> int:
    """Rows of weight 0 in each epoch."""
    return self.steps_per_epoch * self.batch_size - len(self.bucket_of)

  def __getitem__(self, step: int) -> tuple[Bucket, np.ndarray]:
    """The shape and the ids [B] of a global batch; steps count on through the epochs."""
    epoch, step = divmod(step, self.steps_per_epoch)
    epoch = epoch if self.shuffle else 0
    if self._drawn is None or self._drawn[0] != epoch:
      self._drawn = epoch, *self.draw(epoch)
    _, ids, bucket_index = self._drawn
    return self.buckets[bucket_index[step]], ids[step]

  def draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """One epoch: ids [steps, B] int64, and the bucket of each step [steps]."""
    order = np.arange(len(self.bucket_of))
    if self.shuffle:
      order = _permutation(len(order), self.seed, epoch, 0)
    groups, bucket_index = [], []
    for bucket in range(len(self.buckets)):
      members = order[self.bucket_of[order] == bucket]
      steps = -(-len(members) // self.batch_size)
      rows = np.full(steps * self.batch_size, PADDING_ID, np.int64)
      rows[: len(members)] = members
      groups.append(rows.reshape(steps, self.batch_size))
      bucket_index += [bucket] * steps
    ids, bucket_index = np.concatenate(groups), np.asarray(bucket_index)
    if self.shuffle:
      batches = _permutation(len(ids), self.seed, epoch, 1)
      ids, bucket_index = ids[batches], bucket_index[batches]
    return ids, bucket_index


@dataclasses.dataclass(frozen=True)
class Batches:
  """A data set of batches: `iter(batches)` is a grain iterator, with `get_state` and `set_state`."""

  dataset: grain.IterDataset
  plan: Plan
  steps: int | None  # in all; None if it goes on for ever

  def __iter__(self) -> grain.DatasetIterator:
    return iter(self.dataset)


def make_batches(
  pairs: pairs_lib.TokenizedPairs,
  *,
  batch_size: int,
  seed: int,
  epochs: int | None,
  process_index: int,
  process_count: int,
  buckets: Sequence[Bucket] | None = None,
  shuffle: bool = True,
  cache: reference_cache.ReferenceCache | None = None,
) -> Batches:
  """Batches of the rows that belong to one process.

  For evaluation: `epochs=1, shuffle=False`.

  Args:
    pairs: the same on every process.
    batch_size: prompts in a global batch, over all processes.
    seed: of the order.
    epochs: None goes on for ever.
    process_index: of this process, from 0.
    process_count: number of processes.
    buckets: shapes (P, R) in tokens; each pair goes to the smallest that holds it. None chooses (see `choose_buckets`).
    shuffle: False takes each bucket's pairs as they stand, small buckets first, the same in every epoch.
    cache: of these pairs; each batch then has its columns in `cached`.

  Raises:
    ValueError: a size that does not fit.
  """
  if batch_size < 1 or process_count < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size={batch_size} must be a positive multiple of process_count={process_count}: it counts the '
      'prompts of all processes, which share them equally'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f'process_index={process_index}: must be from 0 to process_count - 1 = {process_count - 1}')
  if seed < 0:
    raise ValueError(f'seed={seed}: must not be negative')
  if epochs is not None and epochs < 1:
    raise ValueError(f'epochs={epochs}: must be at least 1, or None to go on for ever')
  buckets = choose_buckets(pairs, batch_size=batch_size) if buckets is None else _sort_buckets(buckets, pairs.responses)
  plan = Plan(_assign(pairs, buckets), buckets, batch_size, seed, shuffle)
  rows = batch_size // process_count
  source = _Source(pairs, plan, epochs, slice(process_index * rows, (process_index + 1) * rows), cache)
  # The data are in memory, so threads would gain nothing; without them nothing runs ahead of the state either.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  dataset = grain.MapDataset.source(source).to_iter_dataset(options)
  return Batches(dataset, plan, None if epochs is None else len(source))


def choose_buckets(
  pairs: pairs_lib.TokenizedPairs, *, batch_size: int, count: int = 4, multiple: int = 32
) -> tuple[Bucket, ...]:
  """Up to `count` shapes, each a compilation, that make an epoch cheap.

  Starts with the shape that holds everything, and adds, one at a time, the shape that saves most of the epoch's tokens,
  sum over batches of B * (P + N * R), padding rows included. Candidates are the deciles of the lengths.

  Args:
    pairs: to be held.
    batch_size: global, as in `make_batches`.
    count: most shapes.
    multiple: sizes are rounded up to multiples of this many tokens.
  """
  lengths = -(-_lengths(pairs) // multiple) * multiple
  deciles = np.quantile(lengths, np.arange(1, 11) / 10, axis=0, method='higher')
  candidates = {(int(prompt), int(response)) for prompt, response in itertools.product(*deciles.T)}
  chosen = (max(candidates),)
  # Many pairs share their rounded lengths, so each combination is looked at once.
  lengths, members = np.unique(lengths, axis=0, return_counts=True)

  def cost(buckets: tuple[Bucket, ...]) -> int:
    rows = np.bincount(_first_fit(lengths, buckets), weights=members, minlength=len(buckets))
    return _tokens(rows, buckets, pairs.responses, batch_size)

  while len(chosen) < count:
    options = [_sort_buckets([*chosen, bucket], pairs.responses) for bucket in sorted(candidates - set(chosen))]
    best = min(options, key=cost, default=chosen)
    if cost(best) >= cost(chosen):
      break
    chosen = best
  return chosen


def epoch_tokens(pairs: pairs_lib.TokenizedPairs, buckets: Sequence[Bucket], *, batch_size: int) -> int:
  """Tokens of an epoch in batches of these shapes, padding included: what it costs to compute."""
  buckets = _sort_buckets(buckets, pairs.responses)
  rows = np.bincount(_assign(pairs, buckets), minlength=len(buckets))
  return _tokens(rows, buckets, pairs.responses, batch_size)


def _tokens(rows: np.ndarray, buckets: Sequence[Bucket], responses: int, batch_size: int) -> int:
  tokens = np.asarray([prompt + responses * response for prompt, response in buckets])
  return int(np.sum(-(-rows // batch_size) * batch_size * tokens))


def _sort_buckets(buckets: Iterable[Bucket], responses: int) -> tuple[Bucket, ...]:
  """Buckets by increasing tokens in a row, P + N * R."""
  buckets = {(int(prompt), int(response)) for prompt, response in buckets}
  buckets = tuple(sorted(buckets, key=lambda bucket: (bucket[0] + responses * bucket[1], bucket)))
  if not buckets or min(map(min, buckets)) < 1:
    raise ValueError(f'buckets={list(buckets)}: give at least one shape (prompt tokens, response tokens), all positive')
  return buckets


def _assign(pairs: pairs_lib.TokenizedPairs, buckets: Sequence[Bucket]) -> np.ndarray:
  """[n] index of the first bucket that holds each pair."""
  lengths = _lengths(pairs)
  bucket = _first_fit(lengths, buckets)
  if bucket.max() == len(buckets):
    row = int(bucket.argmax())
    raise ValueError(
      f'{pairs.origin(row)}: the prompt has {lengths[row, 0]} tokens, the longest response {lengths[row, 1]}, but no '
      f'bucket of {list(buckets)} holds both; add one, or tokenise with lower limits'
    )
  return bucket


def _lengths(pairs: pairs_lib.TokenizedPairs) -> np.ndarray:
  """[n, 2] tokens of the prompt and of the longest response."""
  return np.stack([pairs.prompt_length, pairs.response_length.max(axis=1)], axis=1)


def _first_fit(lengths: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
  """[n] index of the first bucket that holds both lengths; len(buckets) where none does."""
  fits = (lengths[:, None, :] <= np.asarray(buckets)).all(axis=2)
  return np.where(fits.any(axis=1), fits.argmax(axis=1), len(buckets))


def _permutation(size: int, *seeds: int) -> np.ndarray:
  """A permutation that stays the same whatever the version of numpy: of bit generators it promises the raw stream."""
  raw = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(size)
  return np.argsort(raw, kind='stable')


class _Source:
  """What grain reads: step -> the rows of one process."""

  def __init__(
    self,
    pairs: pairs_lib.TokenizedPairs,
    plan: Plan,
    epochs: int | None,
    rows: slice,
    cache: reference_cache.ReferenceCache | None,
  ):
    self._pairs = pairs
    self._plan = plan
    self._length = sys.maxsize if epochs is None else epochs * plan.steps_per_epoch
    self._rows = rows
    self._cache = cache

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, step: int) -> Batch:
    bucket, ids = self._plan[step]
    batch = _assemble(self._pairs, bucket, ids[self._rows])
    if self._cache is None:
      return batch
    cached = _cached(self._cache, batch.data.response.shape, batch.ids)
    return batch._replace(data=dataclasses.replace(batch.data, cached=cached))


def _assemble(pairs: pairs_lib.TokenizedPairs, bucket: Bucket, ids: np.ndarray) -> Batch:
  """Right-pads rows to a bucket.

  A padding row has weight 0, and one token in its prompt and in each response, so that an objective that divides by a
  length stays finite, gradient included.
  """
  (prompt_size, response_size), rows, count = bucket, len(ids), pairs.responses
  prompt = np.zeros((rows, prompt_size), np.int32)
  prompt_length = np.ones(rows, np.int32)
  response = np.zeros((rows, count, response_size), np.int32)
  response_length = np.ones((rows, count), np.int32)
  label = np.ones(rows, np.float32)
  weight = np.zeros(rows, np.float32)
  per_response = {name: np.zeros((rows, count), np.float32) for name in pairs.per_response}
  for row in np.flatnonzero(ids != PADDING_ID):
    pair = pairs[int(ids[row])]
    prompt_length[row] = len(pair.prompt)
    prompt[row, : len(pair.prompt)] = pair.prompt
    for i, tokens in enumerate(pair.responses):
      response_length[row, i] = len(tokens)
      response[row, i, : len(tokens)] = tokens
    label[row], weight[row] = pair.label, pair.weight
    for name, values in per_response.items():
      values[row] = getattr(pair, name)
  data = PreferenceBatch(prompt, prompt_length, response, response_length, label, weight, **per_response)
  return Batch(data, ids)


def _cached(cache: reference_cache.ReferenceCache, shape: tuple[int, ...], ids: np.ndarray) -> dict[str, np.ndarray]:
  """The columns of a cache for a batch whose responses have this shape, [B, N, R, ...]; 0 at padding."""
  cached = {name: np.zeros((*shape, *column.shape), column.seen) for name, column in cache.columns.items()}
  for row in np.flatnonzero(ids != PADDING_ID):
    for name, responses in cache.read(int(ids[row])).items():
      for i, values in enumerate(responses):
        cached[name][row, i, : len(values)] = values
  return cached
