"""Plans packed rows: which prompts are in which row of which step. It does not depend on the number of processes.

Every step has `batch_size` prompts, except one per epoch that has the rest, and the same number of rows. An epoch is
divided into windows of several steps, which all get prompts of the same lengths. The steps of a window, and then the
rows of a step, are filled together: the longest prompts first, each goes to the one that is the least full. So all rows
are about equally full, and nearly all steps have one shape.

A plan is a pure function of (lengths, batch size, unit, seed, epoch). So a position in it, one integer that is the same
on every process, is the complete state of an iterator. Which prompts a step has does not depend on `unit` either, so a
run may resume on another mesh.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from alignjax.data.batches import order
from alignjax.data.tokens import dataset
from alignjax.types import BLOCK

POSITIONS = 2048  # of a row, about
WINDOW = 512  # prompts of a window, about
SAMPLE = 64  # windows that the shape is chosen from
GROWTH = (1.0, 1.25, 2.0)  # rows of the usual shape, and of steps that do not fit it; then doubled again and again
QUANTILES = (1.0, 0.98, 0.95, 0.9, 0.75)  # share of the steps that the usual shape holds
WORTH = 0.98  # a smaller usual shape must lower the positions of an epoch to this share
UNIT = 2**20  # costs are integers, so that every machine makes the same plan


class Size(NamedTuple):
  """The size of a row."""

  positions: int  # T
  targets: int  # M, response tokens
  pairs: int  # E, pairs of blocks that see each other

  def holds(self, needed: 'Size') -> bool:
    """Whether a row that needs this much fits."""
    return all(own >= other for own, other in zip(self, needed, strict=True))

  def times(self, factor: float) -> 'Size':
    """A multiple of the size, rounded up: positions to whole blocks, whose pairs grow with the square."""
    positions, targets = (int(np.ceil(factor * part)) for part in self[:2])
    pairs = int(np.ceil(factor**2 * self.pairs))
    return Size(_round_up(positions, BLOCK), _round_up(targets, 8), _round_up(pairs, 4))

  def fitting(self, needed: 'Size') -> 'Size':
    """The smallest of the few multiples that rows may have."""
    factors, largest = GROWTH, GROWTH[-1]
    while True:
      for size in map(self.times, factors):
        if size.holds(needed):
          return size
      largest *= 2
      factors = (largest,)


@dataclasses.dataclass(frozen=True, eq=False)
class Lengths:
  """The tokens of n prompts with N responses each."""

  prompt: np.ndarray  # [n] int64
  response: np.ndarray  # [n, N] int64
  final: bool = False  # whether rows hold the last token of each response, which predicts nothing

  @classmethod
  def of(cls, data: dataset.TokenDataset, final: bool) -> 'Lengths':
    """The lengths of a dataset."""
    return cls(data.prompt_length, data.response_length, final)

  def __len__(self) -> int:
    return len(self.prompt)

  @functools.cached_property
  def branch(self) -> np.ndarray:
    """[n, N]: the positions of each response, whose first one holds the last token of the prompt."""
    return self.response + self.final

  @functools.cached_property
  def positions(self) -> np.ndarray:
    """[n]: the positions of each prompt with its responses."""
    return self.prompt - 1 + self.branch.sum(axis=1)

  @functools.cached_property
  def targets(self) -> np.ndarray:
    """[n]: response tokens."""
    return self.response.sum(axis=1)


class Step(NamedTuple):
  """One global batch of packed rows."""

  size: Size  # of each row
  ids: np.ndarray  # [S, G] int64: the examples of each row, then -1


@dataclasses.dataclass(eq=False)
class Plan:
  """The global batches of every epoch.

  Args:
    lengths: the lengths of the examples.
    batch_size: prompts of a step, over all processes.
    unit: batch shards times microbatches. The number of rows is a multiple of it.
    seed: seed of the order.
    shuffle: whether examples are permuted every epoch.

  Attributes:
    rows: S, the rows of a step.
    prompts: G, prompts of a row at most.
    window: steps of a window; the last one may have fewer.
    size: the size of nearly all rows.
  """

  lengths: Lengths
  batch_size: int
  unit: int = 1
  seed: int = 0
  shuffle: bool = True
  _order: tuple[int, np.ndarray] | None = dataclasses.field(default=None, init=False, repr=False)
  _drawn: tuple[tuple[int, int], np.ndarray] | None = dataclasses.field(default=None, init=False, repr=False)

  def __post_init__(self):
    wanted = int(self.batch_size * self.useful // (len(self.lengths) * POSITIONS))
    self.rows = self.unit * max(1, min(wanted, self.batch_size) // self.unit)
    self.prompts = min(self.batch_size, 2 * -(-self.batch_size // self.rows))
    windows = max(1, self.batch_size * self.steps_per_epoch // WINDOW)
    self.window = -(-self.steps_per_epoch // windows)
    self.size = self._choose()

  @property
  def steps_per_epoch(self) -> int:
    return -(-len(self.lengths) // self.batch_size)

  @property
  def useful(self) -> int:
    """Positions of an epoch that hold a token."""
    return int(self.lengths.positions.sum())

  @property
  def positions(self) -> int:
    """Positions of an epoch, padding included, if all steps have the usual size."""
    return self.steps_per_epoch * self.rows * self.size.positions

  @property
  def share(self) -> float:
    """The share of the positions that hold a token."""
    return self.useful / self.positions

  @property
  def identity(self) -> object:
    """What decides which prompts a step has, besides data, seed and batch size, in JSON types."""
    return {'packed': self.window}

  @property
  def description(self) -> str:
    """The rows and the size of an epoch, for people."""
    return (
      f'packed into {self.rows} rows of {self.size.positions} positions, {self.share:.1%} of which hold a token, '
      f'{self.steps_per_epoch} per epoch'
    )

  def __getitem__(self, step: int) -> Step:
    """A global batch. Steps are counted across epochs."""
    epoch, step = divmod(step, self.steps_per_epoch)
    window, place = divmod(step, self.window)
    ids = self.draw(epoch if self.shuffle else 0, window)[place]
    return Step(self.size.fitting(self._needed(ids)), ids)

  def draw(self, epoch: int, window: int) -> np.ndarray:
    """The steps of a window: ids [steps, S, G]."""
    if self._drawn is None or self._drawn[0] != (epoch, window):
      size = self.window * self.batch_size
      members = self._ordered(epoch)[window * size : (window + 1) * size]
      full, rest = divmod(len(members), self.batch_size)
      quotas = [self.batch_size] * full + [rest] * bool(rest)
      steps = [members[own] for own in deal(self._costs[members], quotas)]
      if self.shuffle:
        steps = [steps[place] for place in order.permutation(len(steps), self.seed, epoch, 1, window)]
      self._drawn = (epoch, window), np.stack([self._rows_of(ids) for ids in steps])
    return self._drawn[1]

  def _rows_of(self, ids: np.ndarray) -> np.ndarray:
    """[S, G]: the rows of a step with these examples."""
    rows = np.full((self.rows, self.prompts), order.PADDING_ID, np.int64)
    quotas = [self.prompts] * self.rows
    for row, own in zip(rows, deal(self._costs[ids], quotas), strict=True):
      row[: len(own)] = ids[own]
    return rows

  @functools.cached_property
  def _costs(self) -> np.ndarray:
    """[n, 2] int64: positions and response tokens, each in units of its mean."""
    columns = np.stack([self.lengths.positions, self.lengths.targets], axis=1).astype(np.int64)
    return columns * UNIT * len(columns) // np.maximum(columns.sum(axis=0), 1)

  def _ordered(self, epoch: int) -> np.ndarray:
    if self._order is None or self._order[0] != epoch:
      count = len(self.lengths)
      ids = order.permutation(count, self.seed, epoch, 0) if self.shuffle else np.arange(count)
      ids = ids[np.argsort(-self._costs[ids].max(axis=1), kind='stable')]
      ties = order.permutation(count, self.seed, epoch, 2) if self.shuffle else np.arange(count)
      self._order = epoch, stratify(ids, self.window * self.batch_size, ties)
    return self._order[1]

  def _needed(self, ids: np.ndarray) -> Size:
    """What the fullest rows of a step need."""
    rows = [row[row != order.PADDING_ID] for row in ids]
    lengths = self.lengths
    return Size(
      positions=max(int(lengths.positions[row].sum()) for row in rows),
      targets=max(int(lengths.targets[row].sum()) for row in rows),
      pairs=max(len(block_pairs(lengths.prompt[row], lengths.branch[row])) for row in rows),
    )

  def _choose(self) -> Size:
    """The usual size: the one with which an epoch has about the fewest positions, and few steps have another size."""
    windows = -(-self.steps_per_epoch // self.window)
    chosen = np.unique(np.linspace(0, windows - 1, min(windows, SAMPLE)).astype(int))
    needed = [self._needed(ids) for window in chosen for ids in self.draw(0, int(window))]
    sizes = np.array(needed)
    fullness = (sizes / np.median(sizes, axis=0)).max(axis=1)
    best, least = None, np.inf
    for quantile in QUANTILES:
      kept = sizes[fullness <= np.quantile(fullness, quantile, method='higher')]
      positions, targets, pairs = map(int, kept.max(axis=0))
      size = Size(positions, targets + targets // 32, pairs + pairs // 16).times(1.0)
      cost = sum(size.fitting(each).positions for each in needed)
      if cost < WORTH * least:
        best, least = size, cost
    return best


def stratify(ids: np.ndarray, size: int, ties: np.ndarray) -> np.ndarray:
  """Reorders sorted examples, so that each window of consecutive ones has some from all parts of the sorted order.

  Args:
    ids: [n] examples, sorted.
    size: examples of a window. The last one may have fewer.
    ties: [n] different numbers, which decide which of neighbours goes to which window.
  """
  windows, rest = divmod(len(ids), size)
  last = (2 * np.arange(rest) + 1) * len(ids) // (2 * max(rest, 1))  # evenly spaced
  others = np.delete(np.arange(len(ids)), last).reshape(size, windows)
  places = np.argsort(ties[others], axis=1, kind='stable')
  return ids[np.concatenate([np.take_along_axis(others, places, axis=1).T.ravel(), last])]


def deal(costs: np.ndarray, quotas: Sequence[int]) -> list[np.ndarray]:
  """Deals examples to several bins, so that the fullest bin is hardly fuller than the others.

  The examples come in the order of their largest cost, and each goes to the bin whose largest load it makes the least.
  Then examples change places as long as that makes the fullest bin less full, and it is far from the mean.

  Args:
    costs: [n, d] int64, what an example adds to each load of its bin.
    quotas: the examples that each bin holds at most; their sum is no less than n.

  Returns:
    For each bin, its examples, as indices into `costs`.
  """
  loads, left = np.zeros((len(quotas), costs.shape[1]), np.int64), np.array(quotas)
  bins: list[list[int]] = [[] for _ in quotas]
  closed = np.iinfo(np.int64).max
  for example in np.argsort(-costs.max(axis=1), kind='stable').tolist():
    chosen = int(np.where(left > 0, (loads + costs[example]).max(axis=1), closed).argmin())
    loads[chosen] += costs[example]
    left[chosen] -= 1
    bins[chosen].append(example)
  _exchange(bins, loads, costs)
  return [np.array(own, np.int64) for own in bins]


def _exchange(bins: list[list[int]], loads: np.ndarray, costs: np.ndarray) -> None:
  """Swaps examples of the fullest bin for others, in place."""
  near = int(loads.sum(axis=0).max()) // len(loads) * 257 // 256
  bin_of, place_of = np.zeros(len(costs), np.int64), np.zeros(len(costs), np.int64)
  for number, own in enumerate(bins):
    bin_of[own], place_of[own] = number, np.arange(len(own))
  for _ in range(len(costs)):
    fullest = int(loads.max(axis=1).argmax())
    if (limit := loads[fullest].max()) <= near:
      break
    change = costs[bins[fullest]][:, None] - costs[None]  # [of the fullest bin, n, d]
    after = np.maximum(loads[fullest] - change, loads[bin_of] + change).max(axis=-1)
    own, other = np.unravel_index(int(after.argmin()), after.shape)
    if after[own, other] >= limit:
      break
    given, another = bins[fullest][own], bin_of[other]
    loads[fullest] -= change[own, other]
    loads[another] += change[own, other]
    bins[fullest][own], bins[another][place_of[other]] = int(other), given
    bin_of[given], bin_of[other] = another, fullest
    place_of[given], place_of[other] = place_of[other], own


def block_pairs(prompt: np.ndarray, branch: np.ndarray) -> np.ndarray:
  """The blocks of queries and of keys, of a row, of which some see each other.

  Args:
    prompt: [g] tokens of each prompt in the row. Its last token belongs to the branches.
    branch: [g, N] positions of each branch.

  Returns:
    [e, 2] (block of queries, block of keys), ordered by the first.
  """
  blocks = -(-int(prompt.sum() - len(prompt) + branch.sum()) // BLOCK)
  seen = np.zeros((blocks, blocks), bool)
  start = 0
  for own, branches in zip(prompt - 1, branch, strict=True):
    shared = _touched(start, own)
    _see_causally(seen, shared)
    start += own
    for length in branches:
      touched = _touched(start, length)
      seen[touched, shared] = True
      _see_causally(seen, touched)
      start += length
  return np.argwhere(seen)


def _touched(start: int, length: int) -> slice:
  """The blocks that positions lie in."""
  return slice(start // BLOCK, (start + length - 1) // BLOCK + 1 if length else start // BLOCK)


def _see_causally(seen: np.ndarray, blocks: slice) -> None:
  for block in range(blocks.start, blocks.stop):
    seen[block, blocks.start : block + 1] = True


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
