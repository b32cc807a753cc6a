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


def over_cases(quick):
  return pytest.mark.parametrize(
    'case',
    [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in cases.CASES],
    ids=[case.expression for case in cases.CASES],
  )


STEP = 1e-6
DIRECTIONS = 8
TABLE = jax.jit(examples.table, static_argnums=0)  # one program for all objectives with the same needs


def setting(case, seed):
  """A batch of the shape of the contract's, whose programs these tests share."""
  batch = fixtures.preference_batch(seed=seed, responses=case.responses)
  behaviour = -np.random.default_rng(seed).exponential(size=batch.response.shape)
  batch = dataclasses.replace(batch, cached={'behaviour_token_logp': jnp.asarray(behaviour.astype(np.float32))})
  policy, reference = (fixtures.logits(seed + i, batch) for i in (1, 2))
  return objectives.parse(case.expression), batch, policy, reference


def loss_of(objective, batch, policy, reference):
  return objective.apply(TABLE(objective.needs, policy, reference, batch), batch).loss


def assert_close(kind, case, found, expected):
  """Close relative to the largest number: a loss near 0 that is a difference of large ones has their rounding."""
  scale = max(1.0, float(np.abs(expected).max()))
  error = float(np.abs(np.asarray(found, np.float64) - expected).max()) / scale
  tally.record(kind, case.expression, error)
  assert error < (2e-6 if kind == 'value' else 5e-6), f'relative error {error:.1e}'


@over_cases((*cases.FIRST, *cases.COMPOSED[:2]))
def test_loss_equals_the_oracle(case):
  for seed in (5, 15, 25):
    objective, batch, policy, reference = setting(case, seed)
    known = Data.of(batch, policy, reference)
    assert_close('value', case, loss_of(objective, batch, policy, reference), case.oracle(known, known))


# Of the others, the losses are compared above. These stop gradients, which the losses do not show.
WITH_CONSTANTS = [case for case in cases.FIRST if case.expression.split('(')[0] in ('alpha_dpo', 'kto', 'rlhf')]


@over_cases((*cases.FIRST_OF_MODULES, *WITH_CONSTANTS))
def test_gradient_equals_central_differences_of_the_oracle(case):
  """Along random corners of the cube: an error of any entry counts in full in each of them."""
  objective, batch, policy, reference = setting(case, seed=8)
  gradient = jax.grad(lambda x: jnp.sum(batch.weight * loss_of(objective, batch, x, reference)))(policy)
  base = Data.of(batch, policy, reference)
  logits = np.asarray(policy, np.float64)

  def total(shifted):
    return float(np.sum(base.weight * case.oracle(base.with_logits(shifted), base)))

  corners = np.random.default_rng(0).choice([-1.0, 1.0], (DIRECTIONS, *logits.shape))
  expected = np.array([(total(logits + STEP * d) - total(logits - STEP * d)) / (2 * STEP) for d in corners])
  assert np.any(expected)
  found = np.tensordot(corners, np.asarray(gradient, np.float64), logits.ndim)
  assert_close('gradient', case, found, expected)


@pytest.mark.parametrize('name', sorted(objectives.OBJECTIVES))
def test_every_exported_name_has_a_case_of_its_own(name):
  own = [case for case in cases.CASES if re.match(rf'{name}\(', case.expression) and ' + ' not in case.expression]
  assert own, f'{name}: write a Case in tests/oracles'
