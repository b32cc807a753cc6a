"""Folders that are committed as a whole, by one process at a time."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from alignjax import storage
from tests import damage

ROOT = pathlib.Path(__file__).parent.parent


def write(folder: pathlib.Path, text: str = 'hello, world') -> None:
  with storage.committing(folder) as partial:
    (partial / 'a.txt').write_text(text)
    storage.write_manifest(partial, {'what': 'a test'})


def test_a_committed_folder_is_what_was_written(tmp_path):
  write(tmp_path / 'x')
  assert storage.verify(tmp_path / 'x') == storage.read_manifest(tmp_path / 'x') == {'what': 'a test'}
  assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.txt', 'manifest.json', 'x']


@pytest.mark.parametrize('name', ['a.txt', 'manifest.json'])
@pytest.mark.parametrize('kind', damage.KINDS)
def test_damage_is_found_and_names_the_file(tmp_path, name, kind):
  write(tmp_path / 'x')
  damage.KINDS[kind](tmp_path / 'x' / name)
  with pytest.raises(storage.DamageError, match=f'{tmp_path / "x" / name}: '):
    storage.verify(tmp_path / 'x')


def test_a_block_that_fails_leaves_nothing_and_the_first_of_two_wins(tmp_path):
  def stop(partial: pathlib.Path) -> None:
    (partial / 'a.txt').write_text('half')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), storage.committing(tmp_path / 'x') as partial:
    stop(partial)
  assert not list(tmp_path.iterdir())
  with storage.committing(tmp_path / 'x') as partial:
    write(tmp_path / 'x', 'first')
    (partial / 'a.txt').write_text('second')
  assert (tmp_path / 'x' / 'a.txt').read_text() == 'first'
  assert list(tmp_path.iterdir()) == [tmp_path / 'x']


def test_a_full_disk_is_named(tmp_path):
  def fill() -> None:
    raise OSError(errno.ENOSPC, 'No space left on device')

  with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'x'}'"), storage.committing(tmp_path / 'x'):
    fill()


def test_one_at_a_time_and_the_lock_leaves_no_file(tmp_path):
  inside, most, waits = [], [], []

  def work() -> None:
    with storage.locked(tmp_path / 'x', lambda: waits.append(1)):
      inside.append(1)
      most.append(len(inside))
      time.sleep(0.01)
      inside.pop()

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1] * 4
  assert waits
  assert not list(tmp_path.iterdir())


KILLED = """
import pathlib, sys, time
from alignjax import storage
folder = pathlib.Path(sys.argv[1])
with storage.locked(folder, storage.silent), storage.committing(folder) as partial:
  (partial / 'a.txt').write_text('half')
  print('ready', flush=True)
  time.sleep(60)
"""


def test_a_killed_process_holds_no_lock_and_its_folder_is_removed(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', KILLED, str(tmp_path / 'x')],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert process.stdout.readline() == b'ready\n'
  before = sorted(tmp_path.iterdir())
  assert [path.suffix for path in before] == ['.partial', '.lock']
  storage.sweep(tmp_path)
  assert sorted(tmp_path.iterdir()) == before  # it is alive
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  storage.sweep(tmp_path)
  assert not list(tmp_path.iterdir())


def test_without_locks_nothing_of_others_is_removed(tmp_path, monkeypatch):
  def refuse(file, operation):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr('fcntl.flock', refuse)
  partial = tmp_path / f'.x.1-2{storage.PARTIAL}'
  partial.mkdir()
  with storage.locked(tmp_path / 'x', storage.silent):
    write(tmp_path / 'x')
  storage.sweep(tmp_path)
  assert partial.exists()
