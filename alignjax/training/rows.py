"""Splits the rows of a batch into parts that are processed in sequence, without moving rows between devices."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from alignjax.parallel import mesh as parallel_mesh


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the work on a batch is divided: over devices, into microbatches, and into chunks of tokens.

  Args:
    chunk: response tokens whose logits exist at once on a device.
    microbatches: number of parts of the batch that are processed in sequence.
    mesh: the mesh over whose (data, fsdp) axes the prompts are split; None for one device.

  Raises:
    ValueError: chunk or microbatches is below 1.
  """

  chunk: int = 1024
  microbatches: int = 1
  mesh: jax.sharding.Mesh | None = None

  def __post_init__(self):
    for name in ('chunk', 'microbatches'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')

  @property
  def shards(self) -> int:
    """The number of devices that share the prompts of a batch."""
    return 1 if self.mesh is None else parallel_mesh.batch_shards(self.mesh)

  def together(self, tokens: int, vocabulary: int) -> int:
    """The number of shards that compute the logits of all their tokens together, each for a part of the vocabulary.

    The devices of an fsdp axis can exchange hidden states, tokens x D numbers for each model and their gradient, or
    heads, V x D numbers for each model and their gradient. They exchange whichever is smaller. With heads, each
    device computes the logits of its own tokens, and holds the whole head and its gradient.

    Args:
      tokens: response tokens of a microbatch, over all devices.
      vocabulary: V.
    """
    if self.mesh is None:
      return 1
    replicas, fsdp, tensor = (self.mesh.shape[axis] for axis in parallel_mesh.AXES)
    fits = vocabulary % (fsdp * tensor) == 0
    return fsdp if fits and tokens // replicas < vocabulary else 1


def split(tree: Any, layout: Layout) -> Any:
  """[B, ...] -> [microbatches, B / microbatches, ...]: part m takes the rows m, m + M, m + 2M, ... of M parts.

  If the batch is sharded in contiguous blocks, every device holds an equal share of every part, and no row moves.

  Raises:
    ValueError: the number of rows is not a multiple of microbatches times batch shards.
  """
  parts, shards = layout.microbatches, layout.shards

  def one(x: Any) -> Any:
    rows = x.shape[0]
    if rows % (parts * shards):
      raise ValueError(
        f'a batch of {rows} prompts cannot be split into {parts} microbatches over {shards} batch shards '
        f'(data x fsdp): it must be a multiple of {parts * shards}'
      )
    x = jnp.moveaxis(jnp.asarray(x).reshape(rows // parts, parts, *x.shape[1:]), 1, 0)
    return _constrain(x, layout.mesh, PartitionSpec(None, parallel_mesh.BATCH_AXES))

  return jax.tree.map(one, tree)


def join(tree: Any) -> Any:
  """[parts, B / parts, ...] -> [B, ...]: the inverse of `split`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def by_shard(tree: Any, layout: Layout) -> Any:
  """[B, ...] -> [shards, B / shards, ...]: the contiguous block of rows that each batch shard holds.

  Raises:
    ValueError: the number of rows is not a multiple of the shards.
  """
  shards = layout.shards

  def one(x: Any) -> Any:
    if x.shape[0] % shards:
      raise ValueError(f'a batch of {x.shape[0]} prompts cannot be split over {shards} batch shards (data x fsdp)')
    x = jnp.asarray(x).reshape(shards, x.shape[0] // shards, *x.shape[1:])
    return _constrain(x, layout.mesh, PartitionSpec(parallel_mesh.BATCH_AXES))

  return jax.tree.map(one, tree)


def accumulate(function: Callable[[Any], Any], parts: Any) -> Any:
  """The sum of `function(part)` over the leading axis of `parts`, one part at a time."""
  if jax.tree.leaves(parts)[0].shape[0] == 1:
    return function(jax.tree.map(lambda x: x[0], parts))
  shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
  total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
  return total


def map_parts(function: Callable[[Any], Any], tree: Any, layout: Layout) -> Any:
  """Applies `function` to the rows of [B, ...], one microbatch at a time, and rematerialises it in the backward pass.

  Args:
    function: maps rows to arrays with the same leading axis.
    tree: arrays [B, ...].
    layout: the number of microbatches.
  """
  parts = split(tree, layout)
  # Inside a scan the compiler does not merge the two forward passes, so no barrier is needed.
  return join(jax.lax.map(jax.checkpoint(function, prevent_cse=False), parts))


def place(tree: Any, mesh: jax.sharding.Mesh | None, *axes: str | tuple[str, ...] | None) -> Any:
  """Constrains the leading dimensions of all arrays to these axes of the mesh, and the others to none."""
  return jax.tree.map(lambda x: _constrain(x, mesh, PartitionSpec(*axes)), tree)


def _constrain(x: jax.Array, mesh: jax.sharding.Mesh | None, spec: PartitionSpec) -> jax.Array:
  return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
