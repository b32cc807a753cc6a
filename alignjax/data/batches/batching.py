"""Batches of a few static shapes. Each process assembles the rows of the shards of a global batch that it holds."""

from collections.abc import Mapping, Sequence
import dataclasses
import sys
from typing import NamedTuple

import grain
import numpy as np

from alignjax.data.batches import order, packing, reference_cache, shapes
from alignjax.data.tokens import dataset
from alignjax.types import PreferenceBatch

MAX_TOKENS = 2**28  # in the rows of one process, padding included; 1 GiB of token ids
BEHAVIOUR_TOKEN_LOGP = 'behaviour_token_logp'


class Batch(NamedTuple):
  """The rows of a global batch that belong to one process."""

  data: PreferenceBatch  # numpy arrays, in the order of the global batch
  ids: np.ndarray  # [rows] int64, indices into the dataset; -1 for a padding row
  metrics: Mapping[str, float] = {}  # recorded with the update; the same on every process


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """What the global batches are. The same on every process.

  For evaluation: `epochs=1, shuffle=False`.
  """

  batch_size: int  # prompts in a global batch, over all processes
  seed: int = 0  # seed of the order
  epochs: int | None = None  # None repeats the data forever
  buckets: Sequence[shapes.Bucket] | None = None  # shapes (P, R) in tokens; None chooses them: `shapes.choose_buckets`
  max_positions: int | None = None  # of the model: P + R - 1 of the shapes that are chosen; None for no limit
  shuffle: bool = True  # False keeps the order of the data within each bucket, small buckets first, in every epoch

  def __post_init__(self):
    if self.seed < 0:
      raise ValueError(f'seed={self.seed}: must not be negative')
    if self.epochs is not None and self.epochs < 1:
      raise ValueError(f'epochs={self.epochs}: must be at least 1, or None to repeat forever')


@dataclasses.dataclass(frozen=True)
class Share:
  """The shards of a global batch that this process assembles.

  A global batch consists of `count` shards: equal blocks of consecutive rows. Shards may belong to several processes.
  """

  shards: tuple[int, ...] = (0,)  # ascending
  count: int = 1

  def __post_init__(self):
    if not self.shards or list(self.shards) != sorted({*self.shards} & {*range(self.count)}):
      raise ValueError(f'shards={self.shards}: must be ascending numbers from 0 to {self.count - 1}')

  def rows(self, batch_size: int) -> np.ndarray:
    """The places of this process's rows in a global batch of `batch_size` prompts, ascending."""
    if batch_size < 1 or batch_size % self.count:
      raise ValueError(
        f'batch_size={batch_size}: must be a positive multiple of {self.count}, the number of batch shards '
        '(mesh.data x mesh.fsdp), because each shard holds equally many prompts'
      )
    return np.arange(batch_size).reshape(self.count, -1)[list(self.shards)].ravel()


@dataclasses.dataclass(frozen=True)
class Batches:
  """A stream of batches: `iter(batches)` is a grain iterator, with `get_state` and `set_state`."""

  dataset: grain.IterDataset
  plan: order.Plan | packing.Plan
  steps: int | None  # in total; None if the stream is infinite
  source: Sequence[Batch]  # any batch, by step

  def __iter__(self) -> grain.DatasetIterator:
    return iter(self.dataset)


def make_batches(
  data: dataset.TokenDataset,
  spec: BatchSpec,
  share: Share | None = None,
  cache: reference_cache.ReferenceCache | None = None,
) -> Batches:
  """Builds the batches of one process.

  Args:
    data: the same on every process. An example goes to the smallest bucket that holds it.
    spec: size, shapes and order of the global batches.
    share: the shards that this process holds; None is all rows.
    cache: the reference cache of `data`. Batches then have its columns in `cached`.

  Raises:
    ValueError: the batch size does not divide among the shards, or no bucket or model holds an example.
  """
  rows = (share or Share()).rows(spec.batch_size)
  if spec.buckets is None:
    buckets = shapes.choose_buckets(data, batch_size=spec.batch_size, max_positions=spec.max_positions)
  else:
    buckets = shapes.sort_buckets(spec.buckets, data.responses)
  _check_size(buckets, len(rows), data.responses)
  plan = order.Plan(shapes.assign(data, buckets), buckets, spec.batch_size, spec.seed, spec.shuffle)
  source = _Source(data, plan, spec.epochs, rows, cache)
  # The data is in memory, so threads would gain nothing, and without them nothing runs ahead of the saved state.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  stream = grain.MapDataset.source(source).to_iter_dataset(options)
  return Batches(stream, plan, None if spec.epochs is None else len(source), source)


def _check_size(buckets: Sequence[shapes.Bucket], rows: int, responses: int) -> None:
  prompt, response = max(buckets, key=lambda bucket: bucket[0] + responses * bucket[1])
  tokens = rows * (prompt + responses * response)
  if tokens > MAX_TOKENS:
    raise ValueError(
      f'buckets: ({prompt}, {response}) is too large: a batch of {rows} prompts with {responses} responses each would '
      f'have {tokens:,} tokens in each process, more than {MAX_TOKENS:,}; lower batch_size or the size of the bucket'
    )


class _Source:
  """The random-access source that grain reads: from a step to the rows of one process."""

  def __init__(
    self,
    data: dataset.TokenDataset,
    plan: order.Plan,
    epochs: int | None,
    rows: np.ndarray,
    cache: reference_cache.ReferenceCache | None,
  ):
    self._data = data
    self._plan = plan
    self._length = sys.maxsize if epochs is None else epochs * plan.steps_per_epoch
    self._rows = rows
    self._cache = cache

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, step: int) -> Batch:
    bucket, ids = self._plan[step]
    batch = assemble(self._data, bucket, ids[self._rows])
    if self._cache is None:
      return batch
    cached = {**batch.data.cached, **_cached(self._cache, batch.data.response.shape, batch.ids)}
    return batch._replace(data=dataclasses.replace(batch.data, cached=cached))


def assemble(data: dataset.TokenDataset, bucket: shapes.Bucket, ids: np.ndarray) -> Batch:
  """Right-pads examples to the shape of a bucket.

  A padding row has weight 0, and one token in its prompt and in each response. So an objective that divides by a length
  stays finite, and so does its gradient.
  """
  (prompt_size, response_size), rows, count = bucket, len(ids), data.responses
  prompt = np.zeros((rows, prompt_size), np.int32)
  prompt_length = np.ones(rows, np.int32)
  response = np.zeros((rows, count, response_size), np.int32)
  response_length = np.ones((rows, count), np.int32)
  label = np.ones(rows, np.float32)
  weight = np.zeros(rows, np.float32)
  per_response = {name: np.zeros((rows, count), np.float32) for name in data.per_response}
  token_logp = None if data.behaviour_token_logp is None else np.zeros(response.shape, np.float32)
  for row in np.flatnonzero(ids != order.PADDING_ID):
    example = data[int(ids[row])]
    prompt_length[row] = len(example.prompt)
    prompt[row, : len(example.prompt)] = example.prompt
    for i, tokens in enumerate(example.responses):
      response_length[row, i] = len(tokens)
      response[row, i, : len(tokens)] = tokens
      if token_logp is not None:
        token_logp[row, i, : len(tokens)] = example.behaviour_token_logp[i]
    label[row], weight[row] = example.label, example.weight
    for name, values in per_response.items():
      values[row] = getattr(example, name)
  cached = {} if token_logp is None else {BEHAVIOUR_TOKEN_LOGP: token_logp}
  batch = PreferenceBatch(
    prompt, prompt_length, response, response_length, label, weight, **per_response, cached=cached
  )
  return Batch(batch, ids)


def only(batch: Batch, kept: np.ndarray) -> Batch:
  """The batch in which only some rows are left. Padding rows take the place of the others.

  Args:
    batch: a batch.
    kept: [rows] bool.
  """

  def padded(values: np.ndarray | None, padding: int = 0) -> np.ndarray | None:
    if values is None:
      return None
    values = np.asarray(values)
    return np.where(kept.reshape(-1, *[1] * (values.ndim - 1)), values, np.asarray(padding, values.dtype))

  data = batch.data
  left = PreferenceBatch(
    prompt=padded(data.prompt),
    prompt_length=padded(data.prompt_length, 1),
    response=padded(data.response),
    response_length=padded(data.response_length, 1),
    label=padded(data.label, 1),
    weight=padded(data.weight),
    score=padded(data.score),
    behaviour_logp=padded(data.behaviour_logp),
    cached={name: padded(values) for name, values in data.cached.items()},
  )
  return Batch(left, np.where(kept, batch.ids, order.PADDING_ID))


def _cached(cache: reference_cache.ReferenceCache, shape: tuple[int, ...], ids: np.ndarray) -> dict[str, np.ndarray]:
  """The columns of a cache for a batch with responses of this shape: [B, N, R, ...], 0 at padding."""
  cached = {name: np.zeros((*shape, *column.shape), column.seen) for name, column in cache.columns.items()}
  for row in np.flatnonzero(ids != order.PADDING_ID):
    for name, responses in cache.read(int(ids[row])).items():
      for i, values in enumerate(responses):
        cached[name][row, i, : len(values)] = values
  return cached
