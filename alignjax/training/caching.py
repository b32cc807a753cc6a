"""Builds the reference cache: chooses what an objective needs cached, and runs the reference over the data once.

If the objective's statistics read only the reference, the cache holds log-probabilities, one number per token. If they
compare two distributions over the vocabulary, it holds the reference's final hidden states, D numbers per token; the
step computes logits from them with the reference's head and runs no second trunk.
"""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import os
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from alignjax import stats
from alignjax.data.batches import batching, reference_cache
from alignjax.data.tokens import dataset
from alignjax.models import base as models
from alignjax.models import pieces
from alignjax.training import forward, placement, programs, references, rows, watchdog
from alignjax.types import Array, Params, PreferenceBatch

PROGRESS = 10.0  # seconds between messages


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


def build_cache(
  root: str | os.PathLike[str],
  identity: Mapping[str, Any],
  data: dataset.TokenDataset,
  batches: batching.Batches,
  reference: ReferenceRun,
  announce: Callable[[str], None],
) -> None:
  """Runs the reference over a dataset once and writes its cache. Every process calls it; the first one writes.

  Args:
    root: the folder of caches, visible to all processes.
    identity: identifies the cache; from `reference_cache.identity` with `columns`.
    data: the dataset.
    batches: batches that contain each example once.
    reference: the reference model.
    announce: called with progress messages.
  """
  own = frozenset(stat for stat in reference.needs if stat.reference and not stat.policy)
  kept, layout = identity['columns'].keys(), reference.layout

  def compute(params: Params, batch: PreferenceBatch) -> dict[str, Array]:
    forward.assert_batch(batch)
    hidden = forward.hidden_states(reference.model, params, batch)
    if references.STATES in kept:
      return {references.STATES: hidden.states}
    table = forward.table(own, hidden, hidden, batch, layout)
    return {name: table.values[name] for name in kept}

  program = programs.Programs('reference', compute, announce)
  start = told = time.monotonic()
  with contextlib.ExitStack() as stack:
    stack.enter_context(watchdog.during('evaluation'))
    writer = None
    if jax.process_index() == 0:
      writer = stack.enter_context(reference_cache.writing(root, identity, data))
    for step, batch in enumerate(batches, start=1):
      values = program(reference.params, placement.to_global(layout.mesh, batch.data))
      values = {name: pieces.fetch_all(value) for name, value in values.items()}
      if writer is not None:
        writer.write(batches.plan[step - 1][1], values)
      watchdog.progress()
      now = time.monotonic()
      if now - told > PROGRESS:
        told = now
        left = (now - start) / step * (batches.steps - step)
        announce(f'reference cache: {step} of {batches.steps} batches, {left:.0f} s to go')
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('alignjax.training.caching.build_cache')
