"""Places the state of a run and its batches on a mesh."""

from collections.abc import Mapping, Sequence
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


def row_group(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """(index, count): this process feeds part `index` of `count` equal parts of a batch's rows.

  Processes whose devices share rows, because the tensor axis spans them, have the same index.

  Raises:
    ValueError: the rows of this process are not one contiguous part.
  """
  shards = parallel_mesh.batch_shards(mesh)
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
