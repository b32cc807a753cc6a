"""What is kept of a task vector: exact counts, expectations, and independence of blocks and places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import merging
from alignjax.merging import base as base_lib
from alignjax.parallel import mesh as mesh_lib
from tests import quick
from tests.merging import worlds
from tests.oracles import merging as oracle

BASE, MODELS = worlds.family(2)


def thin(method, delta, name='w', dtype=jnp.float32):
  """What is left of one task vector."""
  delta = jnp.asarray(delta, dtype)
  return np.asarray(merging.merge(method, [{name: delta}], {name: jnp.zeros_like(delta)})[name])


def random_delta(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
  'density', [0.001, 0.29, 0.999, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.013, 0.5, 1.0))]
)
def test_trimming_keeps_exactly_the_largest(density):
  delta = random_delta((50, 20)) * np.float32(1e-3)
  kept = thin(merging.ties(density), delta)
  wanted = max(1, int(density * delta.size))
  assert np.count_nonzero(kept) == wanted
  dropped = np.abs(delta[kept == 0])
  assert dropped.size == 0 or np.abs(kept[kept != 0]).min() >= dropped.max()
  np.testing.assert_array_equal(kept[kept != 0], delta[kept != 0])


def test_trimming_spans_all_magnitudes():
  delta = np.float32(10.0) ** np.linspace(-37, 38, 76, dtype=np.float32) * np.where(np.arange(76) % 2, 1, -1)
  for count in (1, 7, 40, 75):
    kept = thin(merging.ties(count / 76 + 1e-9), delta)
    assert np.flatnonzero(kept).tolist() == list(range(76 - count, 76))


def tied_deltas():
  rng = np.random.default_rng(3)
  yield 'few values', np.round(2 * rng.standard_normal((30, 20)))
  yield 'equal', np.where(rng.random((30, 20)) < 0.5, 0.5, -0.5)
  yield 'zeros', np.zeros((30, 20))
  yield 'bfloat16', np.asarray(jnp.asarray(rng.standard_normal((30, 20)), jnp.bfloat16), np.float32)


@pytest.mark.parametrize('delta', quick.named(dict(tied_deltas()), ('few values',)))
def test_the_number_kept_is_exact_where_magnitudes_tie(delta):
  """Each of two models against sorting by (magnitude, order), at once and in blocks of rows."""
  both = [delta.astype(np.float32), delta[::-1].astype(np.float32)]
  key = base_lib.draw_key(0, 'w')
  words = [np.asarray(jax.random.key_data(jax.random.fold_in(key, model))) for model in range(2)]
  base = np.zeros_like(both[0])
  for density in (0.0001, 0.05):
    for method, dropped in ((merging.ties(density, normalize=False), 0), (merging.breadcrumbs(density, 0.1), 60)):
      places = [oracle.places(each, of_model) for each, of_model in zip(both, words, strict=True)]
      kept = [(place >= dropped) & (place < dropped + max(1, int(density * 600))) for place in places]
      for model in range(2):
        weights = [1.0, 0.0] if model == 0 else [0.0, 1.0]
        found = worlds.in_blocks(method, 'w', both, base, weights, rows=7 if model else 30)
        np.testing.assert_array_equal(found, np.where(kept[model], both[model], 0.0))


@pytest.mark.parametrize(('tied', 'passes'), [(False, 3), (True, 4)])
def test_a_tensor_without_ties_is_not_read_for_them(tied, passes):
  """Two passes find the magnitude and one merges; here one more orders the ties, as their first 16 bits differ."""
  delta, read = random_delta((6, 5)), []
  delta = np.sign(delta) if tied else delta

  def blocks():
    read.append(1)
    yield base_lib.Block(np.zeros_like(delta), (delta,))

  list(merging.ties(0.4).run(base_lib.Tensor('w', 6, 5, blocks), 1))
  assert len(read) == passes


def test_at_least_one_entry_is_kept():
  np.testing.assert_array_equal(thin(merging.ties(0.01), [1.0, -3.0, 2.0]), [0.0, -3.0, 0.0])


def test_trimming_is_idempotent_and_scales():
  delta = random_delta((30, 10))
  kept = thin(merging.ties(0.3), delta)
  np.testing.assert_array_equal(thin(merging.ties(0.3), kept), kept)
  np.testing.assert_array_equal(thin(merging.ties(0.3), 8 * delta), 8 * kept)


@pytest.mark.parametrize(('density', 'gamma', 'largest'), [(0.6, 0.1, 10), (0.6, 0.0, 0), (0.95, 0.2, 5)])
def test_breadcrumbs_drop_the_largest_and_the_smallest(density, gamma, largest):
  delta = random_delta(100)
  kept = thin(merging.breadcrumbs(density, gamma), delta)
  order = np.argsort(-np.abs(delta))
  assert set(np.flatnonzero(kept)) == set(order[largest : largest + int(density * 100)])


def test_dare_keeps_the_expectation():
  delta = random_delta((1, 8))
  stacked = thin(merging.dare(0.3), np.tile(delta, (4000, 1)))  # each row has draws of its own
  np.testing.assert_allclose(stacked.mean(0), delta[0], atol=4 * 0.025 * np.abs(delta).max())
  np.testing.assert_allclose(stacked.var(0), (1 / 0.3 - 1) * delta[0] ** 2, rtol=0.12)
  share = np.count_nonzero(stacked) / stacked.size
  assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / stacked.size)
  np.testing.assert_allclose(stacked[stacked != 0], np.tile(delta / 0.3, (4000, 1))[stacked != 0], rtol=1e-5)


def test_without_rescaling_the_expectation_shrinks():
  kept = thin(merging.dare(0.3, rescale='none'), np.ones((200, 100)))
  assert set(np.unique(kept)) == {0.0, 1.0}
  assert abs(kept.mean() - 0.3) < 0.015


@pytest.mark.parametrize('method', quick.first(1, [merging.dare(0.4, rescale='l1'), merging.della(0.4, rescale='l1')]))
def test_l1_rescaling_keeps_the_norm_of_each_tensor(method):
  delta = random_delta((40, 25))
  kept = thin(method, delta)
  assert 300 < np.count_nonzero(kept) < 500
  np.testing.assert_allclose(np.abs(kept).sum(), np.abs(delta).sum(), rtol=1e-5)
  ratio = kept[kept != 0] / delta[kept != 0]
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_l1_rescaling_leaves_what_vanishes():
  delta = np.full((4, 4), 1e-10, np.float32)
  kept = thin(merging.dare(0.5, rescale='l1'), delta)
  assert set(np.unique(kept)) == {np.float32(0), np.float32(1e-10)}


def test_della_prefers_large_entries_and_keeps_the_mean():
  row = np.array([0.1, -0.5, 0.3, 2.0, -1.0], np.float32)
  probability = oracle.keep_probability(row, 0.5, 0.3)
  np.testing.assert_allclose(probability, [0.2, 0.5, 0.35, 0.8, 0.65])
  tiled = np.tile(row, (5000, 1))
  kept = thin(merging.della(0.5, 0.3, consensus='linear', normalize=False), tiled)
  np.testing.assert_allclose((kept != 0).mean(0), probability, atol=4 * np.sqrt(0.25 / 5000))
  assert abs((kept != 0).mean() - 0.5) < 0.015
  np.testing.assert_allclose(kept.mean(0), row, atol=0.12)
  np.testing.assert_allclose(kept[kept != 0], (tiled / probability)[kept != 0], rtol=1e-5)


@pytest.mark.slow  # offline_test.py compares della with its oracle
def test_della_with_density_one_or_one_column():
  delta = random_delta((6, 5))
  np.testing.assert_array_equal(thin(merging.della(1.0), delta), delta)
  column = thin(merging.della(0.5, 0.3, rescale='none'), np.ones((4000, 1)))
  assert abs(column.mean() - 0.5) < 4 * np.sqrt(0.25 / 4000)


def test_draws_depend_on_seed_name_and_model():
  delta = np.ones((30, 30), np.float32)
  first = thin(merging.dare(0.5), delta)
  np.testing.assert_array_equal(first, thin(merging.dare(0.5), delta))
  assert (first != thin(merging.dare(0.5, seed=1), delta)).mean() > 0.4
  assert (first != thin(merging.dare(0.5), delta, name='v')).mean() > 0.4
  assert (first[0] != first[1]).mean() > 0.2
  both = merging.merge(merging.dare(0.5), [{'w': delta}, {'w': 3 * delta}], {'w': 0 * delta})
  assert len(np.unique(both['w'])) == 4  # kept by neither, by one, by the other, by both


def test_draws_do_not_depend_on_the_other_tensors():
  base, *models = ({name: params[name] for name in ('embed', 'scale')} for params in (BASE, *MODELS))
  method = merging.dare(0.5)
  whole = merging.merge(method, models, base)
  alone = merging.merge(method, [{'scale': model['scale']} for model in models], {'scale': base['scale']})
  np.testing.assert_array_equal(whole['scale'], alone['scale'])


METHODS = [
  merging.linear(),
  merging.slerp(0.3),
  merging.task_arithmetic(),
  merging.ties(0.3),
  merging.dare(0.5, rescale='inverse'),
  merging.dare(0.5, rescale='l1', consensus='ties'),
  merging.breadcrumbs(0.6, 0.1),
  merging.della(0.5, 0.2),
  merging.della(0.5, 0.2, rescale='l1'),
  merging.model_stock(),
]
RANKED = (merging.della(0.5, 0.2, rescale='l1'), merging.slerp(0.3), merging.ties(0.3))


# Quick: one that draws, ranks along rows and rescales; a threshold is found in blocks of rows above.
VARIED = METHODS[8]
EACH = [pytest.param(method, marks=() if method is VARIED else pytest.mark.slow) for method in METHODS]


@pytest.mark.parametrize('method', EACH, ids=[str(method) for method in METHODS])
def test_blocks_of_rows_give_what_the_whole_tensor_gives(method):
  base, models = worlds.family(2)
  alike = worlds.tree(20, 0.3)
  base, *models = (
    {'embed': params['embed'], 'layers': params['layers']}
    for params in (base, *(jax.tree.map(np.add, model, alike) for model in models))
  )
  origin = base if method.needs_base else None
  merged = worlds.leaves(merging.merge(method, models, origin))
  for name, rows in (('embed', 7), ('layers/attention', 7)):
    parts = [worlds.leaves(model)[name] for model in models]
    last = None if origin is None else worlds.leaves(origin)[name]
    blocks = worlds.in_blocks(method, name, parts, last, rows=rows)
    np.testing.assert_allclose(blocks, merged[name], rtol=1e-6, atol=5e-6, err_msg=name)


ROWS, COLUMNS = jax.sharding.PartitionSpec('fsdp'), jax.sharding.PartitionSpec(None, 'fsdp')


# Sharded columns for methods that rank or sum along a row; what the others do is the same for each entry.
@pytest.mark.parametrize(
  ('spec', 'method'),
  [
    *((COLUMNS, method) for method in METHODS if method in RANKED),
    *(pytest.param(ROWS, method, marks=() if method is VARIED else pytest.mark.slow) for method in METHODS),
    *(pytest.param(COLUMNS, method, marks=pytest.mark.slow) for method in METHODS if method not in RANKED),
  ],
  ids=str,
)
def test_shardings_do_not_matter(method, spec):
  delta = [random_delta((16, 24), seed) for seed in range(3)]
  base, models = delta[2], [delta[0] + 0.5 * delta[2], delta[1] + 0.5 * delta[2]]
  sharding = jax.sharding.NamedSharding(mesh_lib.make_mesh(), spec)

  def run(place):
    origin = {'w': place(base)} if method.needs_base else None
    return np.asarray(merging.merge(method, [{'w': place(model)} for model in models], origin)['w'])

  one, eight = run(jnp.asarray), run(lambda array: jax.device_put(array, sharding))
  np.testing.assert_allclose(eight, one, rtol=1e-6, atol=5e-6)  # norms are summed in another order
