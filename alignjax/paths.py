"""Paths of files and folders: on a disk, or `gs://bucket/folder` and `s3://bucket/folder` in an object store.

Paths on a disk are `pathlib.Path`. Paths in an object store are `etils.epath.Path`, which has most of its methods, and
reads and writes through fsspec. Neither module is imported before a path needs it.
"""

import os
import pathlib
import re
import types
from typing import Any, NamedTuple

# What a setting does with its path, the entry `path` of the metadata of a field.
READ = 'read'  # a file or folder, copied to the disk first if it is in an object store
WRITTEN = 'written'  # a file or folder, written to the disk first, and copied to the object store when it is complete
RUN = 'run'  # the folder of a run, read and written in place; on a disk or in Google Cloud Storage
IN_PLACE = 'in place'  # a folder whose files are replaced as a whole, on a disk or in an object store
DISK = 'disk'  # a folder that is used in place, and only on a disk, such as one with memory maps

SUBFOLDERS = ('additional_chat_templates',)  # the only folders within model folders that are read and written

_FORM = re.compile(r'\w+:')  # of [form:]location
_URL = re.compile(r'(?:\w+:)?([A-Za-z][\w+.-]*)://')


class _Store(NamedTuple):
  extra: str  # of alignjax, which installs the module
  module: str
  name: str


STORES = {'gs': _Store('gcs', 'gcsfs', 'Google Cloud Storage'), 's3': _Store('s3', 's3fs', 'S3')}


def scheme(path: str | os.PathLike[str]) -> str:
  """The scheme of a path, such as 'gs'; '' on a disk."""
  found = _URL.match(os.fspath(path))
  return found.group(1) if found else ''


def path(text: str | os.PathLike[str]) -> pathlib.Path:
  """The path that a text names: on a disk or, as an `etils.epath.Path`, in an object store.

  Raises:
    ValueError: its scheme is unknown, or the module that reads it is not installed.
  """
  if not scheme(text):
    return pathlib.Path(text)
  check(os.fspath(text))
  from etils import epath  # optional: slow to import, and only object stores need it

  return epath.Path(text)


def absolute(text: str | os.PathLike[str]) -> pathlib.Path:
  """The path that a text names, on a disk as an absolute one. Raises: see `path`."""
  return path(text) if scheme(text) else pathlib.Path(text).absolute()


def file_names(folder: pathlib.Path) -> list[str]:
  """The sorted names of the files in a folder on a disk and in its `SUBFOLDERS`, relative to the folder."""
  nested = [path for name in SUBFOLDERS if (folder / name).is_dir() for path in (folder / name).iterdir()]
  return sorted(path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *nested) if path.is_file())


def expand(text: str) -> str:
  """Replaces a leading `~` by the home folder, also after the form of `[form:]location`."""
  prefix = _FORM.match(text)
  start = prefix.end() if prefix else 0
  return text[:start] + os.path.expanduser(text[start:]) if text.startswith('~', start) else text


def check(text: str, use: str = READ) -> None:
  """Checks that a path can be reached and used. Reads and creates nothing.

  Args:
    text: the path.
    use: READ, WRITTEN, RUN, IN_PLACE or DISK.

  Raises:
    ValueError: it cannot. The message names the path, its scheme and what to do.
  """
  name = scheme(text)
  if not name:
    return
  if name not in STORES:
    raise ValueError(
      f'{text}: {name}:// is not supported, only {" and ".join(f"{each}://" for each in STORES)}. Copy it to a disk or '
      'mount it, and give the path there'
    )
  store, mount = STORES[name], 'mount the bucket and give the path of the mount'
  if use == DISK:
    raise ValueError(f'{text}: this setting needs a folder on a disk, not in {store.name}; {mount}')
  if use == RUN and name != 'gs':
    raise ValueError(f'{text}: a run cannot write checkpoints to {name}://, only to a disk or gs://; {mount}')
  try:
    _fsspec().get_filesystem_class(name)
  except ImportError as error:
    raise ValueError(
      f"{text}: {name}:// ({store.name}) needs the module {store.module}: pip install 'alignjax[{store.extra}]', or "
      f'{mount}'
    ) from error


def filesystem(text: str) -> Any:
  """The fsspec file system of a path in an object store.

  Raises:
    ImportError: its module is not installed.
  """
  return _fsspec().filesystem(scheme(text))


def _fsspec() -> types.ModuleType:
  """fsspec, which does not keep listings: TensorStore writes the arrays of checkpoints without its knowledge."""
  import fsspec  # optional: part of the extras

  for protocol in ('gs', 'gcs', 's3'):
    fsspec.config.conf.setdefault(protocol, {}).setdefault('use_listings_cache', False)
  return fsspec
