"""Tests of the reference cache: it returns what was written, or names the damaged file."""

import json
import os

import ml_dtypes
import numpy as np
import pytest

from alignjax.data.batches import batching, reference_cache
from alignjax.data.tokens import dataset

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


def write(root, data, batches=((2, -1, 0), (1, 3))):
  with reference_cache.writing(root, identity_of(data), data) as writer:
    for ids in batches:
      rows = [values_of(max(index, 0)) for index in ids]
      writer.write(ids, {name: np.stack([row[name] for row in rows]) for name in COLUMNS})
  return reference_cache.folder_of(root, identity_of(data))


def opened(root, data):
  return reference_cache.ReferenceCache(root, identity_of(data), data)


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
  assert reference_cache.folder_of(tmp_path, identity_of(data)) == folder
  assert reference_cache.folder_of(tmp_path, identity_of(other, **changed)) != folder


def flip(path):
  content = bytearray(path.read_bytes())
  content[-3] ^= 1
  path.write_bytes(bytes(content))


def cut(path):
  path.write_bytes(path.read_bytes()[:-5])


def rename_identity(path):
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(fields | {'reference': 'another'}))


def spoil_header(path):
  path.write_bytes(path.read_bytes().replace(b"'descr'", b"'de\0cr'"))


def replace_by_pipe(path):
  path.unlink()
  os.mkfifo(path)


@pytest.mark.parametrize(
  ('name', 'damage', 'text'),
  [
    ('identity.json', lambda path: path.unlink(), 'is missing, so the cache is incomplete'),
    ('identity.json', cut, 'identity.json: is not readable'),
    ('identity.json', rename_identity, 'belongs to a different cache \\(reference differs\\)'),
    ('identity.json', lambda path: path.write_text('[' * 100_000), 'identity.json: is not readable'),
    ('identity.json', lambda path: path.write_text('[]'), 'must hold a JSON object'),
    (
      'reference_logp.npy',
      lambda path: path.write_bytes(b''),
      'reference_logp.npy: is missing, truncated or not an arr',
    ),
    ('reference_logp.npy', spoil_header, 'reference_logp.npy: is missing, truncated or not an array'),
    ('reference_logp.npy', replace_by_pipe, 'is a pipe or a device'),
    ('reference_logp.npy', lambda path: path.unlink(), 'reference_logp.npy: is missing, truncated or not an array'),
    ('reference_logp.npy', cut, 'reference_logp.npy: is missing, truncated or not an array'),
    (
      'reference_states.npy',
      lambda path: np.save(path, np.zeros((19, 5), '<u2')),
      'is uint16 \\(19, 5\\), expected',
    ),
    ('reference_states.npy', flip, 'the values of a.jsonl:4 differ from what was written'),
    ('checksums.npy', flip, 'the values of a.jsonl:4 differ from what was written'),
  ],
)
def test_a_cache_that_is_not_as_it_was_written_is_refused_by_name(tmp_path, data, name, damage, text):
  folder = write(tmp_path, data)
  damage(folder / name)
  with pytest.raises(reference_cache.CacheError, match=text) as caught:
    read_all(tmp_path, data)
  assert str(folder / name) in str(caught.value) or 'checksums.npy' in str(caught.value)
  assert f'Delete the folder {folder}' in str(caught.value)


def test_an_unfinished_cache_leaves_nothing_behind(tmp_path, data):
  with pytest.raises(ValueError, match=r'1 examples are missing, the first is a\.jsonl:2'):
    write(tmp_path, data, batches=[(2, 0, 3)])
  with pytest.raises(ValueError, match=r'a\.jsonl:3: written twice'):
    write(tmp_path, data, batches=[(2, 0, 2)])
  assert not list(tmp_path.iterdir())


def test_a_reference_that_is_not_finite_is_named(tmp_path, data):
  values = {name: value[None] for name, value in values_of(0).items()}
  values['reference_logp'][0, 0, 0] = np.inf
  with reference_cache.writing(tmp_path, identity_of(data), data) as writer:
    with pytest.raises(ValueError, match=r'a\.jsonl:1: the reference computed a reference_logp that is not finite'):
      writer.write([0], values)
    for index in range(len(data)):
      writer.write([index], {name: value[None] for name, value in values_of(index).items()})


def test_two_that_make_the_same_cache_agree(tmp_path, data):
  with reference_cache.writing(tmp_path, identity_of(data), data) as writer:
    folder = write(tmp_path, data)
    for index in range(len(data)):
      writer.write([index], {name: value[None] for name, value in values_of(index).items()})
  assert list(tmp_path.iterdir()) == [folder]
  assert len(opened(tmp_path, data).read(0)) == 2
