"""Splitting the rows of a batch into parts that are worked on in turn, without moving rows between devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from alignjax.parallel import mesh as mesh_lib


def split(tree: Any, parts: int, mesh: jax.sharding.Mesh | None = None) -> Any:
  """[B, ...] -> [parts, B / parts, ...]: part m takes the rows m, m + parts, m + 2 parts, ...

  Rows are dealt out like cards. A batch that is split over devices in contiguous blocks so gives every device an equal
  share of every part, and no row has to move.

  Raises:
    ValueError: if the number of rows is not a multiple of parts (times the devices that share the batch).
  """
  shards = 1 if mesh is None else mesh_lib.batch_shards(mesh)

  def one(x: Any) -> Any:
    rows = x.shape[0]
    if rows % (parts * shards):
      raise ValueError(
        f'a batch of {rows} prompts cannot be split into {parts} microbatches over {shards} batch shards '
        f'(data x fsdp): it must be a multiple of {parts * shards}'
      )
    x = jnp.moveaxis(jnp.asarray(x).reshape(rows // parts, parts, *x.shape[1:]), 1, 0)
    return x if mesh is None else _constrain(x, mesh, PartitionSpec(None, mesh_lib.BATCH_AXES))

  return jax.tree.map(one, tree)


def join(tree: Any) -> Any:
  """[parts, B / parts, ...] -> [B, ...]: the inverse of `split`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def by_shard(tree: Any, shards: int, mesh: jax.sharding.Mesh | None = None) -> Any:
  """[B, ...] -> [shards, B / shards, ...]: the contiguous block of rows that each batch shard holds."""

  def one(x: Any) -> Any:
    x = jnp.asarray(x).reshape(shards, x.shape[0] // shards, *x.shape[1:])
    return x if mesh is None else _constrain(x, mesh, PartitionSpec(mesh_lib.BATCH_AXES))

  return jax.tree.map(one, tree)


def accumulate(function: Callable[[Any], Any], parts: Any) -> Any:
  """The sum of `function(part)` over the leading axis of `parts`, one part at a time."""
  if jax.tree.leaves(parts)[0].shape[0] == 1:
    return function(jax.tree.map(lambda x: x[0], parts))
  shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
  total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
  return total


def _constrain(x: jax.Array, mesh: jax.sharding.Mesh, spec: PartitionSpec) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
