"""Folders of derived data: committed as a whole, with a checksum of each file, by one process at a time."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import time
from typing import Any, NamedTuple

from alignjax import files

MANIFEST = 'manifest.json'
PARTIAL = '.partial'
BLOCK = 2**20  # bytes that are read at once
POLL = 0.1  # seconds between attempts to take a lock
Tick = Callable[[], None]  # called often during long work


class DamageError(ValueError):
  """A file is not as it was written. The message names it."""


def silent() -> None:
  """A tick that does nothing."""


def telling(announce: Callable[[str], None], text: str, tick: Tick) -> Tick:
  """A tick that also announces a text, once."""
  said = []

  def wait() -> None:
    if not said:
      said.append(text)
      announce(text)
    tick()

  return wait


@contextlib.contextmanager
def committing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty temporary folder that becomes `folder` when the block succeeds. If it fails, nothing is left.

  The files are flushed to disk before the folder appears. If another process commits the same folder first, its folder
  stays and this one is discarded.
  """
  partial = folder.with_name(f'.{folder.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}')
  partial.mkdir(parents=True)
  try:
    yield partial
    for path in partial.iterdir():
      _flush(path)
    _flush(partial)
    try:
      partial.rename(folder)
    except OSError:
      if not folder.exists():
        raise
    _flush(folder.parent)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
      error.filename = str(folder)
    raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _flush(path: pathlib.Path) -> None:
  file = os.open(path, os.O_RDONLY)
  try:
    os.fsync(file)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot flush folders
      raise
  finally:
    os.close(file)


def write_manifest(folder: pathlib.Path, content: Mapping[str, Any], tick: Tick = silent) -> None:
  """Writes manifest.json: `content`, with size and SHA-256 of every file in the folder, and a checksum of itself."""
  entries = {path.name: [path.stat().st_size, sha256(path, tick)] for path in sorted(folder.iterdir())}
  body = {'content': dict(content), 'files': entries}
  text = json.dumps({**body, 'sha256': _digest(body)}, indent=2) + '\n'
  (folder / MANIFEST).write_text(text, encoding='utf-8')


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the content of a folder's manifest, after checking that every file is there with its size.

  Raises:
    DamageError: the manifest or a file is missing, or is not as it was written.
  """
  body = _manifest(folder)
  for name, (size, _) in body['files'].items():
    path = folder / name
    if not path.is_file():
      raise DamageError(f'{path}: is missing, or is not a file')
    if path.stat().st_size != size:
      raise DamageError(f'{path}: has {path.stat().st_size:,} bytes, but {size:,} were written')
  return body['content']


def verify(folder: pathlib.Path, tick: Tick = silent) -> dict[str, Any]:
  """Returns the content of a folder's manifest, after checking every byte of every file.

  Files are read as a stream, so they do not stay in the memory of the process.

  Raises:
    DamageError: as for `read_manifest`, or the bytes of a file differ from what was written.
  """
  content = read_manifest(folder)
  for name, (_, expected) in _manifest(folder)['files'].items():
    if sha256(folder / name, tick) != expected:
      raise DamageError(f'{folder / name}: differs from what was written: the checksum does not match')
  return content


def _manifest(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / MANIFEST
  try:
    body = json.loads(files.check_regular(path).read_bytes())
    written = body.pop('sha256')
    if written != _digest(body):
      raise ValueError('the checksum does not match')
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    raise DamageError(f'{path}: is missing or damaged ({error})') from None
  return body


def _digest(body: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def sha256(path: str | os.PathLike[str], tick: Tick = silent) -> str:
  """The SHA-256 of a file in hexadecimal, read in blocks."""
  digest = hashlib.sha256()
  with files.check_regular(path).open('rb', buffering=0) as stream:
    block = bytearray(BLOCK)
    while count := stream.readinto(block):
      digest.update(memoryview(block)[:count])
      tick()
  return digest.hexdigest()


def name_of(identity: Mapping[str, Any]) -> str:
  """The name of the folder with this identity: a hash of it."""
  return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def locked(folder: pathlib.Path, waiting: Tick) -> Iterator[None]:
  """Lets one process at a time make `folder`, also between machines if their file system has locks.

  The lock ends with its process, however that ends. So a temporary folder of `folder` that is found under the lock
  belongs to no process; it is removed.

  Args:
    folder: the folder to make. The lock is a file beside it.
    waiting: called ten times a second while another process holds the lock.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  while (lock := _acquire(_lock_of(folder))) is None:
    waiting()
    time.sleep(POLL)
  with _held(folder, lock):
    yield


def sweep(root: pathlib.Path) -> None:
  """Removes the temporary folders and locks of killed processes for all folders under `root`."""
  for name in {path.name[1:].partition('.')[0] for path in root.glob('.*.*')} - {''}:
    lock = _acquire(_lock_of(root / name))
    if lock is not None:
      with _held(root / name, lock):
        pass


class _Lock(NamedTuple):
  file: int
  exclusive: bool  # False if the file system has no locks


@contextlib.contextmanager
def _held(folder: pathlib.Path, lock: _Lock) -> Iterator[None]:
  try:
    if lock.exclusive:
      for partial in folder.parent.glob(f'.{folder.name}.*{PARTIAL}'):
        shutil.rmtree(partial, ignore_errors=True)
    yield
  finally:
    _lock_of(folder).unlink(missing_ok=True)
    os.close(lock.file)


def _lock_of(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(f'.{folder.name}.lock')


def _acquire(path: pathlib.Path) -> _Lock | None:
  """Opens a lock file, which is created if absent, and takes its lock; None if another process holds it."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.stat(path).st_ino == os.fstat(file).st_ino:
        return _Lock(file, True)
      os.close(file)  # its holder has removed it in between
    except FileNotFoundError:
      os.close(file)
    except BlockingIOError:
      os.close(file)
      return None
    except OSError:
      return _Lock(file, False)  # two processes may do the same work, and the first to commit wins
