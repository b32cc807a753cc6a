"""Sources that read data, that look at the policy, and that mix both: the loop resumes all of them bit for bit."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.data.batches import batching, order
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import checkpoint, loop, placement, source
from alignjax.training import state as state_lib
from alignjax.types import PreferenceBatch

MESH = mesh_lib.make_mesh(devices=jax.devices()[:1])
TX = optax.adam(1e-1)
ROWS = 4


def make_batch(index: int, label: float = 1.0) -> batching.Batch:
  """A batch whose tokens are its number."""
  data = PreferenceBatch(
    prompt=np.full((ROWS, 2), index, np.int32),
    prompt_length=np.full(ROWS, 2, np.int32),
    response=np.zeros((ROWS, 2, 2), np.int32),
    response_length=np.full((ROWS, 2), 2, np.int32),
    label=np.full(ROWS, label, np.float32),
    weight=np.ones(ROWS, np.float32),
  )
  return batching.Batch(data, np.r_[10 * index + np.arange(ROWS - 1), order.PADDING_ID])


def make_grain() -> source.GrainSource:
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return source.GrainSource(iter(grain.MapDataset.range(10**6).map(make_batch).to_iter_dataset(options)))


class FromPolicy:
  """Labels its batches by the parameters and the step of the state that they will update."""

  on_policy = True

  def __init__(self):
    self.drawn = 0

  def next(self, state: state_lib.TrainState) -> batching.Batch:
    self.drawn += 1
    label = np.tanh(np.mean(state.params['embed']['embedding'])) + 0.1 * float(state.step)
    return make_batch(1000 + self.drawn, label)

  def get_state(self):
    return {'drawn': self.drawn}

  def set_state(self, state):
    self.drawn = state['drawn']


def make_mixed() -> source.Mixed:
  return source.Mixed([make_grain(), FromPolicy()], pattern=(0, 1, 1))


def step(state: state_lib.TrainState, frozen: state_lib.Frozen, batch: PreferenceBatch):
  """Pulls the parameters towards a number that tokens and labels choose."""
  del frozen

  def loss_of(params):
    return jnp.mean((params['embed']['embedding'] - jnp.sin(batch.prompt[0, 0]) - batch.label[0]) ** 2)

  loss, gradient = jax.value_and_grad(loss_of)(state.params)
  updates, opt_state = TX.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  values = {'loss': loss, 'gradient_norm': optax.tree.norm(gradient), 'label': batch.label[0]}
  return state_lib.TrainState(state.step + 1, params, opt_state, state.key), values


class Recorder:
  def __init__(self):
    self.records = []

  def write(self, step, values):
    self.records.append({'step': step} | {name: v for name, v in values.items() if not name.startswith('time/')})

  def close(self):
    pass


def make_state() -> state_lib.TrainState:
  params = {'embed': {'embedding': np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)}}
  return placement.create_state(
    MESH, jax.device_put(params, rules.param_shardings(MESH, params)), TX, jax.random.key(0)
  )


def run(batches: source.Source, steps: int, state=None, saving=None) -> tuple[bytes, list]:
  recorder = Recorder()
  training = loop.Training(step, state_lib.Frozen(), MESH, steps)
  state = make_state() if state is None else state
  result = loop.train(state, batches, training, log=loop.Logging([recorder]), saving=saving)
  return np.asarray(result.state.params['embed']['embedding']).tobytes(), recorder.records


def test_the_metrics_of_an_update_are_written_before_the_policy_draws_the_next_batch():
  recorder, written = Recorder(), []

  class Watching(FromPolicy):
    def next(self, state):
      written.append(len(recorder.records))
      return super().next(state)

  training = loop.Training(step, state_lib.Frozen(), MESH, 3)
  loop.train(make_state(), Watching(), training, log=loop.Logging([recorder]))
  assert written == [0, 1, 2]


@pytest.mark.parametrize('make', [FromPolicy, make_mixed])
def test_a_source_that_looks_at_the_policy_resumes_bit_for_bit(tmp_path, make):
  whole, expected = run(make(), 7)
  assert len({record['label'] for record in expected}) > 3
  settings = {'folder': tmp_path / 'c', 'config': {}, 'identity': {}}
  with checkpoint.Checkpoints(**settings) as checkpoints:
    _, first = run(make(), 4, saving=loop.Saving(checkpoints))
  with checkpoint.Checkpoints(**settings) as checkpoints:
    batches = make()
    restored = checkpoints.restore(make_state(), batches)
    resumed, second = run(batches, 7, restored.state)
  assert first + second == expected
  assert resumed == whole
  assert batches.get_state() == json.loads(json.dumps(batches.get_state()))


def test_the_position_of_a_source_is_a_json_file(tmp_path):
  batches = make_mixed()
  for _ in range(2):
    batches.next(make_state())
  with checkpoint.Checkpoints(tmp_path / 'c', config={}, identity={}) as checkpoints:
    checkpoints.save(2, make_state(), batches)
  saved = json.loads((tmp_path / 'c' / '2' / 'data' / 'process_0-of-1.json').read_text())
  assert saved == {'taken': 2, 'sources': [{'next_index': 1}, {'drawn': 1}]}


def test_mixed_follows_its_pattern_and_keeps_ids_apart():
  batches, state = make_mixed(), make_state()
  drawn = [batches.next(state) for _ in range(7)]
  numbers = [int(batch.data.prompt[0, 0]) for batch in drawn]
  assert numbers == [0, 1001, 1002, 1, 1003, 1004, 2]
  for batch, number in zip(drawn, numbers, strict=True):
    expected = [(int(number > 1000), 10 * number + row) for row in range(ROWS - 1)]
    assert [batches.locate(int(i)) for i in batch.ids[:-1]] == expected
    assert batch.ids[-1] == order.PADDING_ID
  assert len({int(i) for batch in drawn for i in batch.ids}) == 7 * (ROWS - 1) + 1


def test_mixed_is_on_policy_only_if_every_source_is():
  assert source.Mixed([FromPolicy(), FromPolicy()], (0, 1)).on_policy
  assert not make_grain().on_policy
  assert not make_mixed().on_policy


@pytest.mark.parametrize('pattern', [(), (0, 2), (-1,)])
def test_mixed_refuses_a_pattern_of_sources_that_it_does_not_have(pattern):
  with pytest.raises(ValueError, match='from 0 to 1'):
    source.Mixed([FromPolicy(), FromPolicy()], pattern)
