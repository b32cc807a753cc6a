"""Tests of the reference cache: it returns what was written, or names the damaged file."""

import ml_dtypes
import numpy as np
import pytest

from alignjax.data.batches import batching, reference_cache
from alignjax.data.tokens import dataset
from tests import damage

LENGTHS = ((3, 1), (2, 4), (1, 1), (5, 2))
COLUMNS = {
  'reference_logp': reference_cache.Column((), 'float32'),
  'reference_states': reference_cache.Column((6,), 'bfloat16'),
}


@pytest.fixture
def data():
  rows = [
    dataset.TokenExample([1, 2, row + 1], [list(range(1, n + 1)) for n in lengths], path='a.jsonl', line=row + 1)
    for row, lengths in enumerate(LENGTHS)
  ]
  return dataset.pack(rows)


def identity_of(data, **changed):
  return reference_cache.identity(data, **{'reference': 'weights', 'columns': COLUMNS, 'compute_dtype': 'x'} | changed)


def values_of(index):
  """[N, R, ...] by column; what stands at padding must not matter, so it is not a number."""
  generator = np.random.default_rng(index)
  logp = generator.normal(size=(2, 6)).astype(np.float32)
  states = generator.normal(size=(2, 6, 6)).astype(ml_dtypes.bfloat16)
  for response, length in enumerate(LENGTHS[index]):
    logp[response, length:] = np.nan
    states[response, length:] = np.nan
  return {'reference_logp': logp, 'reference_states': states}


def at(root, data):
  return reference_cache.Location(root, identity_of(data), data)


def write_shard(root, data, ids, batches):
  with reference_cache.writing(at(root, data), np.array(ids)) as writer:
    for batch in batches:
      rows = [values_of(max(index, 0)) for index in batch]
      writer.write(batch, {name: np.stack([row[name] for row in rows]) for name in COLUMNS})
  return at(root, data).folder / reference_cache.shard_name(np.array(ids))


def write(root, data):
  """Two shards, whose rows come in any order."""
  write_shard(root, data, [0, 2], [(2, -1, 0)])
  write_shard(root, data, [1, 3], [(3,), (1,)])
  return at(root, data).folder


def opened(root, data):
  location = at(root, data)
  return reference_cache.ReferenceCache(location, reference_cache.sound(location))


def read_all(root, data):
  cache = opened(root, data)
  return [cache.read(index) for index in range(len(data))]


def test_every_pair_is_read_as_it_was_written_in_whatever_order(tmp_path, data):
  write(tmp_path, data)
  cache = opened(tmp_path, data)
  for index, lengths in enumerate(LENGTHS):
    expected = values_of(index)
    for name, responses in cache.read(index).items():
      assert [len(values) for values in responses] == list(lengths)
      for response, values in enumerate(responses):
        assert values.dtype == expected[name].dtype
        np.testing.assert_array_equal(values, expected[name][response, : lengths[response]])


def test_batches_carry_the_columns_of_their_rows_and_zeros_at_padding(tmp_path, data):
  write(tmp_path, data)
  spec = batching.BatchSpec(batch_size=3, epochs=1, buckets=[(4, 6)])
  batches = batching.make_batches(data, spec, cache=opened(tmp_path, data))
  seen = []
  for batch in batches:
    for row, index in enumerate(batch.ids):
      for name in COLUMNS:
        found = batch.data.cached[name][row]
        if index < 0:
          assert not found.astype(np.float32).any()
        for response in range(2 if index >= 0 else 0):
          length = LENGTHS[index][response]
          np.testing.assert_array_equal(found[response, :length], values_of(index)[name][response, :length])
          assert not found[response, length:].astype(np.float32).any()
      seen.append(int(index))
  assert sorted(seen) == [-1, -1, 0, 1, 2, 3]


@pytest.mark.parametrize('change', ['token', 'reference', 'columns', 'compute_dtype'])
def test_another_input_has_another_cache(tmp_path, data, change):
  folder = write(tmp_path, data)
  other = data
  changed = {}
  if change == 'token':
    rows = [data[index] for index in range(len(data))]
    other = dataset.pack([rows[0]._replace(prompt=[1, 2, 9]), *rows[1:]])
  else:
    changed = {change: {'logp': COLUMNS['reference_logp']} if change == 'columns' else 'other'}
  assert at(tmp_path, data).folder == folder
  assert reference_cache.Location(tmp_path, identity_of(other, **changed), other).folder != folder


@pytest.mark.parametrize('name', ['manifest.json', 'ids.npy', 'reference_logp.npy', 'checksums.npy'])
@pytest.mark.parametrize('kind', damage.KINDS)
def test_a_damaged_shard_is_named_and_removed_and_the_others_stay(tmp_path, data, name, kind, caplog):
  folder = write(tmp_path, data)
  shard = folder / reference_cache.shard_name(np.array([1, 3]))
  damage.KINDS[kind](shard / name)
  cache = opened(tmp_path, data)
  assert f'{shard / name}: ' in caplog.text
  assert 'computed again' in caplog.text
  assert not shard.exists()
  assert cache.missing.tolist() == [False, True, False, True]
  assert len(cache.read(2)) == 2
  with pytest.raises(KeyError, match=r'a\.jsonl:4 is not in'):
    cache.read(3)


def test_a_shard_of_another_cache_is_not_used(tmp_path, data, caplog):
  folder = write(tmp_path, data)
  assert not opened(tmp_path, data).missing.any()
  other = reference_cache.Location(tmp_path, identity_of(data, reference='other'), data)
  folder.rename(other.folder)
  assert reference_cache.sound(other) == []
  assert 'belongs to a different cache' in caplog.text


def test_damage_that_happens_later_is_found_when_the_example_is_read(tmp_path, data, monkeypatch):
  folder = write(tmp_path, data)
  monkeypatch.setattr(reference_cache, 'VERIFIED', 0)  # as for a cache too large to be read at every start
  shard = folder / reference_cache.shard_name(np.array([1, 3]))
  damage.flip(shard / 'reference_states.npy')
  cache = opened(tmp_path, data)
  assert len(cache.read(1)) == 2
  with pytest.raises(
    reference_cache.CacheError, match=r'the values of a.jsonl:4 differ from what was written'
  ) as caught:
    cache.read(3)
  assert str(shard) in str(caught.value)
  assert opened(tmp_path, data).missing.tolist() == [False, True, False, True]


def test_an_unfinished_shard_leaves_nothing_behind(tmp_path, data):
  with pytest.raises(ValueError, match=r'1 examples are missing, the first is a\.jsonl:2'):
    write_shard(tmp_path, data, [0, 1, 2, 3], [(2, 0, 3)])
  with pytest.raises(ValueError, match=r'a\.jsonl:3: written twice'):
    write_shard(tmp_path, data, [0, 2], [(2, 0, 2)])
  assert not list(at(tmp_path, data).folder.iterdir())


def test_a_reference_that_is_not_finite_is_named(tmp_path, data):
  values = {name: value[None] for name, value in values_of(0).items()}
  values['reference_logp'][0, 0, 0] = np.inf
  with reference_cache.writing(at(tmp_path, data), np.array([0])) as writer:
    with pytest.raises(ValueError, match=r'a\.jsonl:1: the reference computed a reference_logp that is not finite'):
      writer.write([0], values)
    writer.write([0], {name: value[None] for name, value in values_of(0).items()})


def test_two_that_write_the_same_shard_agree(tmp_path, data):
  with reference_cache.writing(at(tmp_path, data), np.array([0])) as writer:
    shard = write_shard(tmp_path, data, [0], [(0,)])
    writer.write([0], {name: value[None] for name, value in values_of(0).items()})
  assert list(at(tmp_path, data).folder.iterdir()) == [shard]
  assert len(opened(tmp_path, data).read(0)) == 2
