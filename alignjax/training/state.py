"""What a training step carries, and what it only reads."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from alignjax.types import Array, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Carried from step to step: donated to the step, and saved in checkpoints."""

  step: Array  # [] int32, updates done so far
  params: Params
  opt_state: optax.OptState
  key: Array  # a typed PRNG key, for objectives and optimizers that draw

  @classmethod
  def create(cls, params: Params, tx: optax.GradientTransformation, key: Array) -> 'TrainState':
    return cls(jnp.zeros((), jnp.int32), params, tx.init(params), key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
  """Read by the step, never written: neither donated nor saved. Arguments, not closures, so that XLA does not embed them."""

  reference: Params | None = None  # weights of the reference model; None where every reference statistic is cached
  delta: Params | None = None  # reference delta of online merging, theta_SFT - theta_base
