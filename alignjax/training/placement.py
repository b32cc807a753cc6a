"""Where the state of a run and its batches live on a mesh."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import state as state_lib
from alignjax.types import Params


def create_state(
  mesh: jax.sharding.Mesh,
  params: Params,
  tx: optax.GradientTransformation,
  key: jax.Array,
  memory: Mapping[str, float] | None = None,
) -> state_lib.TrainState:
  """The state before the first step, each leaf made where it will live.

  Args:
    params: placed by `rules.param_shardings`. They become part of the state, and are donated with it.
    key: a typed PRNG key.
    memory: the objective's `memory.initial`.
  """
  shapes = abstract_state(mesh, params, tx, key, memory)
  shardings = state_lib.shardings(mesh, shapes)
  data, implementation = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)

  def rest(params: Params) -> state_lib.TrainState:
    key = jax.random.wrap_key_data(data, impl=implementation)
    return dataclasses.replace(state_lib.TrainState.create(params, tx, key, memory), params=None)

  # Compiled, for only so can several processes make one array.
  made = jax.jit(rest, out_shardings=dataclasses.replace(shardings, params=None))(params)
  return dataclasses.replace(made, params=params)


def abstract_state(
  mesh: jax.sharding.Mesh,
  params: Any,
  tx: optax.GradientTransformation,
  key: jax.Array,
  memory: Mapping[str, float] | None = None,
) -> state_lib.TrainState:
  """The shapes and shardings of `create_state`, to restore a checkpoint into without making a state first.

  Args:
    params: arrays or shapes.
  """
  shapes = jax.eval_shape(lambda p, k: state_lib.TrainState.create(p, tx, k, memory), params, key)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    state_lib.shardings(mesh, shapes),
  )


def in_host_memory(shardings: Any) -> Any:
  """The same shardings, in the memory of each device's host: for what a step reads so seldom that it can be fetched."""
  return jax.tree.map(lambda sharding: sharding.with_memory_kind('pinned_host'), shardings)


def row_group(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """(index, count): which of how many equal parts of a batch's rows this process feeds.

  Processes whose devices share rows, because the tensor axis spans them, have the same index.

  Raises:
    ValueError: if the rows of this process are not one contiguous part.
  """
  shards = mesh_lib.batch_shards(mesh)
  indices = rules.batch_sharding(mesh).addressable_devices_indices_map((shards,)).values()
  return group_of(sorted({index[0].indices(shards)[0] for index in indices}), shards)


def group_of(own: Sequence[int], shards: int) -> tuple[int, int]:
  """`row_group` for a process that holds the shards `own` of a batch."""
  size = len(own)
  if list(own) != list(range(own[0], own[0] + size)) or own[0] % size or shards % size:
    raise ValueError(
      f'process {jax.process_index()} would feed the batch shards {list(own)} of {shards}, which are not one '
      'contiguous part: choose mesh axes such that data x fsdp goes from process to process'
    )
  return own[0] // size, shards // size


def to_global(mesh: jax.sharding.Mesh, rows: Any) -> Any:
  """Joins the rows that each process holds into global arrays, split over data x fsdp."""
  sharding = rules.batch_sharding(mesh)
  _, count = row_group(mesh)

  def join(x: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * count, *x.shape[1:]))

  return jax.tree.map(join, rows)
