"""Plans packed rows: which prompts are in which row of which step. It does not depend on the number of processes.

Every step has `batch_size` prompts, except one per epoch that has the rest, and the same number of rows. An epoch is
divided into windows of several steps, which all get prompts of the same lengths. The steps of a window are planned
together: the longest prompts first, each goes to the row that is the least full. So all rows are about equally full,
and nearly all steps have one shape.

A plan is a pure function of (lengths, batch size, unit, seed, epoch). So a position in it, one integer that is the same
on every process, is the complete state of an iterator.
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
    """A multiple of the size, rounded up: positions to whole blocks."""
    positions, targets, pairs = (int(np.ceil(factor * part)) for part in self)
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
      ids = deal(self._costs[members], quotas, self.rows, self.prompts)
      ids = np.where(ids < 0, order.PADDING_ID, members[ids])
      if self.shuffle:
        ids = ids[order.permutation(len(ids), self.seed, epoch, 1, window)]
      self._drawn = (epoch, window), ids
    return self._drawn[1]

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


def deal(costs: np.ndarray, quotas: Sequence[int], rows: int, prompts: int) -> np.ndarray:
  """Deals examples to the rows of several steps, so that the fullest row is about as full as all others.

  The examples come in the order of their largest cost, and each goes to the row whose largest load it makes the least.

  Args:
    costs: [n, d] int64, what an example adds to each load of its row.
    quotas: the examples of each step; their sum is n.
    rows: S, rows of a step.
    prompts: G, examples of a row at most; S * G is no less than the quotas.

  Returns:
    [steps, S, G] int64, indices into `costs`, those of a row in front; then -1.
  """
  left, step_of = np.array(quotas), np.repeat(np.arange(len(quotas)), rows)
  loads, counts = np.zeros((len(step_of), costs.shape[1]), np.int64), np.zeros(len(step_of), np.int64)
  dealt = np.full((len(step_of), prompts), -1, np.int64)
  closed = np.iinfo(np.int64).max
  for example in np.argsort(-costs.max(axis=1), kind='stable'):
    fullest = (loads + costs[example]).max(axis=1)
    row = int(np.where((left[step_of] > 0) & (counts < prompts), fullest, closed).argmin())
    loads[row] += costs[example]
    dealt[row, counts[row]] = example
    counts[row] += 1
    left[step_of[row]] -= 1
  exchange(dealt, costs)
  return dealt.reshape(len(quotas), rows, prompts)


def exchange(dealt: np.ndarray, costs: np.ndarray) -> None:
  """Swaps examples between rows, in place, as long as that makes the fullest row less full and it is far from the mean.

  Args:
    dealt: [rows, G] int64, indices into `costs`, or -1.
    costs: [n, d] int64.
  """
  costs = np.concatenate([costs, np.zeros_like(costs[:1])])  # of index -1
  loads = costs[dealt].sum(axis=1)
  near = int(loads.sum(axis=0).max()) // len(loads) * 129 // 128
  for _ in range(len(costs)):
    row = int(loads.max(axis=1).argmax())
    if loads[row].max() <= near:
      break
    change = costs[dealt[row]][:, None, None] - costs[dealt][None]  # [G of the row, rows, G, d]
    change[dealt[row] < 0] = 0
    change[:, dealt < 0] = 0
    fullest = np.maximum(loads[row] - change, loads[:, None] + change).max(axis=-1)
    own, other, place = np.unravel_index(int(fullest.argmin()), fullest.shape)
    if fullest[own, other, place] >= loads[row].max():
      break
    loads[row] -= change[own, other, place]
    loads[other] += change[own, other, place]
    dealt[row, own], dealt[other, place] = dealt[other, place], dealt[row, own]


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
