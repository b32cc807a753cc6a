"""The reference: the ways in which a training step gets the reference model's final hidden states.

  Live           parameters of its own, in the dtype of their file: every step runs a second trunk
  Base           the frozen base under the policy's adapters: no second copy of the weights
  CachedStates   its head, and final hidden states in the batch: no second trunk
  NotLoaded      no reference model: the objective reads none, or the batch holds all of its statistics

Each is a pytree that `Frozen.reference` carries into the step, with one method: `states(policy, base, batch)`.
"""

import dataclasses
from typing import Protocol

import jax

from alignjax import stats
from alignjax.training import forward
from alignjax.training import policy as policies
from alignjax.types import Head, Params, PreferenceBatch

STATES = 'reference_states'  # in `PreferenceBatch.cached`: final hidden states, [B, N, R, D]


class Reference(Protocol):
  """The interface of a reference."""

  def states(self, policy: policies.Policy, base: Params | None, batch: PreferenceBatch) -> stats.HiddenStates | None:
    """The reference's final hidden states and head for a batch; None if no reference model is loaded.

    Args:
      policy: the policy; the reference shares its model.
      base: the parameters under the policy's adapters, `Frozen.base`.
      batch: prompts with responses, [B, N, R].
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Live:
  """A reference with parameters of its own."""

  params: Params

  def states(self, policy: policies.Policy, base: Params | None, batch: PreferenceBatch) -> stats.HiddenStates:
    """Runs the reference's trunk."""
    del base
    return forward.hidden_states(policy.model, self.params, batch)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Base:
  """The base model under the policy's adapters is the reference."""

  def states(self, policy: policies.Policy, base: Params | None, batch: PreferenceBatch) -> stats.HiddenStates:
    """Runs the trunk of the base, without adapters.

    Raises:
      ValueError: if there is no base.
    """
    if base is None:
      raise ValueError('the reference is the base of the adapters, but Frozen.base is None: pass its parameters')
    return forward.hidden_states(policy.model, base, batch)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachedStates:
  """The reference's head alone; each batch holds its final hidden states."""

  head: Head

  def states(self, policy: policies.Policy, base: Params | None, batch: PreferenceBatch) -> stats.HiddenStates:
    """Takes the hidden states from the batch.

    Raises:
      ValueError: if the batch does not hold them.
    """
    del policy, base
    if STATES not in batch.cached:
      raise ValueError(
        f'the reference is a head alone, but batch.cached has no {STATES!r}: cache the final hidden states, '
        'or pass references.Live(params)'
      )
    return stats.HiddenStates(batch.cached[STATES], self.head)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NotLoaded:
  """No reference model: the objective reads none, or each batch holds all of its statistics."""

  def states(self, policy: policies.Policy, base: Params | None, batch: PreferenceBatch) -> None:
    """Returns None; computing a statistic of the reference then fails with an error that names it."""
    del policy, base, batch
