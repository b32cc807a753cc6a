"""Batch shapes: which few (prompt tokens, response tokens) hold a dataset cheaply."""

from collections.abc import Iterable, Sequence
import itertools

import numpy as np

from alignjax.data.tokens import dataset

Bucket = tuple[int, int]  # prompt tokens P, response tokens R


def choose_buckets(
  data: dataset.TokenDataset,
  *,
  batch_size: int,
  count: int = 4,
  multiple: int = 32,
  max_positions: int | None = None,
) -> tuple[Bucket, ...]:
  """Chooses up to `count` shapes, each of which costs a compilation, that make an epoch cheap.

  Starts with the shape that holds everything, or with several if that one has too many positions. Then adds, one at a
  time, the shape that saves the most tokens in an epoch: the sum over batches of B * (P + N * R), padding rows
  included. Candidates are the deciles of the lengths.

  Args:
    data: the examples to hold.
    batch_size: prompts in a global batch.
    count: maximum number of shapes.
    multiple: sizes are rounded up to multiples of this many tokens, as far as `max_positions` allows.
    max_positions: most tokens of a prompt and one response, less the last one; None for no limit.

  Raises:
    ValueError: an example has more positions than that.
  """
  lengths = -(-data.lengths // multiple) * multiple
  deciles = np.quantile(lengths, np.arange(1, 11) / 10, axis=0, method='higher')
  candidates = {(int(prompt), int(response)) for prompt, response in itertools.product(*deciles.T)}
  chosen = (max(candidates),)
  if max_positions is not None and sum(chosen[0]) - 1 > max_positions:
    lengths = data.lengths  # rounded up, some examples would fit no shape
    chosen = sort_buckets(_cover(data, multiple, max_positions), data.responses)
    candidates = {bucket for bucket in candidates if sum(bucket) - 1 <= max_positions}
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


def _cover(data: dataset.TokenDataset, multiple: int, max_positions: int) -> list[Bucket]:
  """Shapes with at most `max_positions` positions that together hold all examples."""
  lengths = data.lengths.astype(np.int64)
  too_long = lengths.sum(axis=1) - 1 > max_positions
  if too_long.any():
    row = int(too_long.argmax())
    raise ValueError(
      f'{data.origin(row)}: the prompt has {lengths[row, 0]} tokens, the longest response {lengths[row, 1]}, together '
      f'more than max_positions={max_positions} of the model; lower max_prompt or max_response'
    )
  found, rest = [], np.unique(lengths, axis=0)
  while len(rest):
    prompt = int(rest[:, 0].max())
    room = max_positions + 1 - prompt
    longest = int(rest[rest[:, 1] <= room, 1].max())
    response = min(-(-longest // multiple) * multiple, room)
    found.append((min(-(-prompt // multiple) * multiple, max_positions + 1 - response), response))
    rest = rest[rest[:, 1] > response]
  return found


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
