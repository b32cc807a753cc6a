"""The owner of a work directory: the one run that may write to it.

Process 0 of the owner keeps owner.json: who it is, and a heartbeat every two seconds. Another run takes the folder over
if the owner is gone. On the same machine that is known at once. Elsewhere the other run watches the heartbeat, so that
clocks need not agree: if it advances, the owner is alive; if it is silent for long enough, the owner is gone.

On a disk, the file is locked while it is read and written. An object store has no locks. There, a run that claims the
folder waits for one heartbeat, and owns it if no other run has claimed it meanwhile: the last of two wins.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from typing import NamedTuple

from absl import logging
import jax

from alignjax import paths, transfers
from alignjax.training import processes

FILE = 'owner.json'
BEAT = 2.0  # seconds between two heartbeats
SILENCE = 20.0  # seconds without a heartbeat after which an owner on another machine is gone
SHORTEST_WATCH = 5.0  # seconds to watch for a heartbeat, however old the last one is
VISIBLE = 5.0  # seconds until a file that process 0 has written must be visible to the others


class OwnerError(ValueError):
  """The work directory belongs to another run."""


class Owner(NamedTuple):
  """The contents of owner.json."""

  id: str
  host: str
  machine: str  # equal if process ids are comparable: same boot of the same machine, same container
  pid: int
  process_start: str  # in the units of the machine; with the pid it identifies a process
  started: str  # date and time
  heartbeat: float  # seconds since 1970, by the owner's clock


def of_this_process() -> Owner:
  """This process as the owner of a new run."""
  now = datetime.datetime.now(datetime.UTC)
  return Owner(
    secrets.token_hex(8),
    socket.gethostname(),
    _machine(),
    os.getpid(),
    _start_of(os.getpid()) or '',
    now.isoformat(timespec='seconds'),
    now.timestamp(),
  )


@dataclasses.dataclass(frozen=True)
class Claim:
  """The ownership of a work directory, on any process of the run.

  Attributes:
    folder: the work directory.
    owner: the owner, on process 0; elsewhere None.
    id: the id of the owner.
  """

  folder: pathlib.Path
  owner: Owner | None
  id: str

  def seen(self) -> str:
    """The id in the folder as this process sees it, '' without one. Waits a while for the id of this run."""
    deadline = time.monotonic() + VISIBLE
    while True:
      found = _peek(self.folder / FILE)
      if (found and found.id == self.id) or time.monotonic() > deadline:
        return found.id if found else ''
      time.sleep(0.1)

  def confirm(self) -> None:
    """Checks that the folder still belongs to this run. All processes must call it.

    Raises:
      OwnerError: another run has taken the folder over.
    """
    other = _beat(self.folder / FILE, self.owner) if self.owner else None
    if any(processes.gather(int(other is not None))):
      whose = f' ({_describe(other)})' if other else ''
      raise OwnerError(
        f'{self.folder}: another run has taken over this work directory{whose}. This run stops, and saves nothing more'
      )


@contextlib.contextmanager
def owned(folder: pathlib.Path) -> Iterator[Claim]:
  """Owns a work directory, which is created if absent, inside the block. All processes must call it.

  Raises:
    OwnerError: another run owns the folder and is alive.
    OSError: the folder cannot be written.
  """
  mine, failure, created = None, None, False
  if jax.process_index() == 0:
    mine, created = of_this_process(), not folder.exists()
    try:
      folder.mkdir(parents=True, exist_ok=True)
      claim(folder / FILE, mine)
    except (OSError, OwnerError) as error:
      failure = error
  told = [mine.id if mine else '', str(failure or '')]
  owner_id, complaint = json.loads(processes.gather_text(json.dumps(told))[0])
  if complaint:
    raise failure or OwnerError(complaint)
  stop = threading.Event()
  if mine is not None:
    threading.Thread(target=_keep_beating, args=(folder / FILE, mine, stop), daemon=True).start()
  try:
    yield Claim(folder, mine, owner_id)
  finally:
    stop.set()
    if mine is not None:
      _release(folder / FILE, mine)
      if created:
        with contextlib.suppress(OSError, ValueError):  # the run has written something
          folder.rmdir()


def claim(path: pathlib.Path, mine: Owner) -> None:
  """Writes `mine` to a file, once the owner that it names is gone.

  Raises:
    OwnerError: that owner is alive.
  """
  watched: Owner | None = None
  deadline = 0.0
  while True:
    with _locked(path) as file:
      other = _parse(file.read())
      silent = other == watched and time.monotonic() >= deadline
      if other is None or silent or _is_gone(other):
        file.write(mine)
        break
    advances = watched is not None and other.id == watched.id and other != watched
    if other.machine == mine.machine or advances:
      raise OwnerError(
        f'{path.parent}: this work directory belongs to a run that is alive ({_describe(other)}). Wait for its end, '
        'stop it, or choose another --workdir'
      )
    if other != watched:
      age = time.time() - other.heartbeat
      watch = min(SILENCE, max(SHORTEST_WATCH, SILENCE - age))
      watched, deadline = other, time.monotonic() + watch
      logging.warning(
        '%s: belonged to a run (%s); watching for %.0f s whether it is alive', path, _describe(other), watch
      )
    time.sleep(BEAT / 4)
  if paths.scheme(path):
    time.sleep(BEAT)
    other = _peek(path)
    if other is not None and other.id != mine.id:
      raise OwnerError(f'{path.parent}: another run has just claimed this work directory ({_describe(other)})')


def _describe(owner: Owner) -> str:
  return f'process {owner.pid} on {owner.host}, started {owner.started}'


def _is_gone(owner: Owner) -> bool:
  """Whether the owner ran on this machine and has ended."""
  return owner.machine == _machine() and _start_of(owner.pid) != owner.process_start


def _machine() -> str:
  """Identifies a boot of a machine and a container on it."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(pathlib.Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip())
    parts.append(os.readlink('/proc/self/ns/pid'))
  return ' '.join(parts)


def _start_of(pid: int) -> str | None:
  """When a process of this machine was started; '' if that is unknown, None if there is no such process."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
  except OSError:
    return ''
  return None if status[0] == 'Z' else status[19]  # fields 3 and 22 of proc(5)


def _keep_beating(path: pathlib.Path, mine: Owner, stop: threading.Event) -> None:
  failed = False
  while not stop.wait(BEAT):
    try:
      if _beat(path, mine) is not None:
        return  # the next save reports it
      failed = False
    except OSError as error:
      if not failed:
        logging.warning('%s cannot be written (%s); another run may take the folder over', path, error)
      failed = True


def _beat(path: pathlib.Path, mine: Owner) -> Owner | None:
  """Writes a new heartbeat, unless the file names another owner, which is returned."""
  with _locked(path) as file:
    other = _parse(file.read())
    if other is not None and other.id != mine.id:
      return other
    file.write(mine._replace(heartbeat=time.time()))
  return None


def _release(path: pathlib.Path, mine: Owner) -> None:
  with contextlib.suppress(OSError), _locked(path) as file:
    other = _parse(file.read())
    if other is None or other.id == mine.id:
      path.unlink()


class _File(NamedTuple):
  """owner.json on a disk."""

  descriptor: int

  def read(self) -> bytes:
    return os.pread(self.descriptor, 2**16, 0)

  def write(self, owner: Owner) -> None:
    content = _content(owner)
    os.pwrite(self.descriptor, content, 0)
    os.ftruncate(self.descriptor, len(content))


class _Object(NamedTuple):
  """owner.json in an object store."""

  path: pathlib.Path

  def read(self) -> bytes:
    try:
      with transfers.naming(os.fspath(self.path)):
        return self.path.read_bytes()
    except FileNotFoundError:
      return b''

  def write(self, owner: Owner) -> None:
    with transfers.naming(os.fspath(self.path)):
      self.path.write_bytes(_content(owner))


def _content(owner: Owner) -> bytes:
  return (json.dumps(owner._asdict(), indent=2) + '\n').encode()


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[_File | _Object]:
  """Opens a file, which is created if absent, and locks it among the processes that open it with this function."""
  if paths.scheme(path):
    yield _Object(path)
    return
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      with contextlib.suppress(OSError):  # a file system without locks: the last of two writers wins
        fcntl.flock(file, fcntl.LOCK_EX)
      try:
        current = os.stat(path).st_ino == os.fstat(file).st_ino
      except FileNotFoundError:
        current = False
      if current:  # not removed by an owner that has released it
        yield _File(file)
        return
    finally:
      os.close(file)


def _peek(path: pathlib.Path) -> Owner | None:
  try:
    return _parse(path.read_bytes())
  except OSError:
    return None


def _parse(content: bytes) -> Owner | None:
  """The owner in the contents of a file; None if they are empty or malformed."""
  try:
    values = json.loads(content)
    found = Owner(**{name: kind(values[name]) for name, kind in Owner.__annotations__.items()})
  except (ValueError, TypeError, KeyError, RecursionError):
    return None
  return found
