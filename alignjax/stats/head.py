"""From hidden states to statistics, without ever holding [B, N, R, V].

Logits exist for one chunk of positions at a time, policy and reference together, and are computed
again in the backward pass. Chunks run along positions and never along flattened tokens: prompts are sharded over
devices, and a scan over a flattened [B * N * R] axis would make every device compute every token.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from alignjax import numerics
from alignjax.stats import response, table, token
from alignjax.types import Array, Head, PreferenceBatch


class HiddenStates(NamedTuple):
  """The output of a model for a batch, before the projection to the vocabulary."""

  states: Array  # [B, N, R, D], entry t predicts response token t; other leading dimensions are allowed without a batch
  head: Head


def logits(hidden: HiddenStates) -> Array:
  """Logits of the next token, [..., V] float32; training and sampling both get them here.

  The product runs in the dtype of the hidden states; everything after it is float32.
  """
  states, head = hidden
  out = numerics.project(states, head.kernel)
  if head.bias is not None:
    out = out + jnp.expand_dims(head.bias.astype(jnp.float32), range(out.ndim - 1))
  if head.soft_cap is not None:
    out = head.soft_cap * jnp.tanh(out / head.soft_cap)
  return out


def log_probs(hidden: HiddenStates) -> Array:
  """Log-probabilities of the next token, [..., V] float32, nats."""
  return jax.nn.log_softmax(logits(hidden))


def missing_reference(needs: Iterable[table.Stat], cached: Iterable[str]) -> list[str]:
  """Names of the statistics for which the reference model itself must be run, because no cached value replaces it."""
  return sorted({stat.name for stat in needs if stat.reference} - set(cached))


def statistics(
  needs: Iterable[table.Stat],
  policy: HiddenStates,
  reference: HiddenStates | None,
  batch: PreferenceBatch,
  *,
  chunk: int,
) -> table.StatTable:
  """Computes the statistics in `needs` from hidden states, `chunk` response tokens at a time.

  Args:
    needs: the statistics; those in `batch.cached` are read from there.
    policy: hidden states and head of the policy.
    reference: those of the reference; None if no statistic to compute reads it. Gradients stop here.
    batch: provides the response tokens, lengths and cached statistics.
    chunk: response tokens whose logits exist at once, over all devices together: chunk * V numbers per model. Whole
      positions of all B * N responses are taken together, at least one.

  Returns:
    The table: token statistics [B, N, R], response statistics [B, N].

  Raises:
    ValueError: a statistic reads the reference, is not cached, and `reference` is None.
    AssertionError: the hidden states do not have the shape [B, N, R, D].
  """
  for hidden in (policy, reference):
    if hidden is not None:
      chex.assert_shape(hidden.states, (*batch.response.shape, None), custom_message='states must be [B, N, R, D]')
  needs = sorted(set(needs), key=lambda stat: stat.name)
  cached = {stat.name: jax.lax.stop_gradient(batch.cached[stat.name]) for stat in needs if stat.name in batch.cached}
  of_responses = {
    stat.name: stat(policy.states, policy.head, batch)
    for stat in needs
    if isinstance(stat, response.ResponseStat) and stat.name not in cached
  }
  live = [stat for stat in needs if isinstance(stat, token.TokenStat) and stat.name not in cached]
  if reference is None and (missing := missing_reference(live, ())):
    raise ValueError(
      f'the statistics {missing} read the reference model: give its parameters, or cache these statistics in the batch'
    )
  if reference is not None:
    reference = jax.lax.stop_gradient(reference) if any(stat.reference for stat in live) else None

  def compute(states: tuple[Array, Array | None], target: Array) -> Mapping[str, Array]:
    policy_states, reference_states = states
    policy_logp = None if policy_states is None else log_probs(HiddenStates(policy_states, policy.head))
    reference_logp = None if reference_states is None else log_probs(HiddenStates(reference_states, reference.head))
    return {stat.name: _apply(stat, policy_logp, reference_logp, target) for stat in live}

  states = (
    policy.states if any(stat.policy for stat in live) else None,
    reference.states if reference is not None else None,
  )
  target = jnp.asarray(batch.response)
  positions = max(1, chunk // (target.shape[0] * target.shape[1]))
  values = _over_positions(compute, states, target, positions) if live else {}
  return table.StatTable.create({**values, **of_responses, **cached}, jnp.asarray(batch.response_length))


def from_logits(
  needs: Iterable[table.Stat],
  policy_logits: Array,
  reference_logits: Array | None,
  batch: PreferenceBatch,
) -> table.StatTable:
  """The same table from full logits, for notebooks and tests.

  Args:
    needs: the statistics; those in `batch.cached` are read from there.
    policy_logits: [B, N, R, V]; entry t predicts response token t.
    reference_logits: those of the reference, [B, N, R, V]; None if no statistic to compute reads it.
    batch: provides the response tokens, lengths and cached statistics.

  Returns:
    The table, each entry [B, N, R].

  Raises:
    ValueError: a statistic reads the reference, is not cached, and `reference_logits` is None; or a response statistic
      is not cached.
    AssertionError: the logits do not have the shape [B, N, R, V].
  """
  for array in (policy_logits, reference_logits):
    if array is not None:
      chex.assert_shape(array, (*batch.response.shape, None), custom_message='logits must be [B, N, R, V]')
  needs = set(needs)
  for stat in needs:
    if isinstance(stat, response.ResponseStat) and stat.name not in batch.cached:
      raise ValueError(
        f'the response statistic {stat.name!r} reads hidden states, and here are only logits: '
        f'put its values, [B, N], into batch.cached[{stat.name!r}], or use `stats.statistics`'
      )
  missing = missing_reference(needs, batch.cached)
  if reference_logits is None and missing:
    raise ValueError(f'the statistics {missing} read the reference model: give `reference_logits`, or cache them')
  policy = jax.nn.log_softmax(policy_logits.astype(jnp.float32))
  reference = None
  if reference_logits is not None:
    reference = jax.nn.log_softmax(jax.lax.stop_gradient(reference_logits).astype(jnp.float32))
  values = {
    stat.name: jax.lax.stop_gradient(batch.cached[stat.name])
    if stat.name in batch.cached
    else _apply(stat, policy, reference, jnp.asarray(batch.response))
    for stat in needs
  }
  return table.StatTable.create(values, jnp.asarray(batch.response_length))


def _apply(stat: token.TokenStat, policy: Array | None, reference: Array | None, target: Array) -> Array:
  return stat(policy if stat.policy else None, reference if stat.reference else None, target)


def _over_positions(compute, states, target: Array, positions: int) -> Mapping[str, Array]:
  """Maps `compute` over chunks of the position axis, axis 2, of `states` and `target`; rematerialised in backward."""
  size = target.shape[2]
  if positions >= size:
    return compute(states, target)
  chunks = -(-size // positions)

  def split(x: Array) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[2] = (0, chunks * positions - size)
    x = jnp.pad(x, padding).reshape(*x.shape[:2], chunks, positions, *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)

  def join(x: Array) -> Array:
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], chunks * positions)[:, :, :size]

  body = jax.checkpoint(lambda carry, chunk: (carry, compute(*chunk)))
  _, values = jax.lax.scan(body, None, jax.tree.map(split, (states, target)))
  return jax.tree.map(join, values)
