"""Every objective's loss and gradient against the float64 oracle of its equation, from logits to loss."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives
from alignjax.objectives import examples
from tests import fixtures
from tests.oracles import cases, tally
from tests.oracles.data import Data

EVERY = pytest.mark.parametrize('case', cases.CASES, ids=lambda case: case.expression)
STEP = 1e-5


def setting(case, seed, prompts, **sizes):
  batch = fixtures.preference_batch(seed=seed, prompts=prompts, responses=case.responses, **sizes)
  behaviour = -np.random.default_rng(seed).exponential(size=batch.response.shape)
  batch = dataclasses.replace(batch, cached={'behaviour_token_logp': jnp.asarray(behaviour.astype(np.float32))})
  vocab = sizes.get('vocab', 11)
  policy, reference = (fixtures.logits(seed + i, batch, vocab) for i in (1, 2))
  return objectives.parse(case.expression), batch, policy, reference


def loss_of(objective, batch, policy, reference):
  return objective.apply(examples.table(objective.needs, policy, reference, batch), batch).loss


def assert_close(kind, case, found, expected):
  """Close relative to the largest number: a loss near 0 that is a difference of large ones has their rounding."""
  scale = max(1.0, float(np.abs(expected).max()))
  error = float(np.abs(np.asarray(found, np.float64) - expected).max()) / scale
  tally.record(kind, case.expression, error)
  assert error < (2e-6 if kind == 'value' else 5e-6), f'relative error {error:.1e}'


@EVERY
def test_loss_equals_the_oracle(case):
  for seed in (5, 15, 25):  # three batches of the shape of the contract's, whose programs they share
    objective, batch, policy, reference = setting(case, seed=seed, prompts=6)
    known = Data.of(batch, policy, reference)
    assert_close('value', case, loss_of(objective, batch, policy, reference), case.oracle(known, known))


@EVERY
def test_gradient_equals_central_differences_of_the_oracle(case):
  objective, batch, policy, reference = setting(case, seed=8, prompts=4, response_size=3, vocab=4)
  gradient = jax.grad(lambda x: jnp.sum(batch.weight * loss_of(objective, batch, x, reference)))(policy)
  base = Data.of(batch, policy, reference)
  logits = np.asarray(policy, np.float64)

  def total(shifted):
    return float(np.sum(base.weight * case.oracle(base.with_logits(shifted), base)))

  expected = np.zeros_like(logits)
  for index in np.ndindex(*logits.shape):
    up, down = logits.copy(), logits.copy()
    up[index] += STEP
    down[index] -= STEP
    expected[index] = (total(up) - total(down)) / (2 * STEP)
  assert np.any(expected)
  assert_close('gradient', case, gradient, expected)


@pytest.mark.parametrize('name', sorted(objectives.OBJECTIVES))
def test_every_exported_name_has_a_case_of_its_own(name):
  own = [case for case in cases.CASES if re.match(rf'{name}\(', case.expression) and ' + ' not in case.expression]
  assert own, f'{name}: write a Case in tests/oracles'
