"""Places the state of a run and its batches on a mesh."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import state as training_state
from alignjax.types import Params


def create_state(
  mesh: jax.sharding.Mesh,
  params: Params,
  tx: optax.GradientTransformation,
  key: jax.Array,
  memory: Mapping[str, float] | None = None,
) -> training_state.TrainState:
  """The state before the first step, with each leaf created in its final sharding.

  Args:
    mesh: the mesh shared by all processes.
    params: parameters, placed by `rules.param_shardings`. They become part of the state and are donated with it.
    tx: the optimizer.
    key: a typed PRNG key.
    memory: the objective's `memory.initial`.
  """
  shapes = abstract_state(mesh, params, tx, key, memory)
  shardings = training_state.shardings(mesh, shapes)
  data, implementation = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)

  def rest(params: Params) -> training_state.TrainState:
    key = jax.random.wrap_key_data(data, impl=implementation)
    return dataclasses.replace(training_state.TrainState.create(params, tx, key, memory), params=None)

  # Compiled, because only a compiled program can create an array that spans several processes.
  made = jax.jit(rest, out_shardings=dataclasses.replace(shardings, params=None))(params)
  return dataclasses.replace(made, params=params)


def abstract_state(
  mesh: jax.sharding.Mesh,
  params: Any,
  tx: optax.GradientTransformation,
  key: jax.Array,
  memory: Mapping[str, float] | None = None,
) -> training_state.TrainState:
  """The shapes and shardings of `create_state`, for restoring a checkpoint without creating a state first.

  Args:
    mesh: the mesh shared by all processes.
    params: arrays or shapes.
    tx: the optimizer.
    key: a typed PRNG key.
    memory: the objective's `memory.initial`.
  """
  shapes = jax.eval_shape(lambda p, k: training_state.TrainState.create(p, tx, k, memory), params, key)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    training_state.shardings(mesh, shapes),
  )


def in_host_memory(shardings: Any) -> Any:
  """The same shardings in host memory, for arrays that a step reads rarely enough to fetch them each time."""
  return jax.tree.map(lambda sharding: sharding.with_memory_kind('pinned_host'), shardings)


def to_global(mesh: jax.sharding.Mesh, rows: Any) -> Any:
  """Builds global arrays, split over data x fsdp, from the rows that each process holds.

  Args:
    mesh: the mesh shared by all processes.
    rows: a tree of arrays. Their rows are those of the batch shards that `parallel.mesh.batch_shards_of` names.

  Raises:
    ValueError: the rows do not divide among these shards.
  """
  sharding = rules.batch_sharding(mesh)
  own, count = parallel_mesh.batch_shards_of(mesh)
  place = {shard: i for i, shard in enumerate(own)}

  def join(x: np.ndarray) -> jax.Array:
    size, rest = divmod(len(x), len(own))
    if rest or not size:
      raise ValueError(
        f'{len(x)} rows do not divide among the {len(own)} batch shards (data x fsdp) of process {jax.process_index()}'
      )

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      start = index[0].indices(size * count)[0]
      first = place[start // size] * size
      return x[first : first + size]

    return jax.make_array_from_callback((size * count, *x.shape[1:]), sharding, shard)

  return jax.tree.map(join, rows)


def to_local(mesh: jax.sharding.Mesh, array: jax.Array) -> np.ndarray:
  """The rows of a global array that this process holds: the inverse of `to_global`.

  Args:
    mesh: the mesh shared by all processes.
    array: [B, ...], split over data x fsdp.
  """
  own, count = parallel_mesh.batch_shards_of(mesh)
  size = len(array) // count
  parts = {shard.index[0].indices(len(array))[0] // size: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[shard]) for shard in own])
