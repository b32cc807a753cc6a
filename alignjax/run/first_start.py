"""What the first start of a run decides, and later starts keep: its date, and the type of activations.

A chat template that prints the current date gives other tokens tomorrow, and the run could not be resumed. So the date
is kept in the work directory, and in every checkpoint as part of the identity of the run.

The type of activations may depend on the machine. A run that resumes on another one keeps that of its checkpoints.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import datetime
import json
import pathlib
from typing import Any

from alignjax import files, paths
from alignjax.run import arithmetic, settings
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


def settled(config: settings.Config) -> settings.Config:
  """The configuration with the type of activations that the run computes with. All processes must call it.

  'auto' means the type in the newest checkpoint, or else the faster one on this machine. A run that draws its responses
  from an adapted model gets float32, because sampling merges the adapter into kernels of this type.
  """
  if config.compute_dtype != arithmetic.AUTO:
    return config
  workdir = paths.path(config.workdir) if config.workdir else None
  kept = processes.from_first(lambda alive: _compute_dtype(workdir) if workdir else '')
  drawn = config.adapter and config.prompts
  return dataclasses.replace(
    config, compute_dtype=kept or ('float32' if drawn else arithmetic.resolve(arithmetic.AUTO))
  )


def _compute_dtype(workdir: pathlib.Path) -> str:
  """The type of activations in the newest readable checkpoint; '' if there is none."""
  for content in _saved(workdir):
    found = content.get('config', {}).get('compute_dtype')
    if found in arithmetic.DTYPES:
      return found
  return ''


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
  for content in _saved(workdir):
    try:
      yield datetime.datetime.fromisoformat(content['identity'][IDENTITY])
    except (ValueError, LookupError, TypeError):
      continue
  try:
    yield datetime.datetime.fromisoformat((workdir / FILE).read_text(encoding='utf-8').strip())
  except (FileNotFoundError, NotADirectoryError):
    return
  except (OSError, ValueError) as error:
    raise ValueError(
      f'{workdir / FILE}: does not hold the date of the first start ({error}); write it as 2026-01-31T12:00:00, or '
      'remove the file to use the present date'
    ) from None


def _saved(workdir: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """What checkpoints record about the run, the newest first."""
  steps = [folder for folder in workdir.glob('checkpoints/*') if folder.name.isdecimal()]
  for folder in sorted(steps, key=lambda folder: -int(folder.name)):
    try:
      content = json.loads((folder / 'metadata' / 'metadata').read_bytes())['content']
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
      continue  # a damaged checkpoint: restoring reports it
    if isinstance(content, dict) and isinstance(content.get('config', {}), dict):
      yield content
