"""The state that a training step carries, and the inputs that it only reads."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alignjax import stats
from alignjax.parallel import rules
from alignjax.training import references
from alignjax.training.policy import Policy
from alignjax.types import Array, Params, PreferenceBatch, WeightedSum


class Skips(NamedTuple):
  """Batches that changed nothing, because their loss or gradient was not finite."""

  total: Array  # [] int32, since the run began
  in_a_row: Array  # [] int32, 0 after an update


def _no_skips() -> Skips:
  return Skips(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Carried from step to step: donated to the step and saved in checkpoints."""

  step: Array  # [] int32, batches taken so far: updates and skipped batches
  params: Params
  opt_state: optax.OptState
  key: Array  # a typed PRNG key, for objectives and optimizers that draw
  memory: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # `Objective.memory` after the last batch
  skips: Skips = dataclasses.field(default_factory=_no_skips)

  @property
  def updates(self) -> Array:
    """The number of updates done, [] int32: what schedules count."""
    return self.step - self.skips.total

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
  """Read-only inputs of a step: neither donated nor saved.

  They are an argument of the step and not a closure, because XLA embeds closures as constants.
  """

  reference: references.Reference = dataclasses.field(default_factory=references.NotLoaded)
  delta: Params | None = None  # reference delta of online merging, theta_SFT - theta_base
  base: Params | None = None  # the parameters that the policy's adapters adapt
  memory: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # the objective's, from `TrainState.memory`
  step: Array | None = None  # updates done so far, `TrainState.updates`
  pool: Mapping[str, WeightedSum] = dataclasses.field(
    default_factory=dict
  )  # in an evaluation: sums of `Objective.pool`

  def reference_states(
    self, policy: Policy, needs: Iterable[stats.TokenStat], batch: PreferenceBatch
  ) -> stats.HiddenStates | None:
    """The reference's final hidden states, without gradient, if a statistic in `needs` requires them.

    Args:
      policy: the policy; the reference shares its model.
      needs: the statistics; those in `batch.cached` need no reference.
      batch: prompts with responses, [B, N, R].

    Returns:
      Hidden states and head, or None if no statistic needs them or no reference is loaded.
    """
    if not stats.missing_reference(needs, batch.cached):
      return None
    return jax.lax.stop_gradient(self.reference.states(policy, self.base, batch))


def shardings(mesh: jax.sharding.Mesh, state: TrainState) -> TrainState:
  """The sharding of each array of a state: moments are sharded like their parameters, everything else is replicated.

  An array of the optimizer is a moment of a parameter if its path ends with the parameter's path and the shapes match.
  This also finds moments inside wrappers that leave out some parameters, such as `optax.masked`.

  Args:
    mesh: the mesh.
    state: a state of arrays or shapes.
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
  skips = Skips(whole, whole)
  return TrainState(step=whole, params=of_params, opt_state=opt_state, key=whole, memory=memory, skips=skips)
