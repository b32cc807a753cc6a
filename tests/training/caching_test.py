"""The pass that fills a reference cache: shards, interruptions, other batches, and two processes."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from alignjax import storage
from alignjax.data.batches import batching, reference_cache
from alignjax.data.tokens import dataset
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import caching, rows
from tests.training import caching_kills

COUNT = 61
COLUMNS = {'reference_logp': reference_cache.Column((), 'float32')}
MESH = parallel_mesh.make_mesh()
SHARDING = rules.batch_sharding(MESH)


class KilledError(Exception):
  pass


@pytest.fixture(scope='module')
def data():
  draw = np.random.default_rng(0)
  examples = [
    dataset.TokenExample(
      draw.integers(1, 99, draw.integers(1, 9)).tolist(),
      [draw.integers(1, 99, draw.integers(1, 9)).tolist() for _ in range(2)],
      line=i,
    )
    for i in range(COUNT)
  ]
  return dataset.pack(examples)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Shards of 16 examples, and a reference without a model: the square root of each token id."""
  monkeypatch.setattr(caching, 'SHARD', 16)

  def program(columns, reference, announce):
    return lambda params, batch: {'reference_logp': jax.device_put(np.sqrt(np.asarray(batch.response)), SHARDING)}

  monkeypatch.setattr(caching, '_program', program)


def location_of(root, data):
  return reference_cache.Location(root, reference_cache.identity(data, 'weights', COLUMNS), data)


def complete(root, data, batch_size=8, buckets=((4, 8), (8, 8))):
  batches = batching.make_batches(
    data, batching.BatchSpec(batch_size, epochs=1, buckets=buckets, shuffle=False), batching.Share(tuple(range(8)), 8)
  )
  run = caching.ReferenceRun(None, None, frozenset(), rows.Layout(mesh=MESH))
  return caching.complete(location_of(root, data), batches, lambda: run, lambda text: None)


def contents(root):
  return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def values(cache, data):
  return [np.concatenate(cache.read(index)['reference_logp']) for index in range(len(data))]


def check(cache, data):
  for index, found in enumerate(values(cache, data)):
    expected = np.sqrt(np.concatenate(data[index].responses).astype(np.float32))
    np.testing.assert_array_equal(found, expected)


def test_every_example_is_in_one_shard_of_the_size_that_was_asked_for(tmp_path, data):
  cache = complete(tmp_path, data)
  check(cache, data)
  held = [np.load(path) for path in cache.folder.glob('*/ids.npy')]
  assert sorted(np.concatenate(held)) == list(range(COUNT))
  assert max(map(len, held)) == 16
  assert all((np.diff(ids) > 0).all() for ids in held)


def stop_at(patch, number, error):
  """Raises at the n-th batch that is written."""
  calls, write = [], reference_cache.Writer.write

  def stopping(writer, ids, values):
    calls.append(sorted(int(index) for index in ids if index >= 0))
    if len(calls) == number:
      raise error
    write(writer, ids, values)

  patch.setattr(reference_cache.Writer, 'write', stopping)
  return calls


def test_a_pass_that_is_interrupted_anywhere_goes_on_after_its_last_shard(tmp_path, data, monkeypatch):
  complete(tmp_path / 'whole', data)
  steps = len(stop_all(tmp_path / 'count', data, monkeypatch))
  for number in range(1, steps + 1):
    root = tmp_path / str(number)
    with monkeypatch.context() as patch:
      first = stop_at(patch, number, KilledError())
      with pytest.raises(KilledError):
        complete(root, data)
    kept = {int(i) for path in root.rglob('ids.npy') for i in np.load(path)}
    with monkeypatch.context() as patch:
      second = stop_at(patch, 0, KilledError())
      complete(root, data)
    assert contents(root) == contents(tmp_path / 'whole')
    assert {i for batch in first[:-1] for i in batch} >= kept
    assert sorted(i for batch in second for i in batch) == sorted(set(range(COUNT)) - kept)  # no shard twice


def stop_all(root, data, monkeypatch):
  with monkeypatch.context() as patch:
    calls = stop_at(patch, 0, KilledError())
    complete(root, data)
  return calls


def test_what_a_killed_process_has_left_is_removed(tmp_path, data):
  folder = location_of(tmp_path, data).folder
  (folder / f'.0000000000-abc.1-2{storage.PARTIAL}').mkdir(parents=True)
  (tmp_path / f'.{folder.name}.lock').touch()
  complete(tmp_path, data)
  assert not list(tmp_path.rglob('.*'))


def test_other_batches_complete_a_cache_that_was_begun(tmp_path, data, monkeypatch):
  with monkeypatch.context() as patch:
    stop_at(patch, 4, KilledError())
    with pytest.raises(KilledError):
      complete(tmp_path, data)
  assert list(tmp_path.rglob('ids.npy'))
  cache = complete(tmp_path, data, batch_size=16, buckets=((8, 8),))
  check(cache, data)
  held = np.concatenate([np.load(path) for path in cache.folder.glob('*/ids.npy')])
  assert sorted(held) == list(range(COUNT))


def test_a_complete_cache_is_opened_without_a_lock_and_without_a_reference(tmp_path, data, monkeypatch):
  complete(tmp_path, data)
  monkeypatch.setattr(storage, 'locked', None)
  monkeypatch.setattr(caching, 'compute', None)
  check(complete(tmp_path, data), data)


@pytest.mark.parametrize('writers', [[0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3], [0, 0, 2, 2, 0, 0, 2, 2]])
def test_processes_write_disjoint_shards_that_hold_everything(data, writers):
  batches = batching.make_batches(data, batching.BatchSpec(16, epochs=1, buckets=((8, 8),), shuffle=False))
  steps = range(batches.steps)
  held = [caching.examples_of(batches.plan, steps, writers, process) for process in range(4)]
  assert sorted(np.concatenate(held)) == list(range(COUNT))
  for process, ids in enumerate(held):
    shards = {int(np.argmax(batches.plan[i // 16][1] == i)) // 2 for i in ids}
    assert {writers[shard] for shard in shards} <= {process}


def test_a_shard_that_no_process_sees_is_an_error_that_names_it(tmp_path, data, monkeypatch):
  monkeypatch.setattr(caching, 'VISIBLE', 0.0)
  with pytest.raises(reference_cache.CacheError, match=r'nowhere/manifest\.json: is missing.*that all processes share'):
    caching._open(location_of(tmp_path, data), ['nowhere'])


@pytest.mark.slow  # the tests above interrupt every batch; this one kills real processes with a real model
def test_twenty_killed_processes_make_what_one_makes(tmp_path):
  command = [sys.executable, '-m', caching_kills.__name__, str(tmp_path), '20']
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout.splitlines()[-1])
  assert report['kills'] == 20
  assert report['twice'] == 0
  assert contents(tmp_path / 'killed') == contents(tmp_path / 'whole')
