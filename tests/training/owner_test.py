"""The owner of a work directory: alive, gone, on another machine, and two at once."""

import concurrent.futures
import json
import subprocess
import sys
import threading
import time

import pytest

from alignjax.training import owner


@pytest.fixture(autouse=True)
def fast(monkeypatch):
  """Everything that is timed in seconds takes a fraction of that."""
  for name, seconds in {'BEAT': 0.05, 'SILENCE': 0.6, 'SHORTEST_WATCH': 0.2, 'VISIBLE': 0.3}.items():
    monkeypatch.setattr(owner, name, seconds)


def write(folder, **values):
  """Writes an owner like this process, except for some values."""
  found = owner.of_this_process()._replace(**values)
  with owner._locked(folder / owner.FILE) as file:
    file.write(found)
  return found


def test_a_run_owns_its_folder_while_it_lasts(tmp_path):
  folder = tmp_path / 'runs' / 'first'
  with owner.owned(folder) as claim:
    found = json.loads((folder / owner.FILE).read_text())
    assert found.keys() == set(owner.Owner._fields)
    assert claim.seen() == claim.id == found['id']
    claim.confirm()
    (folder / 'metrics.jsonl').touch()
  assert [path.name for path in folder.iterdir()] == ['metrics.jsonl']


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
  with pytest.raises(RuntimeError), owner.owned(tmp_path / 'run'):
    raise RuntimeError
  assert not (tmp_path / 'run').exists()
  (tmp_path / 'mine').mkdir()
  with owner.owned(tmp_path / 'mine'):
    pass
  assert (tmp_path / 'mine').exists()


def test_a_second_run_is_refused_at_once(tmp_path):
  with owner.owned(tmp_path) as claim:
    start, alive = time.monotonic(), r'belongs to a run that is alive \(process \d+ on .*, started 2'
    with pytest.raises(owner.OwnerError, match=alive), owner.owned(tmp_path):
      pass
    assert time.monotonic() - start < 5
    assert claim.seen() == claim.id


@pytest.mark.parametrize('kind', ['gone', 'zombie', 'another process'])
def test_an_owner_of_this_machine_that_has_ended_is_replaced_at_once(tmp_path, monkeypatch, kind):
  child = subprocess.Popen([sys.executable, '-c', ''])
  if kind == 'another process':  # with the pid of the owner
    write(tmp_path, process_start='1')
  else:
    write(tmp_path, pid=child.pid)
  if kind != 'zombie':
    child.wait()
  while kind == 'zombie' and owner._start_of(child.pid) is not None:
    time.sleep(0.02)
  monkeypatch.setattr(time, 'sleep', pytest.fail)
  with owner.owned(tmp_path) as claim:
    assert claim.seen() == claim.id
  child.wait()


@pytest.mark.parametrize('content', ['', '{', '[]', '{"id": "a"}', '[' * 100_000])
def test_a_damaged_file_names_no_owner(tmp_path, content):
  (tmp_path / owner.FILE).write_text(content)
  with owner.owned(tmp_path) as claim:
    assert claim.seen() == claim.id


@pytest.mark.parametrize('age', [0.0, 3600.0, -3600.0])
def test_a_silent_owner_elsewhere_is_replaced_after_a_watch(tmp_path, age):
  """Whatever its clock says."""
  start = time.monotonic()  # before the heartbeat, from which the silence counts
  write(tmp_path, machine='elsewhere', heartbeat=time.time() - age)
  with owner.owned(tmp_path) as claim:
    assert claim.seen() == claim.id
  assert time.monotonic() - start >= (owner.SHORTEST_WATCH if age > 0 else owner.SILENCE)


@pytest.mark.parametrize('skew', [0.0, -3600.0])
def test_an_owner_elsewhere_whose_heartbeat_advances_is_alive(tmp_path, skew):
  other, stop = write(tmp_path, machine='elsewhere', host='node7', heartbeat=time.time() + skew), threading.Event()

  def beat():
    count = 0
    while not stop.wait(owner.BEAT):
      count += 1
      write(tmp_path, **other._asdict() | {'heartbeat': other.heartbeat + count})

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    with pytest.raises(owner.OwnerError, match='on node7'), owner.owned(tmp_path):
      pass
  finally:
    stop.set()
    thread.join()


def test_the_heartbeat_advances_by_itself(tmp_path):
  with owner.owned(tmp_path) as claim:
    deadline = time.monotonic() + 5
    while (found := owner._peek(tmp_path / owner.FILE)) in (claim.owner, None):
      assert time.monotonic() < deadline
      time.sleep(0.02)
  assert found.id == claim.id
  assert found.heartbeat > claim.owner.heartbeat


def test_of_two_at_once_one_owns(tmp_path):
  write(tmp_path, pid=2**22 + 1)  # stale: no process has this pid
  meet = threading.Barrier(8)

  def attempt(index: int) -> bool:
    meet.wait()
    try:
      owner.claim(tmp_path / owner.FILE, owner.of_this_process())
    except owner.OwnerError:
      return False
    return True

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(attempt, range(8))) == 1


def test_a_run_that_has_lost_its_folder_saves_nothing_more(tmp_path, monkeypatch):
  monkeypatch.setattr(owner, 'BEAT', 60)
  with owner.owned(tmp_path) as claim:
    other = write(tmp_path, host='node7', pid=12)
    with pytest.raises(owner.OwnerError, match=r'another run has taken over .*process 12 on node7.*saves nothing more'):
      claim.confirm()
    assert claim.seen() == other.id
  assert json.loads((tmp_path / owner.FILE).read_text())['id'] == other.id  # it is the other run's


def test_a_file_that_is_removed_comes_back(tmp_path):
  with owner.owned(tmp_path) as claim:
    (tmp_path / owner.FILE).unlink()
    claim.confirm()
    assert claim.seen() == claim.id


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(NotADirectoryError, match='file'), owner.owned(tmp_path / 'file' / 'run'):
    pass
