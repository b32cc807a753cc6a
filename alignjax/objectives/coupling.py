"""Whether an objective couples the rows of a batch, tried on random batches, to find a wrong declaration."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import stats
from alignjax.objectives import base, declarations, examples
from alignjax.types import Array, PreferenceBatch

_TRIALS = 3  # random batches; an objective may see other rows only through a maximum or an order


def couples(objective: base.Objective, responses: int | None = None) -> bool:
  """Whether the loss or the gradient of a prompt changes when the other prompts of its batch change.

  Args:
    objective: any; its declaration is ignored.
    responses: N of the batches; by default the smallest that the objective is defined for, 2 if any is.
  """
  if responses is None:
    responses = min(declarations.accepted(objective.responses) or {2})
  return any(_first_prompt_changes(objective, responses, seed) for seed in range(_TRIALS))


def _first_prompt_changes(objective: base.Objective, responses: int, seed: int) -> bool:
  first, other = (_example(objective, responses, seed + shift) for shift in (0, 100))
  swapped = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), first, other)
  found, expected = (_of_first_prompt(objective, *example) for example in (swapped, first))
  close = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True), found, expected)
  return not all(jax.tree.leaves(close))


def _example(objective: base.Objective, responses: int, seed: int) -> tuple[stats.StatTable, PreferenceBatch]:
  batch = examples.batch(seed, responses=responses, needs=objective.needs)
  policy, reference = (examples.logits(seed + i, batch) for i in (1, 2))
  return stats.from_logits(objective.needs, policy, reference, batch), batch


def _of_first_prompt(
  objective: base.Objective, table: stats.StatTable, batch: PreferenceBatch
) -> tuple[Array, Mapping[str, Array]]:
  """The loss of the first prompt, and the gradient of the loss of the batch with respect to its statistics."""

  def total(values: Mapping[str, Array]) -> tuple[Array, Array]:
    loss = objective.apply(dataclasses.replace(table, values=values), batch).loss
    return jnp.sum(batch.weight * loss), loss

  gradient, loss = jax.grad(total, has_aux=True)(dict(table.values))
  return loss[0], {name: value[0] for name, value in gradient.items()}
