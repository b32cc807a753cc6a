"""The forward pass: from a batch to hidden states, to the table of statistics, to the sums of an objective."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math

import chex
import jax
import jax.numpy as jnp

from alignjax import objectives, stats
from alignjax.models import base as models
from alignjax.objectives import preference
from alignjax.parallel import kernels
from alignjax.training import rows
from alignjax.types import Array, PackedBatch, Params, PreferenceBatch, WeightedSum

Sums = Mapping[str, WeightedSum]


def assert_batch(batch: PreferenceBatch) -> None:
  """Asserts that the fields of a batch have the shapes that `PreferenceBatch` documents."""
  batch = batch.examples
  chex.assert_rank(batch.response, 3, custom_message='batch.response must be [B, N, R]')
  prompts, responses, size = batch.response.shape
  shapes = {
    'prompt': (prompts, None),
    'prompt_length': (prompts,),
    'response_length': (prompts, responses),
    'label': (prompts,),
    'weight': (prompts,),
    'score': (prompts, responses),
    'behaviour_logp': (prompts, responses),
  }
  for name, shape in shapes.items():
    if getattr(batch, name) is not None:
      chex.assert_shape(getattr(batch, name), shape, custom_message=f'batch.{name} does not fit batch.response')
  for name, value in batch.cached.items():
    shape = (prompts, responses) if value.ndim == 2 else (prompts, responses, size, ...)  # per response, or per token
    chex.assert_shape(value, shape, custom_message=f'batch.cached[{name!r}] does not fit batch.response')


def assert_states(hidden: stats.HiddenStates, batch: PreferenceBatch) -> None:
  """Asserts that hidden states [B, N, R, D] and a head [D, V] belong to a batch."""
  packed = isinstance(batch, PackedBatch)
  shape = batch.rows.target.shape if packed else batch.response.shape
  message = 'states must be [S, M, D]' if packed else 'states must be [B, N, R, D]'
  chex.assert_shape(hidden.states, (*shape, None), custom_message=message)
  width = hidden.states.shape[-1]
  if hidden.head.kernel is not None:
    chex.assert_shape(hidden.head.kernel, (width, None), custom_message='head.kernel must be [D, V]')
  if hidden.final is not None:
    shape = (*batch.response_length.shape, width)
    chex.assert_shape(hidden.final, shape, custom_message='the states after each response must be [B, N, D]')


def output(needs: Iterable[stats.Stat]) -> str:
  """What a model must compute for these statistics, as `TransformerConfig.output`: 'logits', 'score' or 'both'."""
  needs = set(needs)
  scored = {stat for stat in needs if isinstance(stat, stats.ResponseStat) and (stat.final or stat.score)}
  if not scored:
    return 'logits'
  return 'both' if needs - scored else 'score'


def hidden_states(
  model: models.LanguageModel, params: Params, batch: PreferenceBatch, needs: Iterable[stats.Stat] = ()
) -> stats.HiddenStates:
  """Runs the trunk of a model over a batch.

  Args:
    model: the model.
    params: its parameters.
    batch: prompts with responses, [B, N, R].
    needs: the statistics. If one of them reads the state after each response, the responses are padded by one token,
      which the model never sees: `LanguageModel.hidden` returns the state before each token.

  Returns:
    The final hidden states, [B, N, R, D], the model's head, and the states after each response if they are needed.
  """
  if isinstance(batch, PackedBatch):
    return _packed_states(model, params, batch, stats.reads_final(needs, batch.cached))
  inputs = params, batch.prompt, batch.prompt_length
  if not stats.reads_final(needs, batch.cached):
    states = model.hidden(*inputs, batch.response, batch.response_length)
    return stats.HiddenStates(states, model.head(params))
  padded = jnp.pad(jnp.asarray(batch.response), ((0, 0), (0, 0), (0, 1)))
  states = model.hidden(*inputs, padded, batch.response_length + 1)
  return stats.HiddenStates(states[:, :, :-1], model.head(params), stats.final_states(states, batch))


def _packed_states(model: models.LanguageModel, params: Params, batch: PackedBatch, final: bool) -> stats.HiddenStates:
  """`hidden_states` of a packed batch: only positions that a statistic may read leave the trunk."""
  rows, head = batch.rows, model.head(params)
  if model.packed is None:
    raise ValueError('this model cannot read packed rows: use packing="off"')
  if not final:
    return stats.HiddenStates(model.packed(params, rows, rows.predicting), head)
  if rows.final is None:
    raise ValueError(
      'a statistic reads the state after each response, and these packed rows leave out the last token of a response: '
      'plan them with Rows(final=True)'
    )
  count, size = rows.target.shape
  read = jnp.concatenate([rows.predicting, rows.final.reshape(count, -1)], axis=1)
  states = model.packed(params, rows, read)
  return stats.HiddenStates(states[:, :size], head, states[:, size:].reshape(*rows.final.shape, -1))


def together(hidden: stats.HiddenStates, layout: rows.Layout) -> int:
  """The number of batch shards that compute logits together, each for a part of the vocabulary."""
  kernel = hidden.head.kernel
  return 1 if kernel is None else layout.together(math.prod(hidden.states.shape[:-1]), kernel.shape[-1])


def split_head(hidden: stats.HiddenStates | None, mesh: jax.sharding.Mesh, replicas: int) -> stats.HiddenStates | None:
  """Gives each device of a replica a part of the vocabulary. The states stay where they are.

  Args:
    hidden: states [B, N, R, D] and head.
    mesh: the mesh.
    replicas: the number of replicas whose rows are in B.
  """
  if hidden is None:
    return None
  kernel = kernels.SplitHead(hidden.head.kernel, kernels.Parts.of(mesh, replicas))
  return hidden._replace(head=dataclasses.replace(hidden.head, kernel=kernel))


def table(
  needs: Iterable[stats.Stat],
  policy: stats.HiddenStates,
  reference: stats.HiddenStates | None,
  batch: PreferenceBatch,
  layout: rows.Layout,
) -> stats.StatTable:
  """Computes the statistics of a batch whose prompts are split over the devices of a mesh.

  Args:
    needs: the statistics.
    policy: the policy's final hidden states, [B, N, R, D].
    reference: the reference's final hidden states; None if no statistic requires them.
    batch: prompts with responses, [B, N, R].
    layout: the number of tokens whose logits exist at once on each device.

  Returns:
    The table.

  Raises:
    ValueError: if a statistic reads the reference, is not cached, and `reference` is None.
  """
  assert_states(policy, batch)
  if together(policy, layout) > 1:
    replicas = layout.mesh.shape['data']
    policy, reference = (split_head(hidden, layout.mesh, replicas) for hidden in (policy, reference))
  return stats.statistics(needs, policy, reference, batch, chunk=layout.chunk * layout.shards)


def in_parts(
  function: Callable[[PreferenceBatch], stats.StatTable], batch: PreferenceBatch, layout: rows.Layout
) -> stats.StatTable:
  """The table of a batch from `function`, one microbatch at a time; a packed batch is split by row."""
  if not isinstance(batch, PackedBatch):
    return rows.map_parts(function, batch, layout)
  prompts = batch.weight.shape[1]

  def by_row(part: PackedBatch) -> stats.StatTable:
    return jax.tree.map(lambda x: x.reshape(-1, prompts, *x.shape[1:]), function(part))

  table = rows.map_parts(by_row, batch, layout)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), table)


def weighted_sums(objective: objectives.Objective, table: stats.StatTable, batch: PreferenceBatch) -> Sums:
  """The loss and the metrics of a batch, each as a weighted sum over prompts."""
  batch = batch.examples
  loss, metrics = objective.apply(table, batch)
  metrics = {**_response_metrics(table, jnp.asarray(batch.label)), **metrics, 'loss': loss}
  weight = jnp.asarray(batch.weight)
  return {name: WeightedSum.of(value, weight) for name, value in metrics.items()}


def _response_metrics(table: stats.StatTable, label: Array) -> dict[str, Array]:
  """Metrics of every run: lengths in tokens, and log-probabilities summed over tokens, nats.

  For pairs, they are reported for the preferred and the dispreferred response, in expectation over the label.
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
