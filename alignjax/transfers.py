"""Copies files and folders between object stores and this disk.

Memory maps, byte ranges and compressed streams need files on a disk. So what a program reads from an object store is
copied to a folder of this machine first, and what it writes there is copied to the object store once it is complete.

An object store cannot rename, so a folder is uploaded in an order: the files that mark a complete folder, such as
config.json and the manifest, are removed first and uploaded last. A folder without them cannot be read as a model.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import posixpath
import shutil
import tempfile
from typing import Any

from absl import logging

from alignjax import paths, storage

FOLDER = 'ALIGNJAX_CACHE'  # the environment variable that names the folder for copies
MARKS = (
  'config.json',
  'manifest.json',
  'alignjax_export.json',
  'commit_success.txt',
)  # ends of names, in the order of upload
_VERSIONS = ('generation', 'etag', 'ETag', 'md5Hash', 'updated', 'LastModified', 'mtime', 'created')


def root() -> pathlib.Path:
  """The folder for copies on this machine. Copies in it may be deleted when no program runs."""
  return pathlib.Path(os.environ.get(FOLDER) or os.path.expanduser('~/.cache/alignjax'))


def fetched(location: str, announce: Callable[[str], None] = logging.info) -> str:
  """Copies a file, or the files of a folder, from an object store to this disk. A path on a disk is returned unchanged.

  Processes of one machine share a copy. It is made again when a file in the object store has changed.

  Args:
    location: a path or `[form:]location`. The form is kept.
    announce: called with a message if something is copied.

  Raises:
    ValueError: there is no such file or folder, or the module for the object store is not installed.
    OSError: it cannot be copied.
  """
  if not paths.scheme(location):
    return location
  form, url = _split(location)
  paths.check(url)
  store = paths.filesystem(url)
  with naming(url):
    entries = _entries(store, url)
    name = posixpath.basename(url)
    versions = {entry: [info['size'], *(str(info.get(key)) for key in _VERSIONS)] for entry, info in entries.items()}
    folder = root() / 'inputs' / storage.name_of({'url': url, 'files': versions})
    with storage.locked(folder, storage.silent):
      if not _complete(folder, name, entries):
        announce(f'copying {url} to {folder}')
        shutil.rmtree(folder, ignore_errors=True)
        with storage.committing(folder) as partial:
          for entry, info in entries.items():
            target = partial / name / entry if entry else partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(info['name'], str(target))
  return form + str(folder / name)


def _split(location: str) -> tuple[str, str]:
  """Splits `[form:]location` into the form with its colon, and the location."""
  start = location.index(f'{paths.scheme(location)}://')
  return location[:start], location[start:].rstrip('/')


def _entries(store: Any, url: str) -> dict[str, dict[str, Any]]:
  """The files at a URL by name: those of a folder and its `paths.SUBFOLDERS`, or one without a name."""
  try:
    info = store.info(url)
    if info['type'] == 'file':
      return {'': info}
    files = _listed(store, url)
  except FileNotFoundError:
    raise ValueError(f'{url}: there is no such file or folder') from None
  if not files:
    raise ValueError(f'{url}: this folder holds no files')
  return files


def _listed(store: Any, url: str) -> dict[str, dict[str, Any]]:
  """The files of a folder and of its `paths.SUBFOLDERS`, by name."""
  listed = store.ls(url, detail=True)
  files = {posixpath.basename(each['name']): each for each in listed if each['type'] == 'file'}
  for folder in {posixpath.basename(each['name']) for each in listed}.intersection(paths.SUBFOLDERS):
    nested = [each for each in store.ls(f'{url}/{folder}', detail=True) if each['type'] == 'file']
    files |= {f'{folder}/{posixpath.basename(each["name"])}': each for each in nested}
  files.pop('', None)  # some tools write an empty object for a folder
  return files


def _complete(folder: pathlib.Path, name: str, entries: dict[str, dict[str, Any]]) -> bool:
  copies = {folder / name / entry if entry else folder / name: info['size'] for entry, info in entries.items()}
  return all(copy.is_file() and copy.stat().st_size == size for copy, size in copies.items())


@contextlib.contextmanager
def naming(url: str) -> Iterator[None]:
  """Turns errors of an object store, each of which has its own, into OSErrors or ConnectionErrors that name the URL."""
  try:
    yield
  except (ValueError, OSError):
    raise
  except Exception as error:
    code = getattr(error, 'code', None)
    refused = isinstance(code, int) and 400 <= code < 500 and code not in (408, 429)  # and again next time
    kind = OSError if refused else ConnectionError
    raise kind(f'{url}: cannot be reached: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def delivered(location: str) -> Iterator[str]:
  """Yields a path on this disk, and copies what is written there to an object store when the block succeeds.

  A path on a disk is yielded unchanged.

  Args:
    location: a file or folder. In an object store, it must not exist.

  Raises:
    ValueError: it exists, or the module for the object store is not installed.
    OSError: it cannot be written.
  """
  if not paths.scheme(location):
    yield location
    return
  paths.check(location, paths.WRITTEN)
  with naming(location):
    if paths.filesystem(location).exists(location):
      raise ValueError(f'{location}: exists; delete it, or choose another path')
  with staged(location) as local:
    yield str(local)


@contextlib.contextmanager
def staged(location: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """As `delivered`, but replaces a file or folder that exists."""
  if not paths.scheme(location):
    yield pathlib.Path(location)
    return
  with scratch() as folder:
    local = folder / posixpath.basename(os.fspath(location).rstrip('/'))
    yield local
    if local.exists():  # on the process that writes
      upload(local, os.fspath(location))


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
  """A folder on this disk that is removed after the block."""
  outputs = root() / 'outputs'
  outputs.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=outputs) as folder:
    yield pathlib.Path(folder)


def upload(local: pathlib.Path, url: str) -> None:
  """Copies a file, or the files of a folder, to an object store. Other files in that folder are removed.

  Whoever reads the folder meanwhile finds none of the files that mark it as complete.

  Raises:
    OSError: it cannot be written.
  """
  store = paths.filesystem(url)
  with naming(url):
    if local.is_file():
      store.put_file(str(local), url)
      return
    names = sorted(paths.file_names(local), key=lambda name: (_mark(name), name))
    there = _listed(store, url) if store.exists(url) else ()
    for name in sorted(there, key=_mark, reverse=True):
      if _mark(name) or name not in names:
        store.rm_file(f'{url}/{name}')
    for name in names:
      store.put_file(str(local / name), f'{url}/{name}')


def move(source: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a folder. On a disk this is atomic; in an object store each object is copied, and then all are removed.

  The files that mark a complete folder are removed first.
  """
  if not paths.scheme(source):
    source.rename(target)
    return
  store = paths.filesystem(os.fspath(source))
  with naming(os.fspath(source)):
    root = os.fspath(source).partition('://')[2].rstrip('/')
    names = sorted(store.find(root), key=lambda name: (-_mark(name), name.count('/')))
    for name in names:
      store.cp_file(name, f'{os.fspath(target)}/{name[len(root) + 1 :]}')
    for name in names:
      store.rm_file(name)


def _mark(name: str) -> int:
  """0 for an ordinary file; the order of those that mark a complete folder."""
  return next((place for place, end in enumerate(MARKS, 1) if name.endswith(end)), 0)
