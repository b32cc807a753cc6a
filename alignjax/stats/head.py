"""From hidden states to statistics, without ever holding [B, N, R, V].

Logits exist for one chunk of positions at a time, policy and reference together, and are computed
again in the backward pass. Chunks run along positions and never along flattened tokens: prompts are sharded over
devices, and a scan over a flattened [B * N * R] axis would make every device compute every token.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alignjax import numerics
from alignjax.stats import path, response, table, token
from alignjax.types import Array, Head, PackedBatch, PreferenceBatch


class HiddenStates(NamedTuple):
  """The output of a model for a batch, before the projection to the vocabulary.

  For a packed batch, `states` are [S, M, D], those that predict `PackedRows.target`, and `final` is [S, G, N, D].
  """

  states: Array  # [B, N, R, D], entry t predicts response token t; other leading dimensions are allowed without a batch
  head: Head
  final: Array | None = None  # [B, N, D], the state after the last token of each response, if a statistic reads it


def logits(hidden: HiddenStates) -> Array:
  """Logits of the next token, [..., V] float32; training and sampling both get them here.

  The product runs in the dtype of the hidden states; everything after it is float32.
  """
  states, head = hidden.states, hidden.head
  if head.kernel is None:
    raise ValueError('this model is a reward model without an output head, so it has no logits')
  plain = isinstance(head.kernel, jax.Array | np.ndarray)  # a head that devices share out has a product of its own
  out = numerics.project(states, head.kernel) if plain else states @ head.kernel
  if head.bias is not None:
    out = out + jnp.expand_dims(head.bias.astype(jnp.float32), range(out.ndim - 1))
  if head.soft_cap is not None:
    out = head.soft_cap * jnp.tanh(out / head.soft_cap)
  return out


def log_probs(hidden: HiddenStates) -> Array:
  """Log-probabilities of the next token, [..., V] float32, nats."""
  return jax.nn.log_softmax(logits(hidden))


def reads_final(needs: Iterable[table.Stat], cached: Iterable[str] = ()) -> bool:
  """Whether a statistic, unless it is cached, reads the state after each response."""
  return any(isinstance(stat, response.ResponseStat) and stat.final and stat.name not in cached for stat in needs)


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
    The table: token statistics [B, N, R], response statistics [B, N], or [B, N, R] if they are per token. For a packed
    batch, B is S * G.

  Raises:
    ValueError: a statistic reads the reference, is not cached, and `reference` is None.
    AssertionError: the hidden states do not have the shape [B, N, R, D].
  """
  if isinstance(batch, PackedBatch):
    return _of_packed(needs, policy, reference, batch, chunk)
  for hidden in (policy, reference):
    if hidden is not None:
      chex.assert_shape(hidden.states, (*batch.response.shape, None), custom_message='states must be [B, N, R, D]')
  work = _Work.of(needs, batch)
  target = jnp.asarray(batch.response)
  values = _of_tokens(
    work, policy, reference, (target, numerics.length_mask(batch.response_length, target.shape[2])), chunk
  )
  of_responses = {stat.name: _of_responses(stat, policy, batch) for stat in work.responses}
  return work.tabulate({**values, **of_responses}, batch)


def _of_packed(
  needs: Iterable[table.Stat],
  policy: HiddenStates,
  reference: HiddenStates | None,
  batch: PackedBatch,
  chunk: int,
) -> table.StatTable:
  """`statistics` of a packed batch: each token of a row once, and then one gather of numbers.

  Statistics that read the states of whole responses, or run a recursion over the vocabulary, take them apart first.
  """
  rows, examples = batch.rows, batch.examples
  for hidden in (policy, reference):
    if hidden is not None:
      chex.assert_shape(hidden.states, (*rows.target.shape, None), custom_message='states must be [S, M, D]')
  work = _Work.of(needs, examples)
  size = rows.target.shape[1]
  where = jnp.asarray(rows.first)[..., None] + jnp.arange(batch.response.shape[-1])[None, None, None]
  where = jnp.minimum(where, size - 1).reshape(len(rows.target), -1)  # [S, G * N * R]

  def apart(x: Array) -> Array:
    """[S * G, N, R, ...]: the values of each response token, from [S, M, ...]."""
    x = jnp.take_along_axis(x, jnp.expand_dims(where, range(2, x.ndim)), axis=1)
    return x.reshape(*examples.response.shape, *x.shape[2:])

  def separated(hidden: HiddenStates | None) -> HiddenStates | None:
    """As of a batch that is not packed."""
    if hidden is None:
      return None
    final = hidden.final
    final = None if final is None else final.reshape(*examples.response_length.shape, -1)
    return HiddenStates(apart(hidden.states), hidden.head, final)

  if work.recursions:
    return statistics(needs, separated(policy), separated(reference), examples, chunk=chunk)

  def in_one(hidden: HiddenStates | None) -> HiddenStates | None:
    """All responses of a row as if they were one."""
    return None if hidden is None else hidden._replace(states=hidden.states[:, None])

  target = jnp.asarray(rows.target)[:, None]
  values = _of_tokens(work, in_one(policy), in_one(reference), (target, jnp.ones(target.shape, bool)), chunk)
  values = {name: apart(value[:, 0]) for name, value in values.items()}
  of_responses = {stat.name: _of_responses(stat, separated(policy), examples) for stat in work.responses}
  return work.tabulate({**values, **of_responses}, examples)


def _of_tokens(
  work: '_Work',
  policy: HiddenStates,
  reference: HiddenStates | None,
  tokens: tuple[Array, Array],
  chunk: int,
) -> Mapping[str, Array]:
  """The token statistics, and those of recursions over the vocabulary, [B, N, R]; `tokens` are ids and mask."""
  if reference is None and (missing := sorted(stat.name for stat in (*work.tokens, *work.paths) if stat.reference)):
    raise ValueError(
      f'the statistics {missing} read the reference model: give its parameters, or cache these statistics in the batch'
    )
  if not (work.tokens or work.recursions):
    return {}
  if reference is not None:
    reference = jax.lax.stop_gradient(reference) if work.reads('reference') else None

  def compute(later: Mapping[str, path.PathValue], chunk: Any) -> tuple[Mapping[str, path.PathValue], Any]:
    (policy_states, reference_states), target, mask = chunk
    policy_logits = None if policy_states is None else logits(HiddenStates(policy_states, policy.head))
    reference_logits = None if reference_states is None else logits(HiddenStates(reference_states, reference.head))
    return work.at_positions(path.Logits(policy_logits, reference_logits, target), mask, later)

  states = (
    policy.states if work.reads('policy') else None,
    reference.states if reference is not None else None,
  )
  target, mask = tokens
  positions = max(1, chunk // (target.shape[0] * target.shape[1]))
  return _over_positions(compute, (states, target, mask), work, positions)


def _of_responses(stat: response.ResponseStat, policy: HiddenStates, batch: PreferenceBatch) -> Array:
  """[B, N] or [B, N, R]: a response statistic."""
  if stat.final and policy.final is None:
    raise ValueError(
      f'the response statistic {stat.name!r} reads the state after each response: give it as HiddenStates.final'
    )
  return stat(policy.final if stat.final else policy.states, policy.head, batch)


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
  work = _Work.of(needs, batch)
  if work.responses:
    name = work.responses[0].name
    raise ValueError(
      f'the response statistic {name!r} reads hidden states, and here are only logits: '
      f'put its values into batch.cached[{name!r}], or use `stats.statistics`'
    )
  missing = missing_reference(needs, batch.cached)
  if reference_logits is None and missing:
    raise ValueError(f'the statistics {missing} read the reference model: give `reference_logits`, or cache them')
  policy, reference = policy_logits.astype(jnp.float32), None
  if reference_logits is not None:
    reference = jax.lax.stop_gradient(reference_logits).astype(jnp.float32)
  target = jnp.asarray(batch.response)
  mask = numerics.length_mask(batch.response_length, target.shape[2])

  def compute(later: Mapping[str, path.PathValue], chunk: Any) -> tuple[Mapping[str, path.PathValue], Any]:
    chunk_logits, mask = chunk
    return work.at_positions(chunk_logits, mask, later)

  inputs = path.Logits(policy, reference, target), mask
  return work.tabulate(_over_positions(compute, inputs, work, target.shape[2]), batch)


class _Work(NamedTuple):
  """The statistics of a batch that must be computed, because no cached value replaces them."""

  cached: Mapping[str, Array]
  tokens: list[token.TokenStat]  # those in `needs`, and the inputs of recursions over token statistics
  responses: list[response.ResponseStat]
  paths: list[path.PathStat]
  recursions: list[path.VocabularyRecursion]
  needs: frozenset[str]

  @classmethod
  def of(cls, needs: Iterable[table.Stat], batch: PreferenceBatch) -> '_Work':
    needs = sorted(set(needs), key=lambda stat: stat.name)
    live = [stat for stat in needs if stat.name not in batch.cached]
    paths = [stat for stat in live if isinstance(stat, path.PathStat)]
    read = {stat for stat in needs if isinstance(stat, token.TokenStat)}
    read = sorted(read.union(*(stat.recursion.tokens for stat in paths)), key=lambda stat: stat.name)
    names = {stat.name for stat in (*needs, *read)}
    return cls(
      cached={name: jax.lax.stop_gradient(batch.cached[name]) for name in sorted(names & set(batch.cached))},
      tokens=[stat for stat in read if stat.name not in batch.cached],
      responses=[stat for stat in live if isinstance(stat, response.ResponseStat)],
      paths=paths,
      recursions=list({stat.recursion.name: stat.recursion for stat in paths if not stat.recursion.tokens}.values()),
      needs=frozenset(stat.name for stat in needs),
    )

  def reads(self, model: str) -> bool:
    """Whether the distributions of 'policy' or 'reference' are needed."""
    return bool(self.recursions) or any(getattr(stat, model) for stat in self.tokens)

  def at_positions(
    self, chunk: path.Logits, mask: Array, later: Mapping[str, path.PathValue]
  ) -> tuple[Mapping[str, path.PathValue], Mapping[str, Array]]:
    """The statistics of a chunk of positions, whose axis comes first if there is a recursion.

    Args:
      chunk: logits [P, ..., V] and tokens [P, ...]; None for a model that no statistic reads.
      mask: [P, ...] bool.
      later: the results of the recursions after the chunk, by name.

    Returns:
      The results of the recursions at the first position, and the statistics by name.
    """
    values, first = {}, {}
    for recursion in self.recursions:
      first[recursion.name], found = recursion.run(chunk, mask, later[recursion.name])
      values |= {stat.name: stat.output(found) for stat in self.paths if stat.recursion.name == recursion.name}
    policy, reference = (None if x is None else jax.nn.log_softmax(x) for x in (chunk.policy, chunk.reference))
    for stat in self.tokens:
      inputs = policy if stat.policy else None, reference if stat.reference else None, chunk.target
      values[stat.name] = stat(*inputs)
    return first, values

  def tabulate(self, values: Mapping[str, Array], batch: PreferenceBatch) -> table.StatTable:
    """The table of the statistics: runs the recursions over token statistics, and leaves out what was not asked for."""
    length = jnp.asarray(batch.response_length)
    values = {**values, **self.cached}
    found = {}
    for stat in self.paths:
      recursion = stat.recursion
      if not recursion.tokens:
        continue
      if recursion.name not in found:
        inputs = tuple(jnp.moveaxis(values[read.name], -1, 0) for read in recursion.tokens)
        mask = jnp.moveaxis(numerics.length_mask(length, values[recursion.tokens[0].name].shape[-1]), -1, 0)
        found[recursion.name] = recursion.run(inputs, mask)
      values[stat.name] = jnp.moveaxis(stat.output(found[recursion.name]), 0, -1)
    return table.StatTable.create({name: values[name] for name in values if name in self.needs}, length)


def _over_positions(compute, inputs: Any, work: _Work, positions: int) -> Mapping[str, Array]:
  """Applies `compute` to chunks of the position axis, axis 2 of the inputs; rematerialised in the backward pass.

  With a recursion, chunks run from the last to the first, and their position axis is moved to the front, so that the
  recursion scans over slices.

  Args:
    compute: maps (results of the recursions after the chunk, a chunk) to (those at its first position, values).
    inputs: arrays [B, N, R, ...].
    work: the statistics.
    positions: the size of a chunk.
  """
  size, shape = inputs[-1].shape[2], inputs[-1].shape[:2]
  later = {recursion.name: path.PathValue.zeros(shape) for recursion in work.recursions}
  axis = 0 if later else 2
  inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 2, axis), inputs)
  if positions >= size:
    _, values = compute(later, inputs)
  else:
    chunks = -(-size // positions)

    def split(x: Array) -> Array:
      padding = [(0, 0)] * x.ndim
      padding[axis] = (0, chunks * positions - size)
      x = jnp.pad(x, padding)
      x = x.reshape(*x.shape[:axis], chunks, positions, *x.shape[axis + 1 :])
      return jnp.moveaxis(x, axis, 0)

    def join(x: Array) -> Array:
      x = jnp.moveaxis(x, 0, axis)
      x = x.reshape(*x.shape[:axis], chunks * positions, *x.shape[axis + 2 :])
      return jax.lax.slice_in_dim(x, 0, size, axis=axis)

    _, values = jax.lax.scan(jax.checkpoint(compute), later, jax.tree.map(split, inputs), reverse=bool(later))
    values = jax.tree.map(join, values)
  return jax.tree.map(lambda x: jnp.moveaxis(x, axis, 2), values)
