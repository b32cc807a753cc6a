"""Batches of packed rows. Each process assembles the rows of the shards of a global batch that it holds."""

from collections.abc import Mapping
import dataclasses
import sys

import grain
import numpy as np

from alignjax.data.batches import batching, order, packing, reference_cache
from alignjax.data.tokens import dataset
from alignjax.types import PackedBatch, PackedRows


@dataclasses.dataclass(frozen=True)
class Rows:
  """What the rows of a run must be."""

  unit: int = 1  # batch shards times microbatches; the number of rows of a step is a multiple of it
  final: bool = False  # whether rows hold the last token of each response, for statistics that read the state after it


def plan(data: dataset.TokenDataset, spec: batching.BatchSpec, rows: Rows) -> packing.Plan:
  """Plans the packed batches of a dataset.

  Raises:
    ValueError: a prompt and one of its responses have more positions than the model.
  """
  lengths = packing.Lengths.of(data, rows.final)
  used = lengths.prompt - 1 + data.longest_response
  if spec.max_positions is not None and used.max() > spec.max_positions:
    row = int((used > spec.max_positions).argmax())
    raise ValueError(
      f'{data.origin(row)}: the prompt has {lengths.prompt[row]} tokens, the longest response '
      f'{data.longest_response[row]}, together more than max_positions={spec.max_positions} of the model; lower '
      'max_prompt or max_response'
    )
  return packing.Plan(lengths, spec.batch_size, rows.unit, spec.seed, spec.shuffle)


def make_batches(
  data: dataset.TokenDataset,
  spec: batching.BatchSpec,
  rows: Rows,
  share: batching.Share | None = None,
  cache: reference_cache.ReferenceCache | None = None,
) -> batching.Batches:
  """Builds the packed batches of one process.

  Args:
    data: the same on every process.
    spec: size and order of the global batches; `buckets` do not apply.
    rows: what the rows must be.
    share: the shards that this process holds; None is all rows.
    cache: the reference cache of `data`. Batches then have its columns in `cached`.

  Raises:
    ValueError: an example does not fit into the model, or a step is too large.
  """
  planned = plan(data, spec, rows)
  own = (share or batching.Share()).rows(planned.rows)
  tokens = len(own) * planned.size.positions
  if tokens > batching.MAX_TOKENS:
    raise ValueError(
      f'batch_size={spec.batch_size}: a batch would have {tokens:,} tokens in each process, more than '
      f'{batching.MAX_TOKENS:,}; lower batch_size'
    )
  source = _Source(data, planned, spec.epochs, own, cache)
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # see `batching.make_batches`
  stream = grain.MapDataset.source(source).to_iter_dataset(options)
  return batching.Batches(stream, planned, None if spec.epochs is None else len(source), source)


class _Source:
  """The random-access source that grain reads: from a step to the rows of one process."""

  def __init__(
    self,
    data: dataset.TokenDataset,
    planned: packing.Plan,
    epochs: int | None,
    rows: np.ndarray,
    cache: reference_cache.ReferenceCache | None,
  ):
    self._data, self._plan, self._rows, self._cache = data, planned, rows, cache
    self._length = sys.maxsize if epochs is None else epochs * planned.steps_per_epoch
    self._longest = int(data.prompt_length.max()), int(data.longest_response.max())

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, step: int) -> batching.Batch:
    size, ids = self._plan[step]
    return assemble(
      self._data, packing.Step(size, ids[self._rows]), self._longest, self._plan.lengths.final, self._cache
    )


def assemble(
  data: dataset.TokenDataset,
  step: packing.Step,
  longest: tuple[int, int],
  final: bool,
  cache: reference_cache.ReferenceCache | None = None,
) -> batching.Batch:
  """Builds packed rows.

  A row with fewer than G prompts is filled up with prompts of weight 0, with one token in the prompt and in each
  response, which read the statistics of others.

  Args:
    data: the examples.
    step: the size of the rows, and their examples.
    longest: tokens of the longest prompt and of the longest response of all batches.
    final: whether rows hold the last token of each response.
    cache: provides columns of `cached`.
  """
  size, ids = step
  examples = batching.assemble(data, longest, ids.ravel()).data
  slots = {item.name: getattr(examples, item.name) for item in dataclasses.fields(examples) if item.name != 'cached'}
  shape = ids.shape
  slots = {name: None if x is None else x.reshape(*shape, *x.shape[1:]) for name, x in slots.items()}
  cached = {name: x.reshape(*shape, *x.shape[1:]) for name, x in examples.cached.items()}
  builder = _Builder(len(ids), size, slots['response'].shape[:3], final)
  for row, slot in np.argwhere(ids != order.PADDING_ID):
    builder.add(row, slot, data[int(ids[row, slot])])
  rows = builder.rows(sum(longest))
  if cache is not None:
    cached |= _cached(cache, rows, slots['response'].shape, ids)
  return batching.Batch(PackedBatch(**slots, cached=cached, rows=rows), ids.ravel())


class _Builder:
  """Fills the arrays of `PackedRows`, prompt after prompt."""

  def __init__(self, count: int, size: packing.Size, slots: tuple[int, ...], final: bool):
    positions = (count, size.positions)
    self._size = size
    self._tokens, self._branch, self._position = (np.zeros(positions, np.int32) for _ in range(3))
    self._segment = np.full(positions, -1, np.int32)
    self._pairs = np.full((count, size.pairs, 2), -1, np.int32)
    self._predicting, self._target = (np.zeros((count, size.targets), np.int32) for _ in range(2))
    self._first = np.zeros(slots, np.int32)
    self._final = np.zeros(slots, np.int32) if final else None
    self._used, self._predicted = np.zeros(count, int), np.zeros(count, int)
    self._prompts: list[list[int]] = [[] for _ in range(count)]
    self._branches: list[list[list[int]]] = [[] for _ in range(count)]

  def add(self, row: int, slot: int, example: dataset.TokenExample) -> None:
    """Appends a prompt and its responses to a row."""
    prompt = np.asarray(example.prompt)
    self._append(row, slot, 0, prompt[:-1], 0)
    for n, response in enumerate(example.responses):
      start, predicted = self._used[row], self._predicted[row]
      read = response if self._final is not None else response[:-1]
      self._append(row, slot, n + 1, np.concatenate([prompt[-1:], read]), len(prompt) - 1)
      places = slice(predicted, predicted + len(response))
      self._predicting[row, places] = start + np.arange(len(response))
      self._target[row, places] = response
      self._first[row, slot, n] = predicted
      if self._final is not None:
        self._final[row, slot, n] = start + len(response)
      self._predicted[row] += len(response)
    self._prompts[row].append(len(prompt))
    self._branches[row].append([len(response) + (self._final is not None) for response in example.responses])

  def _append(self, row: int, slot: int, branch: int, tokens: np.ndarray, position: int) -> None:
    places = slice(self._used[row], self._used[row] + len(tokens))
    self._tokens[row, places] = tokens
    self._segment[row, places] = slot
    self._branch[row, places] = branch
    self._position[row, places] = position + np.arange(len(tokens))
    self._used[row] += len(tokens)

  def rows(self, longest: int) -> PackedRows:
    """The finished rows."""
    for row, (prompts, branches) in enumerate(zip(self._prompts, self._branches, strict=True)):
      if prompts:
        pairs = packing.block_pairs(np.array(prompts), np.array(branches))
        self._pairs[row, : len(pairs)] = pairs
    return PackedRows(
      self._tokens,
      self._segment,
      self._branch,
      self._position,
      self._pairs,
      self._predicting,
      self._target,
      self._first,
      self._final,
      longest,
    )


def _cached(
  cache: reference_cache.ReferenceCache, rows: PackedRows, shape: tuple[int, ...], ids: np.ndarray
) -> Mapping[str, np.ndarray]:
  """The columns of a cache: [S, G, N, R], 0 at padding; hidden states as `rows.target`, [S, M, D]."""
  dense = {
    name: np.zeros((*(rows.target.shape if column.shape else shape), *column.shape), column.seen)
    for name, column in cache.columns.items()
  }
  for row, slot in np.argwhere(ids != order.PADDING_ID):
    for name, responses in cache.read(int(ids[row, slot])).items():
      for n, values in enumerate(responses):
        if cache.columns[name].shape:
          start = rows.first[row, slot, n]
          dense[name][row, start : start + len(values)] = values
        else:
          dense[name][row, slot, n, : len(values)] = values
  return dense


def only(batch: batching.Batch, kept: np.ndarray) -> batching.Batch:
  """The batch in which only some prompts are left; the others lose their tokens, and their weight.

  Args:
    batch: a batch of packed rows.
    kept: [S * G] bool.
  """
  data = batch.data
  rows, shape = data.rows, data.weight.shape
  left = batching.only(batching.Batch(data.examples, batch.ids), kept)
  kept = kept.reshape(shape)
  within = np.take_along_axis(
    np.pad(kept, ((0, 0), (0, 1))), rows.segment, axis=1
  )  # segment -1: the padding at the end
  states = {name: value for name, value in data.cached.items() if name not in left.data.cached}
  predicted = np.take_along_axis(within, rows.predicting, axis=1)
  states = {name: np.where(predicted[..., None], value, np.zeros_like(value)) for name, value in states.items()}
  slots = {item.name: getattr(left.data, item.name) for item in dataclasses.fields(left.data) if item.name != 'cached'}
  slots = {name: None if x is None else x.reshape(*shape, *x.shape[1:]) for name, x in slots.items()}
  cached = {name: x.reshape(*shape, *x.shape[1:]) for name, x in left.data.cached.items()}
  packed = dataclasses.replace(rows, tokens=rows.tokens * within, target=rows.target * predicted)
  return batching.Batch(PackedBatch(**slots, cached=cached | states, rows=packed), left.ids)
