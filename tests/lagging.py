"""The command `alignjax`, whose process 1 sees old contents of the folder LAGGING for two seconds.

As on a network file system, what it has once read of a folder, or of the existence of a file, it believes for a while.
"""

import os
import sys
import time

SECONDS = 2.0
FOLDER = os.environ['LAGGING']
_seen = {}


class _Entries(list):
  """What os.scandir returns."""

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass

  def close(self):
    pass


def late(function):
  """The function, which answers for a while as it has answered before."""

  def call(path='.', *args, **options):
    if isinstance(path, int) or not str(os.fspath(path)).startswith(FOLDER):
      return function(path, *args, **options)
    key = (function.__name__, os.fspath(path), args, tuple(options.items()))
    answered, answer = _seen.get(key, (-SECONDS, None))
    if time.monotonic() - answered > SECONDS:
      try:
        answer = function(path, *args, **options)
        answer = _Entries(answer) if function.__name__ == 'scandir' else answer
      except FileNotFoundError as error:
        answer = error
      _seen[key] = time.monotonic(), answer
    if isinstance(answer, FileNotFoundError):
      raise FileNotFoundError(*answer.args)
    return answer

  return call


if __name__ == '__main__':
  if '--process_id=1' in sys.argv:
    for name in ('stat', 'listdir', 'scandir'):
      setattr(os, name, late(getattr(os, name)))
  from alignjax.commands import main

  main.main()
