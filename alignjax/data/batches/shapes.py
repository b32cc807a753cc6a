"""Batch shapes: which few (prompt tokens, response tokens) hold a dataset cheaply."""

from collections.abc import Iterable, Sequence
import itertools

import numpy as np

from alignjax.data.tokens import dataset

Bucket = tuple[int, int]  # prompt tokens P, response tokens R


def choose_buckets(
  data: dataset.TokenDataset, *, batch_size: int, count: int = 4, multiple: int = 32
) -> tuple[Bucket, ...]:
  """Chooses up to `count` shapes, each of which costs a compilation, that make an epoch cheap.

  Starts with the shape that holds everything. Then adds, one at a time, the shape that saves the most tokens in an
  epoch: the sum over batches of B * (P + N * R), padding rows included. Candidates are the deciles of the lengths.

  Args:
    data: the examples to hold.
    batch_size: prompts in a global batch.
    count: maximum number of shapes.
    multiple: sizes are rounded up to multiples of this many tokens.
  """
  lengths = -(-data.lengths // multiple) * multiple
  deciles = np.quantile(lengths, np.arange(1, 11) / 10, axis=0, method='higher')
  candidates = {(int(prompt), int(response)) for prompt, response in itertools.product(*deciles.T)}
  chosen = (max(candidates),)
  # Many examples have the same rounded lengths, so look at each combination once. One integer a row sorts fast.
  keys, members = np.unique(lengths[:, 0].astype(np.int64) << 32 | lengths[:, 1], return_counts=True)
  lengths = np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)

  def cost(buckets: tuple[Bucket, ...]) -> int:
    rows = np.bincount(_first_fit(lengths, buckets), weights=members, minlength=len(buckets))
    return _tokens(rows, buckets, data.responses, batch_size)

  while len(chosen) < count:
    options = [sort_buckets([*chosen, bucket], data.responses) for bucket in sorted(candidates - set(chosen))]
    best = min(options, key=cost, default=chosen)
    if cost(best) >= cost(chosen):
      break
    chosen = best
  return chosen


def epoch_tokens(data: dataset.TokenDataset, buckets: Sequence[Bucket], *, batch_size: int) -> int:
  """Tokens computed in an epoch with batches of these shapes, padding included."""
  buckets = sort_buckets(buckets, data.responses)
  rows = np.bincount(assign(data, buckets), minlength=len(buckets))
  return _tokens(rows, buckets, data.responses, batch_size)


def _tokens(rows: np.ndarray, buckets: Sequence[Bucket], responses: int, batch_size: int) -> int:
  tokens = np.asarray([prompt + responses * response for prompt, response in buckets])
  return int(np.sum(-(-rows // batch_size) * batch_size * tokens))


def sort_buckets(buckets: Iterable[Bucket], responses: int) -> tuple[Bucket, ...]:
  """Sorts buckets by the tokens of one row, P + N * R."""
  buckets = {(int(prompt), int(response)) for prompt, response in buckets}
  buckets = tuple(sorted(buckets, key=lambda bucket: (bucket[0] + responses * bucket[1], bucket)))
  least = (1, 1 if responses else 0)  # without responses, R may be 0
  if not buckets or any(size < limit for bucket in buckets for size, limit in zip(bucket, least, strict=True)):
    raise ValueError(f'buckets={list(buckets)}: give at least one shape (prompt tokens, response tokens), all positive')
  return buckets


def assign(data: dataset.TokenDataset, buckets: Sequence[Bucket]) -> np.ndarray:
  """[n] index of the first bucket that holds each example."""
  lengths = data.lengths
  bucket = _first_fit(lengths, buckets)
  if bucket.max() == len(buckets):
    row = int(bucket.argmax())
    raise ValueError(
      f'{data.origin(row)}: the prompt has {lengths[row, 0]} tokens, the longest response {lengths[row, 1]}, but no '
      f'bucket of {list(buckets)} holds both; add a larger one, or tokenise with lower limits'
    )
  return bucket


def _first_fit(lengths: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
  """[n] index of the first bucket that holds both lengths, or len(buckets) if none does."""
  fits = (lengths[:, None, :] <= np.asarray(buckets)).all(axis=2)
  return np.where(fits.any(axis=1), fits.argmax(axis=1), len(buckets))
