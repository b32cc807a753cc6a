"""Examines policy and reference at the first batch, before the first update."""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import math

import jax
import jax.numpy as jnp

from alignjax import numerics, objectives, stats
from alignjax.doctor import findings
from alignjax.training import forward, rows
from alignjax.training.policy import Policy
from alignjax.training.state import Frozen
from alignjax.types import Array, Params, PreferenceBatch

# Up to this mean |log pi - log pi_ref| per token, in nats, two models are the same one, computed twice.
SAME_MODEL = {'float32': 1e-3, 'bfloat16': 5e-2}
FAR_MODEL = 2.0  # nats per token; above this, two models are probably unrelated
CHANCE = 0.1  # nats per token; a model this much worse than a uniform guess is suspicious


def build_measurement(
  policy: Policy,
  objective: objectives.Objective,
  *,
  chunk: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Params, Frozen, PreferenceBatch], dict[str, Array]]:
  """Builds a function that measures one batch at the start of a run.

  Args:
    policy: the model and which of its parameters are trained.
    objective: the loss.
    chunk: response tokens whose logits exist at once on a device.
    mesh: the mesh over which the batch is split.

  Returns:
    A pure function (params, frozen, batch) -> scalars: `loss`, and `logp`, the mean log-probability per token of the
    preferred responses in nats, unless the objective needs only rewards. If the objective needs a reference, also
    `loss_at_reference`, the loss with the policy as its own reference, and `drift`, the mean |log pi - log pi_ref| per
    token.
  """
  layout = rows.Layout(chunk, mesh=mesh)
  compares = bool(stats.missing_reference(objective.needs, ()))
  predicts = forward.output(objective.needs) != 'score'
  needs = objective.needs | ({stats.logp} if predicts else set()) | ({stats.reference_logp} if compares else set())

  def measure(params: Params, frozen: Frozen, batch: PreferenceBatch) -> dict[str, Array]:
    forward.assert_batch(batch)
    hidden = forward.hidden_states(policy.bind(frozen.base), params, batch, needs)

    def evaluate(reference: stats.HiddenStates | None, batch: PreferenceBatch) -> tuple[Array, stats.StatTable]:
      table = forward.table(needs, hidden, reference, batch, layout)
      table = dataclasses.replace(table, memory=frozen.memory, step=frozen.step)
      return forward.weighted_sums(objective, table, batch)['loss'].mean(), table

    loss, table = evaluate(frozen.reference_states(policy, needs, batch), batch)
    if not predicts:
      return {'loss': loss}
    mask = table.mask & (batch.examples.weight > 0)[:, None, None]
    result = {'loss': loss, 'logp': token_mean(table[stats.logp][:, 0], mask[:, 0])}
    if compares:
      drift = jnp.abs(table[stats.logp] - table[stats.reference_logp])
      itself, _ = evaluate(hidden, dataclasses.replace(batch, cached={}))
      result |= {'loss_at_reference': itself, 'drift': token_mean(drift, mask)}
    return result

  return measure


def token_mean(values: Array, mask: Array) -> Array:
  """[] the mean over all tokens where the mask is true."""
  return numerics.masked_mean(values.reshape(-1), mask.reshape(-1))


def examine(
  measured: Mapping[str, float], *, same_model: bool, compute_dtype: str, vocab_size: int, reference: str
) -> list[findings.Finding]:
  """Judges the measurement of the first batch.

  Args:
    measured: the result of `build_measurement`'s function, as Python numbers.
    same_model: whether policy and reference should be the same model before the first update.
    compute_dtype: the type of activations.
    vocab_size: V.
    reference: the folder or cache of the reference, for messages.
  """
  found = []
  if not math.isfinite(measured['loss']):
    seen = f'the loss of the first batch is {measured["loss"]}'
    advice = 'Check the weights of the model, and compute in float32'
    return [findings.Finding('loss_not_finite', findings.ERROR, seen, advice)]
  if measured.get('logp', 0.0) < -math.log(vocab_size) - CHANCE:
    found.append(
      findings.Finding(
        'worse_than_uniform',
        findings.WARNING,
        f'the mean log-probability per token of the preferred responses is {measured["logp"]:.2f} nats, worse than a '
        f'uniform guess among {vocab_size} tokens ({-math.log(vocab_size):.2f})',
        'Check that weights, tokenizer and configuration (such as rope_theta) belong together',
      )
    )
  if 'drift' not in measured:
    return found
  drift, limit = measured['drift'], SAME_MODEL[compute_dtype]
  losses = f'the loss of the first batch is {measured["loss"]:.6f}'
  if not same_model and drift > FAR_MODEL:
    found.append(
      findings.Finding(
        'reference_far',
        findings.WARNING,
        f'policy and reference ({reference}) differ by {drift:.2f} nats per token on average',
        'They look like unrelated models: the reference is usually the model that training starts from',
      )
    )
  elif not same_model:
    seen = f'policy and reference ({reference}) differ by {drift:.4f} nats per token on average; {losses}'
    advice = f'If the policy were its own reference, the loss would be {measured["loss_at_reference"]:.6f}'
    found.append(findings.Finding('reference_is_another', findings.NOTE, seen, advice))
  elif not drift <= limit:
    found.append(
      findings.Finding(
        'reference_differs',
        findings.ERROR,
        f'policy and reference ({reference}) should be the same model, but differ by {drift:.4f} nats per token on '
        f'average; {losses}, expected {measured["loss_at_reference"]:.6f}',
        'The reference was read or computed differently from the policy: delete its cache, and compare dtypes',
      )
    )
  return found


def examine_dtypes(policy: Collection[str], reference: Collection[str]) -> list[findings.Finding]:
  """Compares the types of stored weights. Both models are float32 in memory, but their rounding may differ.

  Args:
    policy: the types of the policy's weights on disk.
    reference: the types of the reference's weights on disk.
  """
  if set(policy) == set(reference):
    return []
  seen = f'the model is stored as {", ".join(sorted(policy))}, its reference as {", ".join(sorted(reference))}'
  advice = 'If they should be the same model, store both in the same type: rounding makes the first rewards nonzero'
  return [findings.Finding('dtype_gap', findings.WARNING, seen, advice)]
