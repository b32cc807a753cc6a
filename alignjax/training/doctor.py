"""Is a run in order before its first update? What the models say of one batch, what the step costs, and what is odd.

The examination of the data is in `alignjax.doctor.examples`; here is what needs the models. Each function looks at one
thing and returns findings, which are empty where all is well.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import numerics, objectives, stats
from alignjax.data.batches import order, shapes
from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import findings
from alignjax.parallel import rules
from alignjax.sampling import sampler
from alignjax.training import forward, rows
from alignjax.training.policy import Policy
from alignjax.training.state import Frozen
from alignjax.types import Array, Params, PreferenceBatch

Finding = findings.Finding

# Mean |log pi - log pi_ref| of a token, nats, up to which two models count as one that was computed twice.
SAME_MODEL = {'float32': 1e-3, 'bfloat16': 5e-2}
SAME_TOKEN = {'float32': 1e-3, 'bfloat16': 1e-1}  # the same for training against sampling, and for the largest |gap|
FAR_MODEL = 2.0  # from which on they have little to do with each other
CHANCE = 0.1  # nats a token, by which a model has to be worse than a uniform guess
FEW_SHAPES = 8  # of batches, each of which is compiled
WASTE = 1.5  # tokens of an epoch with the given shapes, relative to those that would have been chosen
MOST_MEMORY = 0.9  # of that of a device
SMALL_NORM = 0.1  # of an embedding, relative to the median
SAMPLED = 8  # tokens of a response


def build_start(
  policy: Policy,
  objective: objectives.Objective,
  *,
  chunk: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Params, Frozen, PreferenceBatch], dict[str, Array]]:
  """Builds the measurement of one batch at the start of a run.

  Args:
    policy: the model and what of it is trained.
    objective: the loss.
    chunk: response tokens whose logits exist at once on a device.
    mesh: where the batch is split.

  Returns:
    A pure function (params, frozen, batch) -> scalars: `loss`; `logp`, the mean log-probability of a token of the
    preferred responses, nats; and where the objective needs a reference, `loss_at_reference`, the loss that the
    objective would have if the policy were its own reference, and `drift`, the mean |log pi - log pi_ref| of a token.
  """
  layout = rows.Layout(chunk, mesh=mesh)
  compares = bool(stats.missing_reference(objective.needs, ()))
  needs = objective.needs | {stats.logp} | ({stats.reference_logp} if compares else set())

  def start(params: Params, frozen: Frozen, batch: PreferenceBatch) -> dict[str, Array]:
    forward.assert_batch(batch)
    hidden = forward.hidden_states(policy.bind(frozen.base), params, batch)

    def evaluate(reference: stats.HiddenStates | None, batch: PreferenceBatch) -> tuple[Array, stats.StatTable]:
      table = forward.table(needs, hidden, reference, batch, layout)
      table = dataclasses.replace(table, memory=frozen.memory, step=frozen.step)
      return forward.weighted_sums(objective, table, batch)['loss'].mean(), table

    loss, table = evaluate(frozen.reference_states(policy, needs, batch), batch)
    mask = table.mask & (batch.weight > 0)[:, None, None]
    result = {'loss': loss, 'logp': _mean(table[stats.logp][:, 0], mask[:, 0])}
    if compares:
      drift = jnp.abs(table[stats.logp] - table[stats.reference_logp])
      itself, _ = evaluate(hidden, dataclasses.replace(batch, cached={}))
      result |= {'loss_at_reference': itself, 'drift': _mean(drift, mask)}
    return result

  return start


def _mean(values: Array, mask: Array) -> Array:
  """Over all tokens of the mask."""
  return numerics.masked_mean(values.reshape(-1), mask.reshape(-1))


def examine_start(
  start: Mapping[str, float], *, same_model: bool, compute_dtype: str, vocab_size: int, reference: str
) -> list[Finding]:
  """What the first batch says of policy and reference.

  Args:
    start: from `build_start`.
    same_model: whether the reference is meant to be the policy as it is now.
    compute_dtype: of activations.
    vocab_size: V.
    reference: where the reference comes from, for the message.
  """
  found = []
  if not math.isfinite(start['loss']):
    seen = f'the loss of the first batch is {start["loss"]}'
    advice = 'Check the weights of the model, and compute in float32'
    return [Finding('loss_not_finite', findings.ERROR, seen, advice)]
  if start['logp'] < -math.log(vocab_size) - CHANCE:
    found.append(
      Finding(
        'worse_than_uniform',
        findings.WARNING,
        f'the model gives a token of the preferred responses {start["logp"]:.2f} nats on average, less than a uniform '
        f'guess among {vocab_size} tokens ({-math.log(vocab_size):.2f})',
        'Weights, tokenizer and configuration (such as the base of rotary positions) may not belong together',
      )
    )
  if 'drift' not in start:
    return found
  drift, limit = start['drift'], SAME_MODEL[compute_dtype]
  losses = f'the loss of the first batch is {start["loss"]:.6f}'
  if not same_model and drift > FAR_MODEL:
    found.append(
      Finding(
        'reference_far',
        findings.WARNING,
        f'policy and reference ({reference}) differ by {drift:.2f} nats a token on average',
        'They look like unrelated models: the reference is usually the model that training starts from',
      )
    )
  elif not same_model:
    seen = f'policy and reference ({reference}) differ by {drift:.4f} nats a token on average; {losses}'
    advice = f'With the policy as its own reference it would be {start["loss_at_reference"]:.6f}'
    found.append(Finding('reference_is_another', findings.NOTE, seen, advice))
  elif not drift <= limit:
    found.append(
      Finding(
        'reference_differs',
        findings.ERROR,
        f'policy and reference ({reference}) are meant to be the same model, but differ by {drift:.4f} nats a token on '
        f'average; {losses}, expected {start["loss_at_reference"]:.6f}',
        'The reference was read or computed in another way than the policy: delete its cache, and compare dtypes',
      )
    )
  return found


def examine_dtypes(policy: Collection[str], reference: Collection[str]) -> list[Finding]:
  """Whether the weights of two folders are rounded alike; in memory both are float32.

  Args:
    policy: types that its weights have on disk.
    reference: the same of another folder.
  """
  if set(policy) == set(reference):
    return []
  seen = f'the model is stored as {", ".join(sorted(policy))}, its reference as {", ".join(sorted(reference))}'
  advice = 'If they are meant to be one model, their rounding differs and rewards do not start at 0: store both alike'
  return [Finding('dtype_gap', findings.WARNING, seen, advice)]


def examine_sampling(
  policy: Policy,
  params: Params,
  frozen: Frozen,
  batch: PreferenceBatch,
  key: Array,
  *,
  compute_dtype: str,
) -> list[Finding]:
  """Samples from the policy, and compares the log-probabilities with those that training computes of the same tokens.

  Args:
    policy: the model and what of it is trained.
    params: the trained parameters.
    frozen: as the training step gets it.
    batch: prompts to sample responses to.
    key: a typed PRNG key.
    compute_dtype: of activations.
  """

  def gap(params: Params, frozen: Frozen, batch: PreferenceBatch, key: Array) -> Array:
    model = policy.bind(frozen.base)
    prompts = sampler.Prompts(batch.prompt, batch.prompt_length)
    drawn = sampler.sample(model, params, prompts, key, sampler.Decoding(samples=1, max_new_tokens=SAMPLED))
    again = dataclasses.replace(batch, response=drawn.response, response_length=drawn.response_length, cached={})
    hidden = forward.hidden_states(model, params, again)
    table = stats.statistics({stats.logp}, hidden, None, again, chunk=again.response.size)
    return jnp.max(jnp.abs(table[stats.logp] - drawn.logp))

  largest, limit = float(jax.jit(gap)(params, frozen, batch, key)), SAME_TOKEN[compute_dtype]
  if largest <= limit:
    return []
  return [
    Finding(
      'sampling_gap',
      findings.ERROR,
      f'sampling and training differ by up to {largest:.4f} nats a token (limit {limit:g}) about the same tokens',
      'The prompt with its cache and the joint forward do not compute the same: report the model, and do not sample '
      'from it for training',
    )
  ]


def examine_precision(
  policy: Policy,
  exact: Policy,
  params: Params,
  frozen: Frozen,
  batch: PreferenceBatch,
  *,
  chunk: int,
) -> list[Finding]:
  """What the compute dtype costs: log-probabilities of the policy against those of `exact`, the same in float32."""

  def gap(params: Params, frozen: Frozen, batch: PreferenceBatch) -> Array:
    def table_of(policy: Policy) -> stats.StatTable:
      hidden = forward.hidden_states(policy.bind(frozen.base), params, batch)
      return stats.statistics({stats.logp}, hidden, None, batch, chunk=chunk)

    table = table_of(policy)
    mask = table.mask & (batch.weight > 0)[:, None, None]
    return _mean(jnp.abs(table[stats.logp] - table_of(exact)[stats.logp]), mask)

  mean, limit = float(jax.jit(gap)(params, frozen, dataclasses.replace(batch, cached={}))), SAME_MODEL['bfloat16']
  seen = f'computing in bfloat16 changes the log-probability of a token by {mean:.4f} nats on average'
  if mean <= limit:
    return [Finding('precision', findings.NOTE, seen, 'Policy and reference share most of that')]
  advice = f'More than {limit:g} is unusual: compute in float32, or look for activations that overflow'
  return [Finding('precision', findings.WARNING, seen, advice)]


def examine_coupling(objective: objectives.Objective, responses: int) -> list[Finding]:
  """Whether the objective sees other prompts of the batch without declaring it.

  Args:
    objective: the loss.
    responses: N of the data.
  """
  if objective.couples_rows or not objectives.couples(objective, responses):
    return []
  seen = f'the loss of a prompt under {objective.name} depends on other prompts of the batch, which it does not declare'
  advice = 'Declare couples_rows=True, or the gradient depends on the number of microbatches and devices'
  return [Finding('undeclared_coupling', findings.ERROR, seen, advice)]


def examine_shapes(plan: order.Plan, data: dataset.TokenDataset) -> list[Finding]:
  """What the shapes of batches cost in compilations and in padding."""
  found = []
  if len(plan.buckets) > FEW_SHAPES:
    seen = f'{len(plan.buckets)} shapes of batches, each of which is compiled, for training and for evaluation'
    found.append(Finding('many_shapes', findings.WARNING, seen, 'Give fewer config.buckets, or leave them out'))
  chosen = shapes.choose_buckets(data, batch_size=plan.batch_size)
  given, best = (shapes.epoch_tokens(data, buckets, batch_size=plan.batch_size) for buckets in (plan.buckets, chosen))
  if given > WASTE * best:
    seen = f'shapes {list(plan.buckets)} make an epoch of {given} tokens, padding included; {best} would do'
    advice = f'Leave config.buckets out; then they are {list(chosen)}'
    found.append(Finding('wasteful_shapes', findings.WARNING, seen, advice))
  if plan.padding_rows > len(data):
    seen = f'{plan.padding_rows} of {plan.padding_rows + len(data)} rows of an epoch are empty'
    found.append(Finding('empty_rows', findings.WARNING, seen, f'Lower config.batch_size, {plan.batch_size}'))
  return found


def examine_embeddings(
  table: Array,
  data: dataset.TokenDataset,
  tokenizer: tokenization.Tokenizer,
  mesh: jax.sharding.Mesh | None = None,
) -> list[Finding]:
  """Tokens of the data whose embedding was never trained, such as the chat tokens of a base model.

  Args:
    table: the embeddings, [V, D].
    data: to train on.
    tokenizer: to spell tokens.
    mesh: where the table is.
  """
  whole = {} if mesh is None else {'out_shardings': rules.replicated(mesh)}
  norms = np.asarray(jax.jit(lambda table: jnp.linalg.norm(table.astype(jnp.float32), axis=1), **whole)(table))
  counts = np.bincount(np.concatenate([data.prompt_tokens, data.response_tokens]), minlength=len(norms))
  median = float(np.median(norms))
  small = np.flatnonzero((norms < SMALL_NORM * median) & (counts > 0))
  if not len(small):
    return []
  first = small[np.argsort(-counts[small])][:4]
  named = ', '.join(f'{tokenizer.decode([i], skip_special_tokens=False)!r} ({counts[i]} times)' for i in first)
  return [
    Finding(
      'untrained_tokens',
      findings.WARNING,
      f'{len(small)} tokens of the data have an embedding below {SMALL_NORM:g} of the median norm: {named}',
      'The model has not been trained on them: use the chat template that it was trained with, or fine-tune it first',
    )
  ]


def bytes_on_device(tree: Any) -> int:
  """Bytes of a tree of placed arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def device_memory(device: jax.Device) -> int | None:
  """Bytes that a device has: what its backend says, or its share of the host's memory; None where nobody says."""
  stated = (device.memory_stats() or {}).get('bytes_limit')
  if stated or device.platform != 'cpu':
    return stated
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()


def examine_memory(parts: Sequence[tuple[str, int]], available: int | None) -> list[Finding]:
  """Whether what a run needs fits into a device.

  Args:
    parts: what, and how many bytes of it are on each device.
    available: bytes of a device, None if unknown.
  """
  needed = sum(size for _, size in parts)
  listed = ' + '.join(f'{_size(size)} of {what}' for what, size in parts if size)
  seen = f'{_size(needed)} on each device ({listed})'
  if available is None:
    return [Finding('memory', findings.NOTE, seen, 'The device does not say how much it has')]
  seen += f', which has {_size(available)}'
  if needed > available:
    advice = 'Spread the model over more devices (config.mesh), or take smaller batches (config.microbatches)'
    return [Finding('memory', findings.ERROR, seen, advice)]
  if needed > MOST_MEMORY * available:
    advice = 'Little is left for what the compiler adds: more microbatches help'
    return [Finding('memory', findings.WARNING, seen, advice)]
  return [Finding('memory', findings.NOTE, seen, 'That fits')]


def _size(count: int) -> str:
  return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.1f} MiB'
