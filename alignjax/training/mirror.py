"""Files that grow, such as metrics, in an object store: written on this disk, and copied again and again.

An object cannot be appended to. So each copy writes a whole file, and the time between copies grows with its size.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import time

from absl import logging
import jax

from alignjax import paths, transfers
from alignjax.training import disk, metrics

INTERVAL = 10.0  # seconds between two copies of small files
RATE = 100_000  # bytes per second, on average


class Copy:
  """Copies the files of a folder on this disk to an object store; a writer of metrics that comes after all others.

  If a file cannot be copied, it warns once and tries again later. Only process 0 copies.

  Args:
    local: the folder on this disk.
    remote: the folder in the object store; None copies nothing.
  """

  def __init__(self, local: pathlib.Path, remote: pathlib.Path | None):
    self.local = local
    self._remote = remote if jax.process_index() == 0 else None
    self._sizes: dict[pathlib.Path, int] = {}  # of the files when they were copied
    self._due = 0.0
    self._failing = False

  def write(self, step: int, values: metrics.Values) -> None:
    del step, values  # the writers before it have written them
    if time.monotonic() >= self._due:
      self.flush()

  def flush(self) -> None:
    """Copies every file that has grown."""
    if self._remote is None:
      return
    copied = 0
    for path in sorted(self.local.rglob('*')):
      size = path.stat().st_size
      if path.is_file() and self._sizes.get(path) != size:
        try:
          transfers.upload(path, os.fspath(self._remote / path.relative_to(self.local)))
          self._sizes[path], copied, self._failing = size, copied + size, False
        except OSError as error:
          if not self._failing:
            logging.warning('%s: cannot be written: %s. It is tried again', self._remote, disk.describe(error))
          self._failing = True
    self._due = time.monotonic() + max(INTERVAL, copied / RATE)

  def close(self) -> None:
    self.flush()


@contextlib.contextmanager
def mirrored(folder: pathlib.Path, names: Sequence[str]) -> Iterator[Copy]:
  """A folder on this disk in which the files of `folder` are continued; the folder itself if it is on a disk.

  Args:
    folder: the run's folder, on a disk or in an object store.
    names: the files that are continued.

  Raises:
    OSError: the object store cannot be read.
  """
  if not paths.scheme(folder):
    yield Copy(folder, None)
    return
  with transfers.scratch() as local:
    if jax.process_index() == 0:
      for name in names:
        if (folder / name).exists():
          (local / name).write_bytes((folder / name).read_bytes())
    yield Copy(local, folder)
