"""The date of a run's first start, which its chat template prints whenever the run is resumed.

A template that prints the current date gives other tokens tomorrow, and the run could not be resumed. The date is kept
in the work directory, and in every checkpoint as part of the identity of the run.
"""

from collections.abc import Iterator
import datetime
import json
import pathlib

from alignjax import files, paths
from alignjax.training import processes

FILE = 'first_start.txt'
IDENTITY = 'first_start'  # the entry in the identity of a run
_clock = datetime.datetime.now


def date(workdir: str) -> datetime.datetime:
  """When the run in a work directory was first started: now, if it is new. The same on all processes.

  Args:
    workdir: the folder of the run. The date is written to it. If it is empty, the date is not kept.
  """
  text = processes.from_first(lambda alive: (_kept(paths.path(workdir)) if workdir else _now()).isoformat())
  return datetime.datetime.fromisoformat(text)


def _now() -> datetime.datetime:
  return _clock().replace(microsecond=0)


def _kept(workdir: pathlib.Path) -> datetime.datetime:
  """The date in the newest readable checkpoint, or in the work directory; otherwise now. Writes it down."""
  file = workdir / FILE
  found = next(_dates(workdir), None) or _now()
  text = found.isoformat() + '\n'
  if not file.exists() or file.read_bytes() != text.encode():
    workdir.mkdir(parents=True, exist_ok=True)
    files.replace(file, text.encode())
  return found


def _dates(workdir: pathlib.Path) -> Iterator[datetime.datetime]:
  steps = [folder for folder in workdir.glob('checkpoints/*') if folder.name.isdecimal()]
  for folder in sorted(steps, key=lambda folder: -int(folder.name)):
    try:
      metadata = json.loads((folder / 'metadata' / 'metadata').read_bytes())
      yield datetime.datetime.fromisoformat(metadata['content']['identity'][IDENTITY])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
      continue  # a damaged checkpoint: restoring reports it
  try:
    yield datetime.datetime.fromisoformat((workdir / FILE).read_text(encoding='utf-8').strip())
  except (FileNotFoundError, NotADirectoryError):
    return
  except (OSError, ValueError) as error:
    raise ValueError(
      f'{workdir / FILE}: does not hold the date of the first start ({error}); write it as 2026-01-31T12:00:00, or '
      'remove the file to use the present date'
    ) from None
