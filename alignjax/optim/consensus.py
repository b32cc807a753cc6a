"""Combines two reserved updates into one, with an optional election, and its metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from alignjax.optim import counting
from alignjax.types import Array

ELECTIONS = ('none', 'weighted', 'raw')
SUMS = ('reserved', 'vetoed', 'update', 'merged', 'delta', 'merged_update', 'merged_delta')
METRICS = ('update_norm', 'merged_norm', 'kept', 'vetoed', 'cosine_with_update', 'cosine_with_delta')


class Summands(NamedTuple):
  """The terms of (1 - alpha) update (+) alpha delta, 0 where an entry is not reserved or lost its election."""

  part: Array  # the term of the update
  drift: Array  # the term of tau
  reserved: Array  # bool: nonzero entries of the update that the reservation kept
  dropped: Array | None  # bool: reserved entries that lost the election; None without an election


def elected(update: Array, delta: Array, alpha: Array | float, elect: str) -> Summands:
  """Elects between a reserved update and a reserved tau."""
  part, drift = (1.0 - alpha) * update, alpha * delta
  if elect == 'none':
    return Summands(part, drift, update != 0, None)
  if elect == 'raw':
    positive = update + delta >= 0
    drop_part, drop_drift = positive != (update > 0), positive != (delta > 0)
  else:
    opposed = ((part > 0) & (drift < 0)) | ((part < 0) & (drift > 0))
    drop_part = opposed & (jnp.abs(part) <= jnp.abs(drift))
    drop_drift = opposed & (jnp.abs(drift) <= jnp.abs(part))
  kept = update != 0
  return Summands(jnp.where(drop_part, 0.0, part), jnp.where(drop_drift, 0.0, drift), kept, kept & drop_part)


def terms(update: Array, summands: Summands, delta: Array) -> counting.Terms:
  """The conditions and values that the metrics sum over a tensor, in the order of `SUMS`."""
  merged = summands.part + summands.drift
  dropped = jnp.zeros_like(summands.reserved) if summands.dropped is None else summands.dropped
  products = [update * update, merged * merged, delta * delta, merged * update, merged * delta]
  return [summands.reserved, dropped], products


def named(size: int, sums: Sequence[Array]) -> dict[str, Array]:
  """Names the sums of `terms` over a tensor and adds the tensor's size, for `metrics`."""
  return {'size': jnp.float32(size)} | {name: x.astype(jnp.float32) for name, x in zip(SUMS, sums, strict=True)}


def metrics(of_tensors: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
  """Computes `METRICS` over the whole tree."""
  total = {name: sum(one[name] for one in of_tensors) for name in of_tensors[0]}
  norm = {name: jnp.sqrt(total[name]) for name in ('update', 'merged', 'delta')}

  def ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)

  return {
    'update_norm': norm['update'],
    'merged_norm': norm['merged'],
    'kept': ratio(total['reserved'], total['size']),
    'vetoed': ratio(total['vetoed'], total['reserved']),
    'cosine_with_update': ratio(total['merged_update'], norm['merged'] * norm['update']),
    'cosine_with_delta': ratio(total['merged_delta'], norm['merged'] * norm['delta']),
  }
