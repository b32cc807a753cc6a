"""The loss as a function of hidden states, with the gradient computed in the forward pass: one vocabulary pass.

The loss sees the head only through a small table of statistics, and without coupled rows the loss of a prompt depends
on that prompt alone. So loss, d hidden and d head of a few prompts can be taken together while their logits exist.
That is three vocabulary-sized products (logits, d hidden, d head). Rematerialised logits would need four, and stored
logits would need memory for the whole batch.

`fused_loss` is an ordinary function for `jax.grad`:

  def loss(params):
    hidden = forward.hidden_states(model, params, batch)
    total, sums = fused_head.fused_loss(objective, hidden, reference, batch, chunk=1024)
    return total / sums['loss'].weight, sums

  (mean, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from alignjax import objectives, stats
from alignjax.parallel import kernels
from alignjax.training import forward, rows
from alignjax.types import Array, PreferenceBatch

Function = Callable[[Any], tuple[Any, Any]]


def fused_loss(
  objective: objectives.Objective,
  policy: stats.HiddenStates,
  reference: stats.HiddenStates | None,
  batch: PreferenceBatch,
  *,
  chunk: int = 1024,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Array, forward.Sums]:
  """The loss of a batch, sum_b weight_b loss_b, and the sums of all metrics.

  Differentiable once, in reverse mode, with respect to `policy` only: reference and batch get no gradient, and the sums
  carry none. Under `jax.grad`, the forward pass computes the gradient and the backward pass scales it by the cotangent
  of the total. Without `jax.grad`, no gradient is computed.

  With a mesh, the devices work together or apart, whichever moves less between them (`rows.Layout.together`):

    together   The devices of a replica take their prompts together, each for its part of the vocabulary. They gather
               the hidden states of a few prompts at a time, and sum d hidden. Neither head nor d head is ever whole.
    apart      Every device takes its own prompts with the whole head, and sums its own d head, so that the compiler
               reduces d head over devices once and not once per scan step.

  Args:
    objective: an objective that does not couple rows.
    policy: the policy's final hidden states, [B, N, R, D], and head, [D, V].
    reference: those of the reference; None if no statistic requires them.
    batch: prompts with responses, [B, N, R].
    chunk: response tokens whose logits exist at once on a device: a few times chunk * V * 4 bytes of memory.
    mesh: the mesh over whose (data, fsdp) axes the prompts are split; None for one device.

  Returns:
    The total, [], in units of the loss, and the weighted sums by name, including `loss`.

  Raises:
    ValueError: the objective couples rows, or needs a reference that is None.
  """
  if objective.couples_rows:
    raise ValueError(
      f'{objective.name} couples the rows of a batch, so its loss cannot be taken a few prompts at a time: '
      'use gradients.coupled, or stats.statistics with objective.apply'
    )
  forward.assert_batch(batch)
  forward.assert_states(policy, batch)
  layout = rows.Layout(chunk, mesh=mesh)
  together = forward.together(policy, layout)
  if together > 1:  # a replica at a time, below
    policy, reference = (forward.split_head(hidden, mesh, 1) for hidden in (policy, reference))

  def loss(
    policy: stats.HiddenStates, reference: stats.HiddenStates | None, part: PreferenceBatch
  ) -> tuple[Array, forward.Sums]:
    table = stats.statistics(objective.needs, policy, reference, part, chunk=chunk * together)
    sums = forward.weighted_sums(objective, table, part)
    return sums['loss'].total, sums

  zero_sums = _zeros(jax.eval_shape(loss, policy, reference, batch)[1])

  @jax.custom_vjp
  def fused(
    policy: stats.HiddenStates, reference: stats.HiddenStates | None, batch: PreferenceBatch
  ) -> tuple[Array, forward.Sums]:
    def value(part: Any) -> tuple[forward.Sums, None]:
      return loss(*_with_heads(part, policy, reference))[1], None

    sums, _ = _over_prompts(value, zero_sums, _without_heads(policy, reference, batch), layout, together)
    return sums['loss'].total, sums

  def fused_forward(
    policy: stats.HiddenStates, reference: stats.HiddenStates | None, batch: PreferenceBatch
  ) -> tuple[tuple[Array, forward.Sums], stats.HiddenStates]:
    def value_and_gradient(part: Any) -> tuple[Any, stats.HiddenStates]:
      (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(*_with_heads(part, policy, reference))
      return (gradient.head, sums), gradient._replace(head=None)

    zeros = (_zeros(policy.head), zero_sums)
    (d_head, sums), d_states = _over_prompts(
      value_and_gradient, zeros, _without_heads(policy, reference, batch), layout, together
    )
    return (sums['loss'].total, sums), d_states._replace(head=d_head)

  def fused_backward(gradient: stats.HiddenStates, cotangents: tuple[Array, Any]) -> tuple[Any, None, None]:
    scale, _ = cotangents
    return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), gradient), None, None

  fused.defvjp(fused_forward, fused_backward)
  total, sums = fused(policy, reference, batch)
  return total, jax.lax.stop_gradient(sums)


def _without_heads(policy: stats.HiddenStates, reference: stats.HiddenStates | None, batch: PreferenceBatch) -> Any:
  """The inputs that have one row per prompt."""
  return policy._replace(head=None), None if reference is None else reference._replace(head=None), batch


def _with_heads(
  part: Any, policy: stats.HiddenStates, reference: stats.HiddenStates | None
) -> tuple[stats.HiddenStates, stats.HiddenStates | None, PreferenceBatch]:
  """The inputs of the loss, rebuilt from the rows of `_without_heads`."""
  states, reference_states, batch = part
  frozen = None if reference is None else reference_states._replace(head=reference.head)
  return states._replace(head=policy.head), frozen, batch


def _over_prompts(function: Function, zeros: Any, inputs: Any, layout: rows.Layout, together: int) -> tuple[Any, Any]:
  """Applies `function` to a few prompts, or packed rows, at a time; sums its first result and concatenates its second.

  Args:
    function: maps rows of the inputs to (a result that is summed, a result with one row per prompt).
    zeros: the start of the sum, shaped like the first result.
    inputs: arrays [B, ...]; the first are the hidden states of the policy.
    layout: the split of rows over devices, and the number of tokens whose logits exist at once on each.
    together: number of shards that take their prompts together.
  """
  prompts, *tokens = inputs[0].states.shape[:-1]
  group = _prompts_at_once(layout.chunk, prompts // layout.shards, math.prod(tokens))
  mesh = layout.mesh if together > 1 else None

  def replica(inputs: Any) -> tuple[Any, Any]:  # [together, B / shards, ...]
    def body(total: Any, part: Any) -> tuple[Any, Any]:
      part = jax.tree.map(lambda x: x.reshape(together * group, *x.shape[2:]), part)
      *states, batch = part
      summed, kept = function((*rows.place(states, mesh, 'fsdp'), rows.place(batch, mesh)))
      kept = jax.tree.map(lambda x: x.reshape(together, group, *x.shape[1:]), kept)
      return jax.tree.map(jnp.add, total, summed), rows.place(kept, mesh, 'fsdp')

    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(together, -1, group, *x.shape[2:]), 1, 0), inputs)
    return jax.lax.scan(body, zeros, parts)

  shards = rows.by_shard(inputs, layout)
  # The name makes the map over replicas one over devices, also for products that devices share out.
  named = {'spmd_axis_name': 'data'} if together > 1 else {}
  total, kept = jax.vmap(replica, **named)(jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), shards))
  # [replicas, ...] or, if each device has taken its own prompts, [shards, ...].
  total = jax.tree.map(lambda x: kernels.total(x, layout.mesh if together == 1 else None), total)
  return total, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2).reshape(prompts, *x.shape[4:]), kept)


def _prompts_at_once(chunk: int, prompts: int, tokens: int) -> int:
  """The largest divisor of `prompts` such that that many prompts of `tokens` response tokens fit into `chunk`.

  At least 1: if a single prompt exceeds the chunk, `stats.statistics` chunks its positions and recomputes their logits.
  """
  most = max(1, min(prompts, chunk // tokens))
  return next(size for size in range(most, 0, -1) if prompts % size == 0)


def _zeros(like: Any) -> Any:
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
