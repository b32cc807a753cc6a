"""The gradient of an objective, without ever holding logits for a whole batch.

The loss sees the model only through a small table of token statistics. That gives two ways to its gradient, both plain
`jax.value_and_grad`:

  rowwise   The loss of a prompt depends on that prompt alone. The gradient of trunk -> `fused_head.fused_loss`, one
            microbatch at a time: three vocabulary-sized products instead of four.
  coupled   The loss of a prompt depends on others too. The gradient of trunk -> table -> objective for a whole batch.
            With several microbatches, the backward pass computes the table of each again. The price is a second forward
            pass, the gain a gradient that does not depend on the number of microbatches.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import jax

from alignjax import objectives, stats
from alignjax.training import forward, fused_head, rows
from alignjax.training.policy import Policy
from alignjax.training.state import Frozen
from alignjax.types import Array, Params, PreferenceBatch, Term


class Gradient(NamedTuple):
  """What one batch gives an update."""

  total: Params  # the gradient of sum_b weight_b loss_b, shaped like the parameters
  sums: forward.Sums  # loss and metrics
  memory: Mapping[str, Array]  # the objective's next memory


def rowwise(
  policy: Policy,
  objective: objectives.Objective,
  params: Params,
  frozen: Frozen,
  batch: PreferenceBatch,
  layout: rows.Layout,
) -> Gradient:
  """Gradient of sum_b weight_b loss_b for an objective that does not couple rows.

  Args:
    policy: the model and what of it is trained.
    objective: the loss.
    params: the trained parameters.
    frozen: reference, base, and the number of updates done.
    batch: prompts with responses, [B, N, R].
    layout: how the batch is split.
  """
  model = policy.bind(frozen.base)

  def apply(table: stats.StatTable, part: PreferenceBatch) -> Term:
    return objective.apply(dataclasses.replace(table, step=frozen.step), part)

  now = dataclasses.replace(objective, apply=apply)

  def one(part: PreferenceBatch) -> tuple[Params, forward.Sums]:
    def loss(params: Params) -> tuple[Array, forward.Sums]:
      hidden = forward.hidden_states(model, params, part, objective.needs)
      reference = frozen.reference_states(policy, objective.needs, part)
      return fused_head.fused_loss(now, hidden, reference, part, chunk=layout.chunk, mesh=layout.mesh)

    (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return gradient, sums

  total, sums = rows.accumulate(one, rows.split(batch, layout))
  return Gradient(total, sums, frozen.memory)


def coupled(
  policy: Policy,
  objective: objectives.Objective,
  params: Params,
  frozen: Frozen,
  batch: PreferenceBatch,
  layout: rows.Layout,
) -> Gradient:
  """Gradient of sum_b weight_b loss_b for an objective in which rows see each other.

  Args:
    policy, objective, params, batch, layout: as for `rowwise`.
    frozen: reference, base, the number of updates done, and the objective's memory before this batch.
  """
  model = policy.bind(frozen.base)

  def loss(params: Params) -> tuple[Array, tuple[forward.Sums, Mapping[str, Array]]]:
    def one(part: PreferenceBatch) -> stats.StatTable:
      reference = frozen.reference_states(policy, objective.needs, part)
      hidden = forward.hidden_states(model, params, part, objective.needs)
      return forward.table(objective.needs, hidden, reference, part, layout)

    table = forward.in_parts(one, batch, layout)
    table = dataclasses.replace(table, memory=frozen.memory, step=frozen.step)
    memory = jax.lax.stop_gradient(dict(objective.memory.update(table, batch.examples)))
    sums = forward.weighted_sums(objective, dataclasses.replace(table, memory=memory, before=frozen.memory), batch)
    return sums['loss'].total, (sums, memory)

  (_, (sums, memory)), total = jax.value_and_grad(loss, has_aux=True)(params)
  return Gradient(total, sums, memory)
