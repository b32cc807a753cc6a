"""Compares two ways to compute the same log-probabilities: sampling and training, bfloat16 and float32."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.doctor import findings, start
from alignjax.sampling import sampler
from alignjax.training import forward
from alignjax.training.policy import Policy
from alignjax.training.state import Frozen
from alignjax.types import Array, Params, PreferenceBatch

# Largest |gap| of one token, in nats, that rounding explains.
SAME_TOKEN = {'float32': 1e-3, 'bfloat16': 1e-1}
SAMPLED = 8  # tokens per response


class Subject(NamedTuple):
  """A policy and a batch to evaluate it on."""

  policy: Policy
  params: Params  # the trained parameters
  frozen: Frozen  # as the training step gets it
  batch: PreferenceBatch


def examine_sampling(subject: Subject, key: Array, *, compute_dtype: str) -> list[findings.Finding]:
  """Samples responses, and compares their log-probabilities with those that training computes for the same tokens.

  Args:
    subject: the policy, and a batch whose prompts are used.
    key: a typed PRNG key.
    compute_dtype: the type of activations.
  """
  policy, *arrays = subject

  def gap(params: Params, frozen: Frozen, batch: PreferenceBatch, key: Array) -> Array:
    model, batch = policy.bind(frozen.base), batch.examples
    prompts = sampler.Prompts(batch.prompt, batch.prompt_length)
    drawn = sampler.sample(model, params, prompts, key, sampler.Decoding(samples=1, max_new_tokens=SAMPLED))
    again = dataclasses.replace(batch, response=drawn.response, response_length=drawn.response_length, cached={})
    hidden = forward.hidden_states(model, params, again)
    table = stats.statistics({stats.logp}, hidden, None, again, chunk=again.response.size)
    return jnp.max(jnp.abs(table[stats.logp] - drawn.logp))

  largest, limit = float(jax.jit(gap)(*arrays, key)), SAME_TOKEN[compute_dtype]
  if largest <= limit:
    return []
  return [
    findings.Finding(
      'sampling_gap',
      findings.ERROR,
      f'log-probabilities from sampling and from training differ by up to {largest:.4f} nats for the same token '
      f'(limit {limit:g})',
      'Decoding with a cache computes something else than the joint forward pass: report the model, and do not train '
      'on its samples',
    )
  ]


def examine_precision(subject: Subject, exact: Policy, *, chunk: int) -> list[findings.Finding]:
  """Measures how much a reduced compute dtype changes log-probabilities.

  Args:
    subject: a policy that computes in bfloat16, and a batch.
    exact: the same policy, computing in float32.
    chunk: response tokens whose logits exist at once on a device.
  """

  def gap(params: Params, frozen: Frozen, batch: PreferenceBatch) -> Array:
    def table_of(policy: Policy) -> stats.StatTable:
      hidden = forward.hidden_states(policy.bind(frozen.base), params, batch)
      return stats.statistics({stats.logp}, hidden, None, batch, chunk=chunk)

    table = table_of(subject.policy)
    mask = table.mask & (batch.examples.weight > 0)[:, None, None]
    return start.token_mean(jnp.abs(table[stats.logp] - table_of(exact)[stats.logp]), mask)

  batch = dataclasses.replace(subject.batch, cached={})
  mean, limit = float(jax.jit(gap)(subject.params, subject.frozen, batch)), start.SAME_MODEL['bfloat16']
  seen = f'computing in bfloat16 changes the log-probability of a token by {mean:.4f} nats on average'
  if mean <= limit:
    return [findings.Finding('precision', findings.NOTE, seen, 'Most of it cancels between policy and reference')]
  advice = f'More than {limit:g} is unusual: compute in float32, or look for activations that overflow'
  return [findings.Finding('precision', findings.WARNING, seen, advice)]
