"""Describes errors of the file system, and recognises full disks."""

import errno

from alignjax import causes

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = ('No space left on device', 'Disk quota exceeded')  # how libraries without errno report it


def is_full(error: BaseException) -> bool:
  """Whether an error, or one that caused it, reports a full disk or an exhausted quota."""
  return any(
    (isinstance(each, OSError) and each.errno in _FULL) or any(text in str(each) for text in _TEXTS)
    for each in causes.chain(error)
  )


def describe(error: BaseException) -> str:
  """Describes an error in one line: 'the disk is full', or its type and the start of its text."""
  if is_full(error):
    return 'the disk is full'
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
