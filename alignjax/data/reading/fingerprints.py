"""Fingerprints of data sources, from the bytes of their files: no row is parsed."""

from collections.abc import Callable
import functools
import os
from typing import Any

from alignjax import storage
from alignjax.data.reading import readers, sources

LIBRARY = __name__.partition('.')[0]


def obstacle(source: sources.Source) -> str:
  """Why a source has no fingerprint; '' if it has one.

  It has one if it is a file, in a format and form of this library. What a hub, a prepared dataset or a user's own code
  would return is known only once it is read.
  """
  form, location = sources.parse_expression(source)[:2]
  reader = _reader(location)
  if reader is None or not os.path.isfile(location):
    return f'{location} is not a local data file'
  for function in (reader, sources.FORMS[form].parse):
    if not _is_of_library(function):
      return f'{location} is read by code outside {LIBRARY}'
  return ''


def fingerprint(source: sources.Source, tick: storage.Tick = storage.silent) -> dict[str, Any]:
  """Identifies what a file holds and how it is read, but not where it is.

  Args:
    source: an expression `[form:]location` without an obstacle.
    tick: called often while the file is read.
  """
  form, location, columns, part, options = sources.parse_expression(source)
  ending = next(ending for ending in readers.ENDINGS if location.endswith(ending))
  how = {'columns': [list(each) for each in columns], 'part': list(part)}
  how |= {'options': dict(options)} if options else {}
  return {'form': form, 'ending': ending, 'sha256': storage.sha256(location, tick)} | how


def state(source: sources.Source) -> tuple[int, ...]:
  """Changes whenever a file is written: its inode, size and time of modification."""
  status = os.stat(sources.parse_expression(source).location)
  return status.st_ino, status.st_size, status.st_mtime_ns


def size(source: sources.Source) -> int:
  """The bytes of a source without an obstacle."""
  return os.path.getsize(sources.parse_expression(source).location)


def _reader(location: str) -> Callable[..., Any] | None:
  scheme, colon, _ = location.partition(':')
  if colon and scheme in readers.SCHEMES:
    return None
  return next((reader for ending, reader in readers.ENDINGS.items() if location.endswith(ending)), None)


def _is_of_library(function: Callable[..., Any]) -> bool:
  while isinstance(function, functools.partial):
    function = function.func
  return function.__module__.split('.')[0] == LIBRARY
