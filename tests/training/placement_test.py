"""Where states and batches live."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import optim
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import placement

PARAMS = {'embed': {'embedding': np.ones((16, 8), np.float32)}, 'final_norm': {'scale': np.ones(8, np.float32)}}
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def test_state_is_made_in_place_and_abstractly_alike():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  params = jax.device_put(PARAMS, rules.param_shardings(mesh, PARAMS))
  key = jax.random.key(3, impl='rbg')
  state = placement.create_state(mesh, params, TX, key)
  abstract = placement.abstract_state(mesh, PARAMS, TX, key)
  assert jax.tree.structure(state) == jax.tree.structure(abstract)
  for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)
  moments = state.opt_state[1][0].mu['embed']['embedding']
  assert moments.sharding == params['embed']['embedding'].sharding
  assert moments.addressable_shards[0].data.shape == (8, 4)
  assert state.key.sharding.is_fully_replicated
  assert (jax.random.key_data(state.key) == jax.random.key_data(key)).all()
  assert int(state.step) == 0


LABELS = {'embed': {'embedding': 'wide'}, 'final_norm': {'scale': 'narrow'}}


@pytest.mark.parametrize(
  'tx',
  [
    optax.adam(1e-3),
    optax.masked(optax.adam(1e-3), {'embed': True, 'final_norm': False}),
    optax.multi_transform({'wide': optax.adam(1e-3), 'narrow': optax.sgd(1e-3)}, LABELS),
    optax.adafactor(1e-3, min_dim_size_to_factor=9),  # too small to be factored: moments of the size of the weights
    optim.moving_average(),
    optax.masked(optim.online_ties(0.5, 0.1, every=2), {'embed': True, 'final_norm': False}),
  ],
  ids=['whole', 'masked', 'labelled', 'adafactor', 'average', 'masked merge'],
)
def test_moments_live_with_their_parameters_and_the_rest_on_every_device(tx):
  mesh = mesh_lib.make_mesh(2, 2, 2)
  places = placement.abstract_state(mesh, PARAMS, tx, jax.random.key(0))
  wide = places.params['embed']['embedding'].sharding
  found = [leaf.sharding for leaf in jax.tree.leaves(places.opt_state) if leaf.shape == (16, 8)]
  assert found
  assert set(found) == {wide}
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(places.opt_state) if leaf.shape != (16, 8))
  params = jax.device_put(PARAMS, rules.param_shardings(mesh, PARAMS))
  state = placement.create_state(mesh, params, tx, jax.random.key(0))
  assert all(
    leaf.sharding == place.sharding for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
  )


def test_factored_moments_live_on_every_device():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  places = placement.abstract_state(mesh, PARAMS, optax.adafactor(1e-3, min_dim_size_to_factor=8), jax.random.key(0))
  leaves = jax.tree.leaves(places.opt_state)
  assert {leaf.shape for leaf in leaves} == {(), (1,), (8,), (16,)}
  assert all(leaf.sharding.is_fully_replicated for leaf in leaves)


INTERLEAVED = (0, 4, 1, 5, 2, 6, 3, 7)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize('order', [range(8), INTERLEAVED], ids=['plain', 'interleaved'])
def test_global_arrays_keep_the_order_of_rows(shape, order):
  mesh = mesh_lib.make_mesh(*shape, devices=[jax.devices()[i] for i in order])
  assert mesh_lib.batch_shards_of(mesh) == (tuple(range(shape[0] * shape[1])), shape[0] * shape[1])
  rows = {'tokens': np.arange(48).reshape(16, 3), 'none': None}
  joined = placement.to_global(mesh, rows)
  assert joined['none'] is None
  np.testing.assert_array_equal(joined['tokens'], rows['tokens'])
  assert joined['tokens'].sharding == rules.batch_sharding(mesh)
  assert isinstance(joined['tokens'], jnp.ndarray)


def test_a_process_places_the_rows_of_the_shards_that_it_holds(monkeypatch):
  monkeypatch.setattr(mesh_lib, 'batch_shards_of', lambda mesh: ((1, 3), 4))
  held = [(slice(2 * shard, 2 * shard + 2), slice(None)) for shard in (3, 1)]
  monkeypatch.setattr(jax, 'make_array_from_callback', lambda shape, _, data: (shape, [data(index) for index in held]))
  rows = np.asarray([[2], [3], [6], [7]])
  shape, (last, first) = placement.to_global(mesh_lib.make_mesh(4, 1, 2), rows)
  assert shape == (8, 1)
  assert (first.ravel().tolist(), last.ravel().tolist()) == ([2, 3], [6, 7])


@pytest.mark.parametrize('count', [6, 12])
def test_rows_that_do_not_divide_among_the_shards_are_refused(count):
  with pytest.raises(ValueError, match=f'{count} rows do not divide among the 8 batch shards'):
    placement.to_global(mesh_lib.make_mesh(), np.zeros((count, 2)))


def test_online_merging_fetches_tau_from_the_memory_of_the_host():
  mesh, tx = mesh_lib.make_mesh(2, 2, 2), optim.online_dare(0.5, 0.25)
  shardings = rules.param_shardings(mesh, PARAMS)
  params = jax.device_put(PARAMS, shardings)
  near, far = (jax.device_put(params, places) for places in (shardings, placement.in_host_memory(shardings)))
  assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(far)} == {'pinned_host'}
  assert far['embed']['embedding'].sharding.spec == near['embed']['embedding'].sharding.spec
  update = jax.jit(lambda tau: tx.update(params, tx.init(params), params, reference_delta=tau)[0])
  for x, y in zip(jax.tree.leaves(update(far)), jax.tree.leaves(update(near)), strict=True):
    np.testing.assert_array_equal(x, y)
