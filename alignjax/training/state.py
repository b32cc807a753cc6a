"""What a training step carries, and what it only reads."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alignjax.parallel import rules
from alignjax.types import Array, Head, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Carried from step to step: donated to the step, and saved in checkpoints."""

  step: Array  # [] int32, updates done so far
  params: Params
  opt_state: optax.OptState
  key: Array  # a typed PRNG key, for objectives and optimizers that draw
  memory: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # what the objective keeps of earlier batches

  @classmethod
  def create(
    cls, params: Params, tx: optax.GradientTransformation, key: Array, memory: Mapping[str, float] | None = None
  ) -> 'TrainState':
    """The state before the first step; `memory` is the objective's `memory.initial`."""
    memory = {name: jnp.asarray(value, jnp.float32) for name, value in (memory or {}).items()}
    return cls(jnp.zeros((), jnp.int32), params, tx.init(params), key, memory)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
  """Read by the step, never written: neither donated nor saved. Arguments: XLA would embed closures as constants."""

  # Weights of the reference; its head alone where batches have its final hidden states; None where they have all its
  # statistics.
  reference: Params | Head | None = None
  delta: Params | None = None  # reference delta of online merging, theta_SFT - theta_base
  base: Params | None = None  # weights that adapters adapt; they are the reference too, where `reference` is None
  memory: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # the state's, in an evaluation
  step: Array | None = None  # the state's, in an evaluation


def shardings(mesh: jax.sharding.Mesh, state: TrainState) -> TrainState:
  """Where each array of a state lives: moments of the optimizer like their parameters, everything else on every device.

  An array of the optimizer is a moment of a parameter if its path ends with the parameter's and it has its shape. So it
  is found in wrappers too that leave out other parameters, as `optax.masked` does.

  Args:
    mesh: the mesh.
    state: a state of arrays or of shapes.
  """
  of_params = rules.param_shardings(mesh, state.params)
  whole = rules.replicated(mesh)
  paths = jax.tree_util.tree_leaves_with_path(state.params)
  places = {(path, leaf.shape): place for (path, leaf), place in zip(paths, jax.tree.leaves(of_params), strict=True)}

  def place(path: tuple[Any, ...], leaf: Any) -> jax.sharding.NamedSharding:
    endings = ((path[start:], leaf.shape) for start in range(len(path)))
    return next((places[ending] for ending in endings if ending in places), whole)

  opt_state = jax.tree_util.tree_map_with_path(place, state.opt_state)
  memory = dict.fromkeys(state.memory, whole)
  return TrainState(step=whole, params=of_params, opt_state=opt_state, key=whole, memory=memory)
