"""One update on a batch of data and on a batch of rollouts: the sum of the two gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives
from alignjax.data.batches import batching
from alignjax.training import joint, rollout_drawing, rollout_rows, rows, state, step
from tests.training import rollout_world as world

TX = optax.sgd(1.0)
GIVEN, DRAWN = objectives.pmle(gamma=0.3), objectives.kl_penalty(beta=0.2)
SETTING = world.Setting('kl_penalty(beta=0.2)', samples=3, rounds=rollout_drawing.Rounds(8, 4, 1, 8))


class Data:
  """A source of pairs, whose batches are numbered."""

  on_policy = False

  def __init__(self, batch):
    self.batch, self.taken = batch, 0

  def next(self, state):
    self.taken += 1
    return batching.Batch(dataclasses.replace(self.batch, label=self.batch.label / self.taken), np.arange(6))

  def get_state(self):
    return self.taken

  def set_state(self, state):
    self.taken = state


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """Six pairs with uneven weights, which another policy has drawn."""
  made = world.drawer(SETTING._replace(rounds=rollout_drawing.Rounds(6, 6, 1, 6)), tmp_path_factory.mktemp('pairs'))
  drawn = made.draw(world.start(SETTING), world.FROZEN, 0)
  rows = rollout_rows.Shaping('best_worst', ties='keep').rows(drawn)
  return dataclasses.replace(rows, weight=np.array([1, 2, 0, 0.5, 1, 1], np.float32), score=None)


@pytest.fixture(name='source')
def both_sources(pairs, tmp_path):
  return joint.JointSource(Data(pairs), world.source_of(SETTING, world.drawer(SETTING, tmp_path)))


def first_state():
  return state.TrainState.create({'logits': world.params_of(3)['logits']}, TX, jax.random.key(0))


@pytest.mark.parametrize('microbatches', [pytest.param(1, marks=pytest.mark.slow), 2])  # one is a special case
def test_the_gradient_is_the_sum_of_both(source, microbatches):
  batch = source.next(world.start(SETTING)).data
  layout = rows.Layout(microbatches=microbatches)
  update = jax.jit(joint.build_step(world.POLICY, joint.Objectives(GIVEN, DRAWN), TX, layout))
  new, metrics = update(first_state(), world.FROZEN, batch)
  start = np.asarray(first_state().params['logits'])
  total, losses = np.zeros_like(start), []
  plain = {item.name: getattr(batch, item.name) for item in dataclasses.fields(type(batch.rollouts))}
  for objective, part in ((GIVEN, type(batch.rollouts)(**plain)), (DRAWN, batch.rollouts)):
    alone = jax.jit(step.build_train_step(world.POLICY, objective, TX))
    moved, own = alone(first_state(), world.FROZEN, part)
    total += np.asarray(moved.params['logits']) - start
    losses.append(own['loss'])
  np.testing.assert_allclose(np.asarray(new.params['logits']) - start, total, atol=1e-6)
  assert np.abs(total).max() > 1e-3
  assert float(metrics['loss']) == pytest.approx(float(sum(losses)), rel=1e-5)
  assert float(metrics['rollouts/loss']) == pytest.approx(float(losses[1]), rel=1e-4)
  assert float(metrics['prompts']) == 5.5


def test_without_rollouts_there_is_the_first_part_alone(source):
  batch = source.next(world.start(SETTING))
  alone = batching.only(batch, np.ones(6, bool)).data
  update = joint.build_step(world.POLICY, joint.Objectives(GIVEN, DRAWN), TX, rows.Layout())
  _, metrics = jax.eval_shape(update, first_state(), world.FROZEN, alone)
  assert not any(name.startswith('rollouts/') for name in metrics)


def test_the_position_is_that_of_both(source, pairs):
  states = [dataclasses.replace(world.start(SETTING), step=jnp.asarray(done, jnp.int32)) for done in range(4)]
  for now in states[:3]:
    source.next(now)
  position, expected = source.get_state(), source.next(states[3])
  again = joint.JointSource(Data(pairs), world.source_of(SETTING, source.drawn.rollouts))
  again.set_state(position)
  found = again.next(states[3])
  jax.tree.map(np.testing.assert_array_equal, found.data, expected.data)


def test_only_one_of_the_objectives_can_have_a_memory():
  remembering = objectives.beta_dpo()
  assert remembering.memory.initial
  with pytest.raises(ValueError, match=r'beta_dpo.* keeps a memory'):
    joint.build_step(world.POLICY, joint.Objectives(GIVEN, remembering), TX, rows.Layout())
