"""Errors that a restart repeats: failed checks of the configuration, the model or the data."""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import os

from alignjax import causes

# Errors of the file system that are in what the user asked for, not in the machine.
_OF_THE_USER = frozenset(
  {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENAMETOOLONG,
  }
)

# How errors of connections begin that XLA, Gloo and TensorStore raise, some as a ValueError.
_CONNECTIONS = ('UNKNOWN: Gloo', 'UNAVAILABLE: ', 'DEADLINE_EXCEEDED: ', 'ABORTED: ', 'CANCELLED: ')


class Refused(ValueError):
  """A check of the configuration, the model or the data has failed before the first step."""


@dataclasses.dataclass
class Checks:
  """Whether the checks of a block are over. From then on, its errors are not turned into refusals."""

  over: bool = False


@contextlib.contextmanager
def checking() -> Iterator[Checks]:
  """Turns the errors of a block of checks into `Refused`, except those of the machine."""
  checks = Checks()
  try:
    yield checks
  except Refused:
    raise
  except MemoryError as error:
    if checks.over:
      raise
    raise Refused(f'there is not enough memory for these settings: {error}') from error
  except (ValueError, OSError, ImportError) as error:
    if checks.over or of_the_machine(error):
      raise
    raise Refused(reason(error)) from error


def reason(error: BaseException) -> str:
  """The message of an error. That of the file system names the file first, and what is wrong with it."""
  if not isinstance(error, OSError) or not error.strerror or not isinstance(error.filename, str | os.PathLike):
    return str(error)
  path = os.fspath(error.filename)
  if error.errno == errno.ENOENT:
    folder = os.path.dirname(path)
    missing = folder and not os.path.exists(folder)
    return f'{path}: there is no folder {folder}' if missing else f'{path}: there is no such file or folder'
  if error.errno in (errno.EEXIST, errno.ENOTDIR) and not os.path.isdir(path):
    return f'{path}: is a file, or is within one, where a folder is needed'
  return f'{path}: {error.strerror[0].lower()}{error.strerror[1:]}'


def of_the_machine(error: BaseException) -> bool:
  """Whether storage or network caused an error, such as EIO, ENOSPC, ETIMEDOUT or a lost connection."""
  return of_the_network(error) or any(
    isinstance(each, OSError) and each.errno is not None and each.errno not in _OF_THE_USER
    for each in causes.chain(error)
  )


def of_the_network(error: BaseException) -> bool:
  """Whether a timeout or a lost connection caused an error. The file that was being read may then be sound."""
  return any(
    isinstance(each, ConnectionError | TimeoutError) or str(each).startswith(_CONNECTIONS)
    for each in causes.chain(error)
  )
