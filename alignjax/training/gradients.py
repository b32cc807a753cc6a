"""The gradient of an objective, without ever holding logits for a whole batch.

The loss sees the model only through a small table of token statistics. So there are two ways to its gradient:

  rowwise   The loss of a prompt depends on that prompt alone. The head takes loss, d hidden and d head of a few prompts
            at a time *in the forward pass*: three vocabulary-sized products instead of four, for no logits are computed
            twice. Then one backward pass through the trunk.
  coupled   The loss of a prompt depends on others too. First the table of the whole batch, microbatch by microbatch;
            then d table; then one backward pass per microbatch. The price is a second forward pass, the gain a gradient
            that does not depend on the number of microbatches.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alignjax import objectives, stats
from alignjax.models import base as models
from alignjax.objectives import preference
from alignjax.parallel import mesh as mesh_lib
from alignjax.training import rows
from alignjax.types import Array, Head, Params, PreferenceBatch, WeightedSum

Sums = Mapping[str, WeightedSum]

REFERENCE_STATES = 'reference_states'  # in `PreferenceBatch.cached`: final hidden states, [B, N, R, D]


def hidden_states(model: models.LanguageModel, params: Params, batch: PreferenceBatch) -> stats.HiddenStates:
  """Runs the trunk of a model over a batch."""
  states = model.hidden(params, batch.prompt, batch.prompt_length, batch.response, batch.response_length)
  return stats.HiddenStates(states, model.head(params))


def reference_states(
  model: models.LanguageModel,
  needs: frozenset[stats.TokenStat],
  reference: Params | Head | None,
  batch: PreferenceBatch,
) -> stats.HiddenStates | None:
  """The final hidden states of the reference, if a statistic in `needs` has to be computed from them.

  Runs its trunk, or takes them from the batch where `reference` is its head alone.

  Raises:
    ValueError: if they are needed, and there is no reference, or a head and no cached states.
  """
  missing = stats.missing_reference(needs, batch.cached)
  if not missing:
    return None
  if reference is None:
    raise ValueError(f'the objective needs {missing}: give the parameters of a reference, or cache these statistics')
  if isinstance(reference, Head):
    if REFERENCE_STATES not in batch.cached:
      raise ValueError(f'the reference is a head alone, and the batch has no cached {REFERENCE_STATES!r}')
    return jax.lax.stop_gradient(stats.HiddenStates(batch.cached[REFERENCE_STATES], reference))
  return jax.lax.stop_gradient(hidden_states(model, reference, batch))


def weighted_sums(objective: objectives.Objective, table: stats.StatTable, batch: PreferenceBatch) -> Sums:
  """The loss and the metrics of a batch, each as a sum over prompts with its weight."""
  loss, metrics = objective.apply(table, batch)
  metrics = {**_response_metrics(table, jnp.asarray(batch.label)), **metrics, 'loss': loss}
  weight = jnp.asarray(batch.weight)
  return {name: WeightedSum.of(value, weight) for name, value in metrics.items()}


def _response_metrics(table: stats.StatTable, label: Array) -> dict[str, Array]:
  """Metrics of every run: lengths in tokens, and log-probabilities summed over tokens, nats.

  Those of a pair are of the preferred and the dispreferred response, in expectation over the label.
  """
  columns = {'length': table.length.astype(jnp.float32)}
  if stats.logp.name in table.values:
    columns['logp'] = jax.lax.stop_gradient(table.sum(stats.logp))
  if table.length.shape[-1] != 2:
    return {name: jnp.mean(value, axis=-1) for name, value in columns.items()}
  metrics = {}
  for name, value in columns.items():
    metrics[f'{name}_chosen'], metrics[f'{name}_rejected'] = preference.by_label(value, label)
  return metrics


def rowwise(
  model: models.LanguageModel,
  objective: objectives.Objective,
  params: Params,
  reference: Params | Head | None,
  batch: PreferenceBatch,
  *,
  reference_model: models.LanguageModel,
  chunk: int,
  microbatches: int,
  mesh: jax.sharding.Mesh | None,
  step: Array | None = None,
) -> tuple[Params, Sums]:
  """Gradient of sum_b weight_b loss_b, and the sums, for an objective that does not couple rows."""

  def one(part: PreferenceBatch) -> tuple[Params, Sums]:
    def trunk(params: Params) -> Array:
      return model.hidden(params, part.prompt, part.prompt_length, part.response, part.response_length)

    states, trunk_vjp = jax.vjp(trunk, params)
    head, head_vjp = jax.vjp(model.head, params)
    frozen = reference_states(reference_model, objective.needs, reference, part)
    policy = stats.HiddenStates(states, head)
    (d_states, d_head), sums = head_gradients(objective, policy, frozen, part, chunk=chunk, mesh=mesh, step=step)
    return jax.tree.map(jnp.add, trunk_vjp(d_states)[0], head_vjp(d_head)[0]), sums

  return rows.accumulate(one, rows.split(batch, microbatches, mesh))


def head_gradients(
  objective: objectives.Objective,
  policy: stats.HiddenStates,
  reference: stats.HiddenStates | None,
  batch: PreferenceBatch,
  *,
  chunk: int,
  mesh: jax.sharding.Mesh | None,
  step: Array | None = None,
) -> tuple[stats.HiddenStates, Sums]:
  """Loss, d hidden and d head in one pass: logits of `chunk` response tokens exist at once on a device, and only once.

  Every batch shard scans its own prompts and sums its own d head (`vmap` over the shards, so that the compiler adds up
  d head over devices once and not once per scan step).

  Returns:
    The gradient of sum_b weight_b loss_b, shaped like `policy`, and the sums.
  """
  shards = 1 if mesh is None else mesh_lib.batch_shards(mesh)
  prompts, responses, length = policy.states.shape[:3]
  group, positions = _group_and_positions(chunk, prompts // shards, responses, length)
  reference_head = None if reference is None else reference.head

  def loss(states: Array, head: Any, reference_states: Array | None, part: PreferenceBatch) -> tuple[Array, Sums]:
    frozen = None if reference_states is None else stats.HiddenStates(reference_states, reference_head)
    table = stats.statistics(objective.needs, stats.HiddenStates(states, head), frozen, part, positions=positions)
    sums = weighted_sums(objective, dataclasses.replace(table, step=step), part)
    return sums['loss'].total, sums

  def shard(xs: Any) -> tuple[Any, Sums, Array]:
    def body(carry: Any, x: Any) -> tuple[Any, Array]:
      (_, sums), (d_states, d_head) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x[0], policy.head, *x[1:])
      return jax.tree.map(jnp.add, carry, (d_head, sums)), d_states

    groups = jax.tree.map(lambda x: x.reshape(x.shape[0] // group, group, *x.shape[1:]), xs)
    first = jax.tree.map(lambda x: x[0], groups)
    shapes = jax.eval_shape(loss, first[0], policy.head, *first[1:])[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (policy.head, shapes))
    (d_head, sums), d_states = jax.lax.scan(body, zeros, groups)
    return d_head, sums, d_states.reshape(xs[0].shape)

  xs = (policy.states, None if reference is None else reference.states, batch)
  d_head, sums, d_states = jax.vmap(shard)(rows.by_shard(xs, shards, mesh))
  d_head, sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), (d_head, sums))
  return stats.HiddenStates(d_states.reshape(policy.states.shape), d_head), sums


def _group_and_positions(chunk: int, prompts: int, responses: int, length: int) -> tuple[int, int]:
  """How many prompts a scan step takes, and how many of their positions at a time, so that `chunk` tokens have logits.

  Whole prompts need no recomputation, so positions are chunked only where one prompt alone exceeds the chunk.
  """
  if responses * length > chunk:
    return 1, max(1, chunk // responses)
  most = min(prompts, chunk // (responses * length))
  return next(size for size in range(most, 0, -1) if prompts % size == 0), length


def coupled(
  model: models.LanguageModel,
  objective: objectives.Objective,
  params: Params,
  reference: Params | Head | None,
  batch: PreferenceBatch,
  *,
  reference_model: models.LanguageModel,
  memory: Mapping[str, Array],
  chunk: int,
  microbatches: int,
  mesh: jax.sharding.Mesh | None,
  step: Array | None = None,
) -> tuple[Params, Sums, Mapping[str, Array]]:
  """Gradient of sum_b weight_b loss_b, the sums and the next memory, for an objective in which rows see each other."""

  def table_of(needs: frozenset[stats.TokenStat], params: Params, part: PreferenceBatch) -> stats.StatTable:
    frozen = reference_states(reference_model, needs, reference, part)
    positions = positions_of(part, chunk, mesh)
    return stats.statistics(needs, hidden_states(model, params, part), frozen, part, positions=positions)

  parts = rows.split(batch, microbatches, mesh)
  tables = jax.lax.map(lambda part: table_of(objective.needs, params, part), parts)
  table = dataclasses.replace(rows.join(tables), memory=memory, step=step)
  memory = jax.lax.stop_gradient(dict(objective.memory.update(table, batch)))

  def loss(values: Mapping[str, Array]) -> tuple[Array, Sums]:
    sums = weighted_sums(objective, dataclasses.replace(table, values=values, memory=memory), batch)
    return sums['loss'].total, sums

  d_values, sums = jax.grad(loss, has_aux=True)(table.values)
  live = frozenset(stat for stat in objective.needs if stat.policy and stat.name not in batch.cached)
  d_values = rows.split({stat.name: d_values[stat.name] for stat in live}, microbatches, mesh)

  def one(part: tuple[PreferenceBatch, Mapping[str, Array]]) -> Params:
    _, vjp = jax.vjp(lambda params: table_of(live, params, part[0]).values, params)
    return vjp(part[1])[0]

  return rows.accumulate(one, (parts, d_values)), sums, memory


def positions_of(batch: PreferenceBatch, chunk: int, mesh: jax.sharding.Mesh | None) -> int:
  """Positions whose logits may exist at once when a device takes all its prompts together: `chunk` tokens in all."""
  shards = 1 if mesh is None else mesh_lib.batch_shards(mesh)
  prompts, responses = batch.response.shape[:2]
  return max(1, chunk * shards // (prompts * responses))
