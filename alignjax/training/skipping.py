"""Batches whose loss or gradient is not finite: skipped inside the step, counted, searched for the rows at fault."""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.data.batches import batching, order, packed
from alignjax.parallel import mesh as parallel_mesh
from alignjax.training import placement, watchdog
from alignjax.training.state import Frozen, Skips, TrainState
from alignjax.types import Array, PackedBatch, PreferenceBatch

Step = Callable[[TrainState, Frozen, PreferenceBatch], tuple[TrainState, dict[str, Array]]]
_SCALARS = ('loss', 'gradient_norm', 'prompts')
MOST_SEARCHES = 3  # skipped batches of a run that are searched, in addition to the one that stops it
MOST_ROWS = 3  # the search ends after it has found this many rows


class Verdict(NamedTuple):
  """Whether a batch is skipped, and why."""

  finite: Mapping[str, Array]  # what has to be finite, by name -> whether it is
  in_a_row: Array  # [] int32, batches skipped in a row up to this one; 0: it is not skipped


def guarded(step: Step) -> Callable[[TrainState, Frozen, PreferenceBatch], Any]:
  """Wraps a step: a batch that gives a loss, a gradient or a memory that is not finite changes nothing but counters.

  Parameters, the optimizer's moments and counters, the key and the objective's memory stay bit for bit. `step`, which
  counts batches, and `skips` go on. The decision depends on values that are the same on all devices.

  Args:
    step: returns metrics with `loss`, `gradient_norm` (which is not finite if any entry of the gradient is not) and
      perhaps `prompts`, the sum of weights.

  Returns:
    A function with the arguments of `step`, which returns the new state, the metrics with `skipped` (the number of
    batches skipped since the run began), and a Verdict.
  """

  def guarded_step(state: TrainState, frozen: Frozen, batch: PreferenceBatch) -> Any:
    new, values = step(state, frozen, batch)
    finite = {name: jnp.isfinite(values[name]) for name in _SCALARS if name in values}
    finite |= {
      f'the memory {name} of the objective': jnp.all(jnp.isfinite(value)) for name, value in new.memory.items()
    }
    good = jnp.all(jnp.stack(list(finite.values())))

    def choose(name: str) -> Any:
      return jax.tree.map(lambda now, before: jnp.where(good, now, before), getattr(new, name), getattr(state, name))

    skipped = 1 - good.astype(jnp.int32)
    skips = Skips(state.skips.total + skipped, (state.skips.in_a_row + 1) * skipped)
    kept = {name: choose(name) for name in ('params', 'opt_state', 'key', 'memory')}
    return (
      TrainState(new.step, **kept, skips=skips),
      {**values, 'skipped': skips.total},
      Verdict(finite, skips.in_a_row),
    )

  return guarded_step


class Skipped(NamedTuple):
  """A batch that a step has skipped."""

  step: int
  verdict: Verdict  # of numpy arrays
  values: Mapping[str, float]  # the metrics of the step
  batch: batching.Batch

  @property
  def in_a_row(self) -> int:
    """The number of batches skipped in a row up to this one."""
    return int(self.verdict.in_a_row)

  @property
  def first(self) -> int:
    """The step of the first of these batches."""
    return self.step - self.in_a_row + 1

  @property
  def complaint(self) -> str:
    """What is not finite: 'step 7: loss is inf, gradient_norm is nan (batch 2 in a row)'."""
    wrong = sorted(
      (name for name, finite in self.verdict.finite.items() if not finite), key=lambda name: name != 'loss'
    )
    texts = [f'{name} is {self.values[name]}' if name in self.values else f'{name} is not finite' for name in wrong]
    row = f' (batch {self.in_a_row} in a row)' if self.in_a_row > 1 else ''
    return f'step {self.step}: {", ".join(texts)}{row}'

  def examples(self, origin: Callable[[int], str]) -> str:
    """The origins of the examples of the batch on this process."""
    return ', '.join(origin(int(i)) for i in self.batch.ids if i != order.PADDING_ID)


class Alone(NamedTuple):
  """Some rows of a batch without the others."""

  finite: bool
  values: Mapping[str, float]  # metrics


class Search(NamedTuple):
  """How to find the rows at fault of a batch.

  Args:
    evaluate: whether a global batch is finite, and its metrics; the same on every process.
    mesh: the mesh shared by all processes.
    origin: maps an example id to 'file:line'.
  """

  evaluate: Callable[[PreferenceBatch], Alone]
  mesh: jax.sharding.Mesh
  origin: Callable[[int], str]

  def describe(self, batch: batching.Batch) -> str:
    """Evaluates ever smaller parts of a batch, and describes the rows that are not finite on their own.

    Every process must call this with its rows of the batch, and describes its own rows.
    """
    own, count = parallel_mesh.batch_shards_of(self.mesh)
    size = len(batch.ids) // len(own) * count
    places = batching.Share(own, count).rows(size)  # of the rows of this process in the global batch

    def evaluate(part: np.ndarray) -> Alone:
      watchdog.progress()
      keep = packed.only if isinstance(batch.data, PackedBatch) else batching.only
      rows = keep(batch, np.isin(places, part)).data
      return self.evaluate(placement.to_global(self.mesh, rows))

    found = rows_at_fault(size, evaluate)
    if not found:
      return 'No row is at fault on its own: only some of them together are, or the parameters of that step were'
    local = [
      f'{self.origin(int(batch.ids[row]))} ({_describe(batch.data.examples, row, found[place])})'
      for row, place in enumerate(places)
      if place in found
    ]
    return f'At fault on their own: {", ".join(local) or "rows of another process"}'


def rows_at_fault(
  size: int, evaluate: Callable[[np.ndarray], Alone], most: int = MOST_ROWS
) -> dict[int, Mapping[str, float]]:
  """Finds the rows of a batch whose loss or gradient is not finite on their own, by bisection.

  It takes at most 1 + 2 most log2(size) evaluations, rounded up.

  Args:
    size: the number of rows.
    evaluate: evaluates these rows of the batch without the others.
    most: how many rows to find.

  Returns:
    The metrics of each row alone, by row.
  """
  found: dict[int, Mapping[str, float]] = {}
  parts = [np.arange(size)]
  while parts and len(found) < most:
    part = parts.pop()
    alone = evaluate(part)
    if alone.finite:
      continue
    if len(part) == 1:
      found[int(part[0])] = alone.values
    else:
      parts += np.array_split(part, 2)[::-1]
  return found


def _describe(data: PreferenceBatch, row: int, values: Mapping[str, float]) -> str:
  """The metrics of a row that are not finite, the numbers of its example, and its arrays that are not finite."""
  first = [f'{name} {value}' for name, value in values.items() if not math.isfinite(value)]
  numbers = {name: getattr(data, name) for name in ('label', 'weight', 'score', 'behaviour_logp')}
  given = [f'{name} {_short(value[row])}' for name, value in numbers.items() if value is not None]
  broken = [
    f'{name} not finite' for name, value in data.cached.items() if not np.isfinite(value[row].astype(np.float32)).all()
  ]
  return ', '.join([*sorted(first), *given, *broken])


def _short(value: np.ndarray) -> str:
  return f'{value:g}' if np.ndim(value) == 0 else f'[{", ".join(map(_short, value))}]'
