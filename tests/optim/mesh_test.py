"""The same parameters on 1 and 8 devices, and no tensor that is gathered for it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import optim
from alignjax.optim import counting
from alignjax.parallel import mesh as mesh_lib
from alignjax.training import state as state_lib
from tests.optim import runs

MERGES = {
  'dare': optim.online_dare(0.3, 0.25),
  'fixed': optim.online_dare(0.3, 0.25, mask='fixed', rescale='inverse'),
  'ties': optim.online_ties(0.1, 0.25),
  'ties every 2': optim.online_ties(0.1, 0.25, elect='raw', every=2),
  'l1': optim.online_ties(0.1, 0.25, rescale='l1'),
}
SHAPES = ((2, 2, 2), (1, 8, 1), (1, 1, 8))
GATHER = re.compile(r'= .*?(all-gather|all-to-all|collective-permute|sort|gather)(?:-start)?\(')


def program(tx, mesh, params=runs.PARAMS):
  """A jitted update on a mesh, with everything placed as the training step has it; and its placed arguments."""
  state = state_lib.TrainState.create(params, tx, jax.random.key(0))
  places = state_lib.shardings(mesh, state)

  def update(gradient, state, params, tau):
    updates, state = tx.update(gradient, state, params, reference_delta=tau)
    return optax.apply_updates(params, updates), state

  step = jax.jit(update, out_shardings=(places.params, places.opt_state))

  def place(tree):
    return jax.device_put(tree, places.params)

  return step, place, jax.device_put(state.opt_state, places.opt_state)


def steps_on(tx, shape):
  step, place, state = program(tx, mesh_lib.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)]))
  params, tau = place(runs.PARAMS), place(runs.TAU)
  for gradient in runs.STREAM[:4]:
    params, state = step(place(gradient), state, params, tau)
  return params, state


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('l1', (2, 2, 2)),  # it finds thresholds, as 'ties' does; random_bits_test has the draws of 'dare'
    *(pytest.param(name, (2, 2, 2), marks=pytest.mark.slow) for name in MERGES if name != 'l1'),
    *(pytest.param(name, (1, 8, 1), marks=pytest.mark.slow) for name in MERGES),
  ],
)
def test_one_and_eight_devices_agree(name, shape):
  """Bit for bit, but for float32 sums, of rescale='l1' and of metrics, and where in a gap a threshold lies."""
  tx = optax.chain(optax.adam(1e-2), MERGES[name])
  params, state = steps_on(tx, (1, 1, 1))
  others, other_state = steps_on(tx, shape)
  assert not others['layers']['up']['kernel'].sharding.is_fully_replicated
  if name == 'l1':
    runs.assert_close(others, params, rtol=0, atol=3e-7)
  else:
    runs.assert_equal(others, params)
    exact = [one._replace(metrics={}, cuts=()) for one in (other_state[1], state[1])]
    runs.assert_equal(*exact)
  runs.assert_close(other_state[1].metrics, state[1].metrics, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'shape'),  # the program of l1 contains that of ties
  [
    ('l1', (1, 8, 1)),
    pytest.param('dare', (2, 2, 2), marks=pytest.mark.slow),
    *(pytest.param('l1', shape, marks=pytest.mark.slow) for shape in SHAPES if shape != (1, 8, 1)),
    pytest.param('ties', (2, 2, 2), marks=pytest.mark.slow),
    *(pytest.param(name, shape, marks=pytest.mark.slow) for name in ('dare', 'ties') for shape in SHAPES[1:]),
  ],
)
def test_no_tensor_is_gathered_or_sorted(name, shape, monkeypatch):
  monkeypatch.setattr(counting, '_CACHED', 384)  # small tensors, counted in parts as large ones are
  tx = optax.chain(optax.adam(1e-2), MERGES[name])
  params = {'embed': {'embedding': jnp.ones((128, 8))}, 'layers': {'up': {'kernel': jnp.ones((2, 64, 24))}}}
  step, place, state = program(tx, mesh_lib.make_mesh(*shape), params)
  text = step.lower(place(params), state, place(params), place(params)).compile().as_text()
  divided = [counting._division(leaf.shape, range(leaf.ndim)) for leaf in jax.tree.leaves(params)]
  assert None not in divided
  assert ' while(' in text  # over these parts
  assert [line.strip()[:150] for line in text.splitlines() if GATHER.search(line)] == []
  assert 'all-reduce' in text  # of counts, and of sums


def test_a_sort_would_be_seen():
  mesh = mesh_lib.make_mesh(1, 8, 1)
  rows = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, jax.P('fsdp')))
  text = jax.jit(lambda x: jnp.sort(jnp.abs(x).ravel())[-3]).lower(rows).compile().as_text()
  found = {match.group(1) for match in map(GATHER.search, text.splitlines()) if match}
  assert 'sort' in found
  assert found & {'all-gather', 'all-to-all', 'collective-permute'}
