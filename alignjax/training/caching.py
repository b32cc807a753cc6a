"""Builds the reference cache: chooses what an objective needs cached, and runs the reference over the data once.

If the objective's statistics read only the reference, the cache holds log-probabilities, one number per token. If they
compare two distributions over the vocabulary, it holds the reference's final hidden states, D numbers per token; the
step computes logits from them with the reference's head and runs no second trunk.
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import itertools
import json
import time
from typing import NamedTuple

import jax
import numpy as np

from alignjax import stats, storage
from alignjax.data.batches import batching, order, reference_cache
from alignjax.models import base as models
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import forward, placement, processes, programs, references, rows, watchdog
from alignjax.types import Array, Params, PreferenceBatch

PROGRESS = 10.0  # seconds between messages
SHARD = 4096  # examples that a process computes before it commits them
VISIBLE = 5.0  # seconds until a shard must be visible to the processes that have not written it


def columns(needs: Iterable[stats.TokenStat], width: int, dtype: str) -> dict[str, reference_cache.Column]:
  """The columns of a cache for an objective, by name.

  Args:
    needs: the objective's statistics.
    width: D, the width of hidden states.
    dtype: the compute dtype of the model, in which hidden states are stored without loss.

  Raises:
    ValueError: no statistic reads the reference.
  """
  reading = [stat for stat in needs if stat.reference]
  if not reading:
    raise ValueError('no statistic of the objective reads the reference, so there is nothing to cache')
  if any(stat.policy for stat in reading):
    return {references.STATES: reference_cache.Column((width,), dtype)}
  return {stat.name: reference_cache.Column((), 'float32') for stat in reading}


class ReferenceRun(NamedTuple):
  """The reference model and how to run it."""

  model: models.LanguageModel
  params: Params  # placed on the layout's mesh
  needs: frozenset[stats.TokenStat]  # the objective's statistics
  layout: rows.Layout  # the mesh shared by all processes, and how many tokens have logits at once on a device


def complete(
  location: reference_cache.Location,
  batches: batching.Batches,
  load: Callable[[], ReferenceRun],
  announce: Callable[[str], None],
) -> reference_cache.ReferenceCache:
  """Opens a cache, after running the reference over the examples that it lacks. Every process must call it.

  Process 0 decides which shards are sound. It holds the lock of the cache while examples are computed, for which other
  runs wait.

  Args:
    location: the cache, in a folder that all processes see.
    batches: batches that contain each example once.
    load: loads the reference model; called if examples are missing.
    announce: called with progress messages.
  """
  with contextlib.ExitStack() as stack:

    def look(alive: storage.Tick) -> str:
      names = reference_cache.sound(location, alive)
      if reference_cache.ReferenceCache(location, names).missing.any():
        waiting = storage.telling(announce, f'waiting for another run that fills {location.folder}', alive)
        stack.enter_context(storage.locked(location.folder, waiting))
        reference_cache.prepare(location)
        names = reference_cache.sound(location, alive)  # another run may have computed some
      return json.dumps(names)

    names = json.loads(processes.from_first(look))
    cache, count = processes.on_all(lambda: _open(location, names)), len(location.data)
    if cache.missing.any():
      there = count - int(cache.missing.sum())
      rest = f', which has {there} of them' if there else ''
      announce(f'reference cache of {count} examples: writing {cache.folder}{rest}')
      names += compute(location, batches, cache.missing, load(), announce)
      cache = processes.on_all(lambda: _open(location, names))
  announce(f'reference cache: {", ".join(cache.columns)} of {count} examples from {cache.folder}')
  return cache


def _open(location: reference_cache.Location, shards: Sequence[str]) -> reference_cache.ReferenceCache:
  """Opens a cache. Waits a while for shards that other processes have written."""
  deadline = time.monotonic() + VISIBLE
  while True:
    try:
      return reference_cache.ReferenceCache(location, shards)
    except storage.DamageError as error:
      if time.monotonic() > deadline:
        raise reference_cache.CacheError(
          f'{error}, as process {jax.process_index()} sees it. Use a --reference_cache that all processes share'
        ) from None
    time.sleep(storage.POLL)


def compute(
  location: reference_cache.Location,
  batches: batching.Batches,
  missing: np.ndarray,
  reference: ReferenceRun,
  announce: Callable[[str], None],
) -> list[str]:
  """Computes missing examples, and returns the names of the shards that all processes have written.

  Every process must call it. A process writes the examples of the batch shards that it is the first to hold. Examples
  that are not missing are replaced by padding, and batches without a missing example are left out. So what is computed
  for an example does not depend on where an earlier pass was interrupted.

  Args:
    location: the cache.
    batches: batches that contain each example once.
    missing: [n] bool.
    reference: the reference model.
    announce: called with progress messages.
  """
  layout, writers = reference.layout, parallel_mesh.first_holders(reference.layout.mesh)
  program = _program(location.columns, reference, announce)
  # Batches of a block, in which each process writes one shard.
  span = max(1, SHARD * len(set(writers)) // batches.plan.batch_size)
  steps = [step for step in range(batches.steps) if _wanted(batches.plan[step][1], missing).any()]
  names, progress = [], _Progress(len(steps), announce)
  with watchdog.during('evaluation'):
    for _, block in itertools.groupby(steps, lambda step: step // span):
      block = list(block)
      ids = examples_of(batches.plan, block, writers, jax.process_index())
      ids = ids[_wanted(ids, missing)]
      with reference_cache.writing(location, ids) if len(ids) else contextlib.nullcontext() as writer:
        for step in block:
          batch = batches.source[step]
          batch = batching.only(batch, _wanted(batch.ids, missing))
          values = program(reference.params, placement.to_global(layout.mesh, batch.data))
          values = {name: placement.to_local(layout.mesh, value) for name, value in values.items()}
          if writer is not None:
            writer.write(np.where(np.isin(batch.ids, ids), batch.ids, order.PADDING_ID), values)
          progress.batch()
      if len(ids):
        names.append(reference_cache.shard_name(ids))
  return [name for text in processes.gather_text(json.dumps(names)) for name in json.loads(text)]


def examples_of(plan: order.Plan, steps: Sequence[int], writers: Sequence[int], process: int) -> np.ndarray:
  """The examples that a process writes in these batches, ascending.

  Args:
    plan: the batches.
    steps: some of its steps.
    writers: the process that writes each batch shard.
    process: its index.
  """
  written = np.array(writers) == process
  ids = np.concatenate([plan[step][1].reshape(len(writers), -1)[written].ravel() for step in steps])
  return np.sort(ids[ids != order.PADDING_ID])


class _Progress:
  """Announces the progress of a pass every few seconds."""

  def __init__(self, batches: int, announce: Callable[[str], None]):
    self._batches, self._announce, self._done = batches, announce, 0
    self._start = self._told = time.monotonic()

  def batch(self) -> None:
    """Counts a batch."""
    watchdog.progress()
    self._done += 1
    now = time.monotonic()
    if now - self._told > PROGRESS:
      self._told = now
      left = (now - self._start) / self._done * (self._batches - self._done)
      self._announce(f'reference cache: {self._done} of {self._batches} batches, {left:.0f} s to go')


def _wanted(ids: np.ndarray, missing: np.ndarray) -> np.ndarray:
  """Which of these ids are missing examples."""
  return (ids != order.PADDING_ID) & missing[ids]


def _program(
  columns: Iterable[str], reference: ReferenceRun, announce: Callable[[str], None]
) -> Callable[[Params, PreferenceBatch], dict[str, Array]]:
  """The compiled function from a batch to its columns, split over prompts."""
  own = frozenset(stat for stat in reference.needs if stat.reference and not stat.policy)

  def compute(params: Params, batch: PreferenceBatch) -> dict[str, Array]:
    forward.assert_batch(batch)
    hidden = forward.hidden_states(reference.model, params, batch)
    if references.STATES in columns:
      return {references.STATES: hidden.states}
    table = forward.table(own, hidden, hidden, batch, reference.layout)
    return {name: table.values[name] for name in columns}

  sharding = rules.batch_sharding(reference.layout.mesh)
  return programs.Programs('reference', compute, announce, out_shardings=sharding)
