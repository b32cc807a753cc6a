"""One update on two batches: an objective on given responses, and another one on responses of the policy.

The gradient is the sum of both, each the mean over the weights of its own batch. So the two batches may have any sizes.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alignjax import objectives
from alignjax.data.batches import batching
from alignjax.training import forward, gradients, rollouts, rows, source
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.training.state import Frozen, TrainState
from alignjax.types import Params, PreferenceBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JointBatch(PreferenceBatch):
  """A batch of given responses, with one of responses of the policy. The other fields are those of the former."""

  rollouts: PreferenceBatch | None = None


class Objectives(NamedTuple):
  """The objectives of the two batches."""

  given: objectives.Objective
  rollouts: objectives.Objective


class JointSource:
  """Pairs the batches of two sources. A `source.Source`; its position has those of both.

  Args:
    given: a source of given responses.
    drawn: a source of responses of the policy.
  """

  on_policy = False

  def __init__(self, given: source.Source, drawn: rollouts.RolloutSource):
    self.given, self.drawn = given, drawn

  def next(self, state: TrainState) -> batching.Batch:
    """The next batch of both sources; example ids are those of the given responses."""
    given, drawn = self.given.next(state), self.drawn.next(state)
    return batching.Batch(JointBatch(**_fields(given.data), rollouts=drawn.data), given.ids, drawn.metrics)

  def get_state(self) -> Any:
    return {'given': self.given.get_state(), 'drawn': self.drawn.get_state()}

  def set_state(self, state: Any) -> None:
    self.given.set_state(state['given'])
    self.drawn.set_state(state['drawn'])


def build_step(
  policy: Policy, both: Objectives, tx: optax.GradientTransformation, layout: rows.Layout
) -> Callable[[TrainState, Frozen, JointBatch], tuple[TrainState, training_step.Metrics]]:
  """Builds one update: the sum of the gradients of two weighted means, then the optimizer.

  Args:
    policy: the model and its trained parameters.
    both: the objectives.
    tx: the optimizer.
    layout: how both batches are split.

  Returns:
    A pure function as that of `step.build_train_step`. `loss` is the sum of both; metrics of the second batch start
    with `rollouts/`. A batch without rollouts, as in the search for rows that are not finite, has the first part alone.

  Raises:
    ValueError: the objective of the rollouts keeps a memory, of which there is one.
  """
  if both.rollouts.memory.initial:
    raise ValueError(
      f'{both.rollouts.name} keeps a memory from batch to batch, which only the objective of the data can do'
    )
  update = training_step.build_update(tx)

  def mean(
    objective: objectives.Objective, state: TrainState, frozen: Frozen, batch: PreferenceBatch
  ) -> tuple[gradients.Gradient, Params]:
    forward.assert_batch(batch)
    differentiate = gradients.coupled if objective.couples_rows else gradients.rowwise
    found = differentiate(policy, objective, state.params, frozen, batch, layout)
    weight = found.sums['loss'].weight
    return found, jax.tree.map(lambda g: g / jnp.where(weight > 0, weight, 1.0), found.total)

  def step(state: TrainState, frozen: Frozen, batch: PreferenceBatch) -> tuple[TrainState, training_step.Metrics]:
    drawn = getattr(batch, 'rollouts', None)
    frozen = dataclasses.replace(frozen, memory=state.memory, step=state.updates)
    found, gradient = mean(both.given, state, frozen, PreferenceBatch(**_fields(batch)))
    metrics = {name: value.mean() for name, value in found.sums.items()}
    metrics |= {'prompts': found.sums['loss'].weight, **both.given.summary(metrics)}
    if drawn is not None:
      other, of_drawn = mean(both.rollouts, state, dataclasses.replace(frozen, memory={}), drawn)
      gradient = jax.tree.map(jnp.add, gradient, of_drawn)
      own = {name: value.mean() for name, value in other.sums.items()}
      metrics |= {f'rollouts/{name}': value for name, value in {**own, **both.rollouts.summary(own)}.items()}
      metrics['loss'] += own['loss']
    return update(state, frozen, gradient, found.memory, metrics)

  return step


def _fields(batch: PreferenceBatch) -> dict[str, Any]:
  """The fields of a batch of given responses."""
  return {item.name: getattr(batch, item.name) for item in dataclasses.fields(PreferenceBatch)}
