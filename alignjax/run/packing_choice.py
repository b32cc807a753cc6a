"""Decides whether the batches of a run are packed rows, and refuses what packing does not support."""

from collections.abc import Callable

from alignjax import objectives, stats
from alignjax.data.batches import batching, packed, shapes
from alignjax.data.tokens import dataset
from alignjax.run import settings

WORTH = 0.9  # packed rows must compute at most this share of the positions that buckets compute


def check(config: settings.Config, objective: objectives.Objective) -> None:
  """Checks that the settings of a run allow packed rows if it asks for them.

  Args:
    config: the settings.
    objective: the loss.

  Raises:
    ValueError: they do not.
  """
  if config.packing == 'off':
    return
  if config.buckets and config.packing == 'on':
    raise ValueError(
      f'config.buckets = {list(config.buckets)} are batch shapes, but with packing="on" batches are packed rows: '
      'leave out one of the two'
    )
  if config.packing == 'on' and (reason := _obstacle(config, objective)):
    raise ValueError(f'config.packing = "on" does not support {reason}: use --packing=off')


def rows(config: settings.Config, objective: objectives.Objective, shards: int) -> packed.Rows | None:
  """What the packed rows of a run must be; None: its batches are not packed.

  Args:
    config: the settings.
    objective: the loss.
    shards: batch shards.
  """
  if config.packing == 'off' or config.buckets or _obstacle(config, objective):
    return None
  if config.packing == 'auto' and any(
    isinstance(stat, stats.PathStat) and _is_costly(stat) for stat in objective.needs
  ):
    return None
  return packed.Rows(shards * config.microbatches, stats.reads_final(objective.needs))


def choose(
  data: dataset.TokenDataset,
  spec: batching.BatchSpec,
  rows: packed.Rows | None,
  packing: str,
  announce: Callable[[str], None],
) -> packed.Rows | None:
  """Compares the positions that an epoch computes in buckets and in packed rows, and announces both.

  Args:
    data: the examples.
    spec: the batches.
    rows: what packed rows must be; None for no packed rows.
    packing: the setting, 'auto' or 'on'.
    announce: called with the result.

  Returns:
    `rows`, or None for buckets.
  """
  if rows is None:
    return None
  plan = packed.plan(data, spec, rows)
  buckets = shapes.choose_buckets(data, batch_size=spec.batch_size, max_positions=spec.max_positions)
  others = shapes.epoch_tokens(data, buckets, batch_size=spec.batch_size)
  packs = packing == 'on' or plan.positions < WORTH * others
  announce(
    f'packing    {plan.positions / plan.useful:.3f} positions for each that holds a token, '
    f'{others / plan.useful:.3f} in {len(buckets)} buckets: {"packed rows" if packs else "buckets"}'
  )
  return rows if packs else None


def _is_costly(stat: stats.PathStat) -> bool:
  """Whether a statistic runs backwards over distributions, for which the head takes the responses of a row apart."""
  return not stat.recursion.tokens


def _obstacle(config: settings.Config, objective: objectives.Objective) -> str:
  """What packed rows do not support; '' for nothing."""
  if config.prompts:
    return 'responses that the policy draws (config.prompts)'
  if config.attention != 'xla':
    return f'config.attention = {config.attention!r}'
  if objective.ordered:
    return f'{objective.name}, which depends on the order of the prompts in a batch'
  return ''
