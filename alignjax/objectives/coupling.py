"""Tests on random batches whether an objective couples prompts, to find a wrong declaration."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.objectives import base, declarations, examples
from alignjax.types import Array, PreferenceBatch

_TRIALS = 3  # random batches; with a maximum or an order, one batch may hide the coupling


def couples(objective: base.Objective, responses: int | None = None) -> bool:
  """Tests whether the loss or the gradient of a prompt changes when other prompts of the batch change.

  Args:
    objective: the objective. Its declaration is ignored.
    responses: N of the batches; by default the smallest allowed N, or 2 if any N is allowed.
  """
  if responses is None:
    responses = min(declarations.accepted(objective.responses) or {2})

  @jax.jit
  def first_prompt(policy: Array, reference: Array, batch: PreferenceBatch) -> tuple[Array, Mapping[str, Array]]:
    """The loss of the first prompt, and the gradient of the batch's loss with respect to its statistics."""
    table = examples.table(objective.needs, policy, reference, batch)

    def total(values: Mapping[str, Array]) -> tuple[Array, Array]:
      loss = objective.apply(dataclasses.replace(table, values=values), batch).loss
      return jnp.sum(batch.weight * loss), loss

    gradient, loss = jax.grad(total, has_aux=True)(dict(table.values))
    return loss[0], {name: value[0] for name, value in gradient.items()}

  def changes(seed: int) -> bool:
    first, other = (_example(objective, responses, seed + shift) for shift in (0, 100))
    swapped = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), first, other)
    found, expected = first_prompt(*swapped), first_prompt(*first)
    close = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True), found, expected)
    return not all(jax.tree.leaves(close))

  return any(changes(seed) for seed in range(_TRIALS))


def _example(objective: base.Objective, responses: int, seed: int) -> tuple[Array, Array, PreferenceBatch]:
  """Logits of the policy, logits of the reference, and a batch."""
  batch = examples.batch(seed, responses=responses, needs=objective.needs)
  return examples.logits(seed + 1, batch), examples.logits(seed + 2, batch), batch
