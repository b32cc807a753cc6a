"""For every objective that couples rows, the gradient of the step does not depend on how the batch is split."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives, stats
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import references
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from tests import fixtures
from tests.oracles import cases
from tests.training import bigram, step_test

MODEL, POLICY, REFERENCE = bigram.MODEL, bigram.params(0), bigram.params(1)
PROMPTS = 16


def coupled_cases():
  """One case of each coupled objective, by its name: the last, which is less likely to have defaults only."""
  built = ((objectives.parse(case.expression), case) for case in cases.CASES)
  return {objective.label: case for objective, case in built if objective.couples_rows}


CASES = coupled_cases()
# Quick: one that sorts, and one of one response, so that a device has a single row. memory_test.py has one with
# statistics and one that draws.
VARIED = ('aot', 'kto')
EVERY = pytest.mark.parametrize(
  'name', [pytest.param(name, marks=() if name in VARIED else pytest.mark.slow) for name in sorted(CASES)]
)


def batch_of(name, seed=2):
  sizes = {'prompt_size': 2, 'response_size': 4, 'vocab': bigram.VOCAB}
  batch = fixtures.preference_batch(seed=seed, prompts=PROMPTS, responses=CASES[name].responses, **sizes)
  if stats.BEHAVIOUR_TOKEN_LOGP in objectives.parse(CASES[name].expression).reads:
    drawn = np.random.default_rng(seed).uniform(-4.0, -1.0, batch.response.shape).astype(np.float32)
    batch = dataclasses.replace(batch, cached={**batch.cached, stats.BEHAVIOUR_TOKEN_LOGP: drawn})
  return dataclasses.replace(batch, weight=batch.weight.at[jnp.asarray([2, 9])].set(0.0))  # padding rows


def table_of(objective, policy, batch, memory):
  """The statistics of a batch from full logits."""

  def logits(params):
    states = MODEL.hidden(params, batch.prompt, batch.prompt_length, batch.response, batch.response_length)
    return jnp.einsum('bnrd,dv->bnrv', states, MODEL.head(params).kernel)

  table = stats.from_logits(objective.needs, logits(policy), logits(REFERENCE), batch)
  return dataclasses.replace(table, memory=memory)


def flat(params):
  return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


@functools.cache
def plain(name):
  """(batch, memory) -> (loss, gradient, next memory): autodiff through full logits of the whole batch."""
  objective = objectives.parse(CASES[name].expression)

  @jax.jit
  def evaluate(batch, memory):
    after = objective.memory.update(table_of(objective, POLICY, batch, memory), batch)

    def loss(policy):
      table = dataclasses.replace(table_of(objective, policy, batch, after), before=memory)
      losses = objective.apply(table, batch).loss
      return jnp.sum(batch.weight * losses) / jnp.sum(batch.weight)

    return *jax.value_and_grad(loss)(POLICY), after

  def run(batch, memory):
    loss, gradient, after = evaluate(batch, memory)
    return float(loss), flat(gradient), after

  return run


@functools.cache
def memory_of(name):
  """What an objective remembers after one step with another batch."""
  initial = objectives.parse(CASES[name].expression).memory.initial
  return plain(name)(batch_of(name, seed=5), {key: jnp.float32(value) for key, value in initial.items()})[2]


@EVERY
@pytest.mark.parametrize(
  ('microbatches', 'shape'),
  [
    pytest.param(1, None, marks=pytest.mark.slow),
    pytest.param(4, None, marks=pytest.mark.slow),
    pytest.param(2, (8, 1, 1), marks=pytest.mark.slow),
    (4, (2, 2, 2)),
  ],
  ids=str,
)
def test_gradient_does_not_depend_on_microbatches_and_mesh(name, microbatches, shape):
  objective, batch, tx = objectives.parse(CASES[name].expression), batch_of(name), optax.sgd(1.0)
  loss, gradient, memory = plain(name)(batch, memory_of(name))
  mesh = None if shape is None else mesh_lib.make_mesh(*shape)
  step = step_lib.build_train_step(Policy(MODEL), objective, tx, chunk=16, microbatches=microbatches, mesh=mesh)
  state = state_lib.TrainState.create(POLICY, tx, jax.random.key(0), memory_of(name))
  frozen = state_lib.Frozen(references.Live(REFERENCE))
  if mesh is not None:
    shardings = state_lib.shardings(mesh, state)
    places = shardings, state_lib.Frozen(references.Live(shardings.params)), rules.batch_sharding(mesh)
    state, frozen, batch = step_test.placed((state, frozen, batch), places)
  after, metrics = jax.jit(step)(state, frozen, batch)
  found = flat(POLICY) - flat(after.params)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=5e-6)
  assert np.linalg.norm(gradient) > 1e-3  # there is something to compare
  assert np.linalg.norm(found - gradient) < 1e-5 * np.linalg.norm(gradient)
  assert set(after.memory) == set(memory)
  for key, value in memory.items():
    np.testing.assert_allclose(after.memory[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@EVERY
def test_the_mean_of_the_gradients_of_parts_is_another_gradient(name):
  """Rows do couple: were each part taken for a batch of its own, the comparison above would see it."""
  batch, memory = batch_of(name), memory_of(name)
  _, gradient, _ = plain(name)(batch, memory)
  # A part is a batch whose other rows are padding, so that one compiled program serves both.
  odd = jnp.arange(PROMPTS) % 2
  parts = [dataclasses.replace(batch, weight=batch.weight * side) for side in (odd, 1 - odd)]
  share = [float(jnp.sum(part.weight) / jnp.sum(batch.weight)) for part in parts]
  mean = sum(w * plain(name)(part, memory)[1] for w, part in zip(share, parts, strict=True))
  assert np.linalg.norm(mean - gradient) > 1e-3 * np.linalg.norm(gradient)


def test_every_coupled_objective_is_tested():
  def default(build):
    required = [p for p in inspect.signature(build).parameters.values() if p.default is p.empty]
    return build(*(objectives.dpo() for _ in required))

  coupled = {name for name, build in objectives.OBJECTIVES.items() if default(build).couples_rows}
  assert coupled
  assert coupled <= set(CASES)
