"""Copies between an object store and this disk."""

import contextlib
import os
import pathlib

import pytest

from alignjax import paths, refusals, transfers
from alignjax.training import mirror
from tests import object_store


@pytest.fixture
def store(monkeypatch, tmp_path):
  monkeypatch.setenv('ALIGNJAX_CACHE', str(tmp_path / 'copies'))
  with object_store.serving() as objects:
    yield objects


def write(folder: pathlib.Path, **contents: str) -> pathlib.Path:
  folder.mkdir(exist_ok=True)
  for name, content in contents.items():
    (folder / name.replace('_json', '.json')).write_text(content)
  return folder


def test_paths_on_a_disk_are_left_alone(tmp_path):
  assert transfers.fetched('hh:pairs.jsonl') == 'hh:pairs.jsonl'
  with transfers.delivered(str(tmp_path / 'out')) as out:
    assert out == str(tmp_path / 'out')


def test_a_file_is_copied_once_and_again_when_it_changes(store):
  store['bucket/pairs.jsonl'] = b'one'
  told = []
  first = transfers.fetched('hh:gs://bucket/pairs.jsonl', told.append)
  assert first.startswith('hh:')
  assert first.endswith('/pairs.jsonl')
  assert pathlib.Path(first.removeprefix('hh:')).read_bytes() == b'one'
  assert transfers.fetched('hh:gs://bucket/pairs.jsonl', told.append) == first
  assert len(told) == 1
  store['bucket/pairs.jsonl'] = b'two'
  assert pathlib.Path(transfers.fetched('gs://bucket/pairs.jsonl')).read_bytes() == b'two'


def test_the_files_of_a_folder_are_copied_and_a_damaged_copy_is_replaced(store):
  store.put('bucket', {'m/config.json': b'{}', 'm/weights': b'123', 'm/onnx/model': b'-', 'm2/x': b'-'})
  copy = pathlib.Path(transfers.fetched('gs://bucket/m'))
  assert sorted(path.name for path in copy.iterdir()) == ['config.json', 'weights']
  (copy / 'weights').write_bytes(b'1')
  assert pathlib.Path(transfers.fetched('gs://bucket/m/')) == copy
  assert (copy / 'weights').read_bytes() == b'123'


def test_named_chat_templates_are_copied_with_a_model(store, tmp_path):
  template = 'additional_chat_templates/tool_use.jinja'
  store.put('bucket', {'m/config.json': b'{}', f'm/{template}': b'tools'})
  copy = pathlib.Path(transfers.fetched('gs://bucket/m'))
  assert (copy / template).read_bytes() == b'tools'
  (copy / 'additional_chat_templates' / 'rag.jinja').write_bytes(b'rag')
  (copy / template).unlink()
  transfers.upload(copy, 'gs://bucket/m')
  assert store['bucket/m/additional_chat_templates/rag.jinja'] == b'rag'
  assert f'bucket/m/{template}' not in store


@pytest.mark.parametrize('name', ['absent', 'fold'])
def test_what_is_not_there_is_named(store, name):
  store['bucket/folder/file'] = b''
  with pytest.raises(ValueError, match=f'gs://bucket/{name}: there is no such file or folder'):
    transfers.fetched(f'gs://bucket/{name}')


@pytest.mark.parametrize(('code', 'kind'), [(403, OSError), (429, ConnectionError), (503, ConnectionError)])
def test_errors_of_the_store_name_the_place_and_are_tried_again_unless_it_refuses(store, monkeypatch, code, kind):
  class HttpError(Exception):
    pass

  error = HttpError('no')
  error.code = code

  def fail(*args, **options):
    raise error

  monkeypatch.setattr(object_store.FileSystem, 'info', fail)
  with pytest.raises(OSError, match=r'^gs://bucket/x: cannot be reached: HttpError: no$') as caught:
    transfers.fetched('gs://bucket/x')
  assert type(caught.value) is kind
  assert refusals.of_the_machine(caught.value) == (kind is ConnectionError)


def test_a_folder_is_replaced_and_complete_only_at_the_end(store, monkeypatch, tmp_path):
  store.put('bucket/m', dict.fromkeys(['config.json', 'alignjax_export.json', 'weights', 'stale'], b'old'))
  seen = []

  def put_file(self, local, url, **options):
    seen.append((os.path.basename(url), {name.removeprefix('bucket/m/') for name in store.under('bucket/m')}))
    store[url.removeprefix('gs://')] = pathlib.Path(local).read_bytes()

  monkeypatch.setattr(object_store.FileSystem, 'put_file', put_file)
  new = write(tmp_path / 'm', config_json='new', alignjax_export_json='new', weights='new')
  transfers.upload(new, 'gs://bucket/m')
  assert [name for name, _ in seen] == ['weights', 'config.json', 'alignjax_export.json']
  assert seen[0][1] == {'weights'}
  assert all('alignjax_export.json' not in there for _, there in seen)
  assert {name: store[name] for name in store.under('bucket/m')} == {
    f'bucket/m/{name}': b'new' for name in ('config.json', 'alignjax_export.json', 'weights')
  }


def test_a_folder_is_moved_and_not_complete_once_that_has_begun(store, monkeypatch):
  contents = {'commit_success.txt': b'1', 'state/commit_success.txt': b'2', 'state/d/array': b'3', 'data/0': b'4'}
  store.put('bucket/run/checkpoints/8', contents)
  removed = []
  rm_file = object_store.FileSystem.rm_file
  monkeypatch.setattr(
    object_store.FileSystem, 'rm_file', lambda self, name: removed.append(name) or rm_file(self, name)
  )
  transfers.move(paths.path('gs://bucket/run/checkpoints/8'), paths.path('gs://bucket/run/checkpoints-corrupt/8.0'))
  assert removed[0] == 'bucket/run/checkpoints/8/commit_success.txt'
  assert {name: store[f'bucket/run/checkpoints-corrupt/8.0/{name}'] for name in contents} == contents
  assert not store.under('bucket/run/checkpoints')


def test_what_is_written_arrives_unless_it_fails(store, tmp_path):
  with contextlib.suppress(KeyError), transfers.delivered('gs://bucket/out.jsonl') as out:
    pathlib.Path(out).write_text('half')
    raise KeyError
  assert 'bucket/out.jsonl' not in store
  with transfers.delivered('gs://bucket/out.jsonl') as out:
    pathlib.Path(out).write_text('whole')
  assert store['bucket/out.jsonl'] == b'whole'
  with pytest.raises(ValueError, match=r'gs://bucket/out\.jsonl: exists'), transfers.delivered('gs://bucket/out.jsonl'):
    pass
  assert not list((tmp_path / 'copies' / 'outputs').iterdir())


def test_a_growing_file_is_copied_at_intervals_and_on_demand(store, monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(mirror.time, 'monotonic', lambda: clock[0])
  store['bucket/run/metrics.jsonl'] = b'1\n'
  with mirror.mirrored(paths.path('gs://bucket/run'), ['metrics.jsonl', 'absent']) as copy:
    file = copy.local / 'metrics.jsonl'

    def write(line, seconds):
      clock[0] += seconds
      with file.open('a') as stream:
        stream.write(f'{line}\n')
      copy.write(0, {})
      return store['bucket/run/metrics.jsonl']

    assert write(2, 0) == b'1\n2\n'
    assert write(3, mirror.INTERVAL / 2) == b'1\n2\n'
    assert write(4, mirror.INTERVAL / 2) == b'1\n2\n3\n4\n'
    write(5, 0)
    copy.flush()
    assert store['bucket/run/metrics.jsonl'] == b'1\n2\n3\n4\n5\n'
    generation = store.generations['bucket/run/metrics.jsonl']
    copy.flush()
    assert store.generations['bucket/run/metrics.jsonl'] == generation
    write('x' * 10 * int(mirror.INTERVAL * mirror.RATE), mirror.INTERVAL)
    assert b'6' not in write(6, 2 * mirror.INTERVAL)  # a large file is copied less often


def test_a_copy_that_fails_is_warned_of_once_and_tried_again(store, monkeypatch, caplog):
  with mirror.mirrored(paths.path('gs://bucket/run'), []) as copy:
    (copy.local / 'metrics.jsonl').write_text('1\n')
    with monkeypatch.context() as patch:
      patch.setattr(object_store.FileSystem, 'put_file', lambda *args, **options: 1 / 0)
      copy.flush()
      copy.flush()
    copy.close()
  assert store['bucket/run/metrics.jsonl'] == b'1\n'
  (record,) = caplog.records
  assert record.getMessage().startswith(
    'gs://bucket/run: cannot be written: ConnectionError: gs://bucket/run/metrics.jsonl'
  )
