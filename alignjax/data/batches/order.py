"""The global order of batches. It does not depend on the number of processes.

A plan is a pure function of (data, seed, global batch size, buckets, epoch). So a position in the plan, one integer
that is the same on every process, is the complete state of an iterator.
"""

import dataclasses
import functools

import numpy as np

from alignjax.data.batches import shapes

PADDING_ID = -1


@dataclasses.dataclass(eq=False)
class Plan:
  """The global batches of every epoch.

  Each batch takes its rows from one bucket. The last batch of a bucket is filled up with padding rows (id -1), so no
  example is dropped. With `shuffle`, the examples of a bucket and the batches of all buckets are permuted every epoch.
  """

  bucket_of: np.ndarray  # [n] int64, index into `buckets`
  buckets: tuple[shapes.Bucket, ...]
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

  @property
  def identity(self) -> object:
    """What decides which prompts a batch has, besides data, seed and batch size, in JSON types."""
    return self.buckets

  @property
  def description(self) -> str:
    """The shapes and the size of an epoch, for people."""
    return f'shapes {list(self.buckets)}, {self.steps_per_epoch} per epoch, {self.padding_rows} padding rows'

  def __getitem__(self, step: int) -> tuple[shapes.Bucket, np.ndarray]:
    """The shape and the ids [B] of a global batch. Steps are counted across epochs."""
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
      order = permutation(len(order), self.seed, epoch, 0)
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
      batches = permutation(len(ids), self.seed, epoch, 1)
      ids, bucket_index = ids[batches], bucket_index[batches]
    return ids, bucket_index


def stream(count: int, seed: int, start: int, stop: int) -> np.ndarray:
  """Ids [stop - start] of an endless sequence of epochs, each of which has every id from 0 to count - 1 once, shuffled.

  Args:
    count: the number of ids.
    seed: seed of the order.
    start: the first place of the sequence to return.
    stop: the place after the last one.
  """
  epochs = range(start // count, -(-stop // count))
  ids = np.concatenate([permutation(count, seed, epoch) for epoch in epochs]) if epochs else np.zeros(0, np.int64)
  return ids[start - epochs.start * count :][: stop - start]


def permutation(size: int, *seeds: int) -> np.ndarray:
  """A permutation that is the same in every version of numpy: only the raw stream of bit generators is guaranteed."""
  raw = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(size)
  return np.argsort(raw, kind='stable')
