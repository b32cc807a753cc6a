"""What the training step puts into the table beside token statistics: the step, and response statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives, stats
from alignjax.training import forward
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from alignjax.types import Term
from tests import fixtures, quick
from tests.training import bigram

MODEL, PARAMS = bigram.MODEL, bigram.params(0)
BATCH = fixtures.preference_batch(seed=1, prompts=4, response_size=4, vocab=bigram.VOCAB)
PROBE = np.linspace(-1.0, 1.0, bigram.WIDTH, dtype=np.float32)
REWARD = stats.ResponseStat('toy_reward', lambda states, head, batch: stats.last_state(states, batch) @ PROBE)


def ranking(table, batch):
  margin = table[REWARD][:, 0] - table[REWARD][:, 1]
  return Term(-jax.nn.log_sigmoid((2.0 * batch.label - 1.0) * margin), {})


RANKING = objectives.Objective(frozenset({REWARD}), ranking, reads=frozenset({'label'}), responses=2, name='ranking()')
OBJECTIVE = RANKING + objectives.schedule(1.0, 0.0, 4) * objectives.sft()


@jax.jit
def expected_gradient(params, step):
  """Autodiff through the whole table."""

  def loss(params):
    hidden = forward.hidden_states(MODEL, params, BATCH)
    table = stats.statistics(OBJECTIVE.needs, hidden, None, BATCH, chunk=32)
    losses = OBJECTIVE.apply(dataclasses.replace(table, step=step), BATCH).loss
    return jnp.sum(BATCH.weight * losses) / jnp.sum(BATCH.weight)

  return jax.grad(loss)(params)


@pytest.mark.parametrize('couples_rows', quick.first(1, [False, True]), ids=['rowwise', 'coupled'])
def test_steps_and_response_statistics_reach_the_objective(couples_rows):
  objective = dataclasses.replace(OBJECTIVE, couples_rows=couples_rows)
  tx = optax.sgd(1.0)
  step = jax.jit(step_lib.build_train_step(Policy(MODEL), objective, tx, chunk=4, microbatches=2))
  for done, coefficient in ((0, 1.0), (3, 0.25)):
    state = dataclasses.replace(state_lib.TrainState.create(PARAMS, tx, jax.random.key(0)), step=jnp.int32(done))
    after, metrics = step(state, state_lib.Frozen(), BATCH)
    assert float(metrics['sft/coefficient']) == coefficient
    found = jax.tree.map(jnp.subtract, PARAMS, after.params)
    for one, other in zip(*map(jax.tree.leaves, (found, expected_gradient(PARAMS, jnp.int32(done)))), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_an_evaluation_uses_the_step_at_which_it_is_made():
  evaluate = jax.jit(step_lib.build_eval_step(Policy(MODEL), OBJECTIVE, chunk=64))
  sums = evaluate(PARAMS, state_lib.Frozen(step=jnp.int32(2)), BATCH)
  assert float(sums['sft/coefficient'].mean()) == 0.5


def test_lengths_and_log_probabilities_are_those_of_the_labelled_response():
  swapped = dataclasses.replace(
    BATCH,
    response=BATCH.response[:, ::-1],
    response_length=BATCH.response_length[:, ::-1],
    label=1.0 - BATCH.label,
  )
  evaluate = jax.jit(step_lib.build_eval_step(Policy(MODEL), objectives.sft(), chunk=64))
  one, other = (evaluate(PARAMS, state_lib.Frozen(), batch) for batch in (BATCH, swapped))
  for name in ('length_chosen', 'length_rejected', 'logp_chosen', 'logp_rejected', 'loss'):
    np.testing.assert_allclose(one[name].mean(), other[name].mean(), rtol=1e-5, err_msg=name)
