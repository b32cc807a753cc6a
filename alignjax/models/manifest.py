"""The manifest of a model folder: the SHA-256 of each file, and what the folder was written from.

  {"source": {"step": 8, ...}, "sha256": {"config.json": "5d2c...", "model.safetensors": "81f0..."}}

Every folder that alignjax writes has one, and it is checked whenever the folder is read. A folder without a manifest is
read unchecked. Other tools ignore the file.
"""

from collections.abc import Callable, Mapping
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from alignjax import paths

FILE = 'alignjax_export.json'


def write(folder: pathlib.Path, source: Mapping[str, Any]) -> None:
  """Writes the manifest of the files in a folder.

  Args:
    folder: holds the files, and no manifest.
    source: identifies the run and the step of the files, in JSON types. `fault` compares it.
  """
  sums = {name: sha256(folder / name) for name in paths.file_names(folder)}
  text = json.dumps({'source': dict(source), 'sha256': sums}, indent=2) + '\n'
  (folder / FILE).write_text(text, encoding='utf-8')


def check_weights(folder: str | os.PathLike[str], part: int = 0, parts: int = 1) -> None:
  """Compares the weight files of a folder with its manifest, if there is one.

  Args:
    folder: a folder.
    part: which share of the files to check, from 0.
    parts: the number of shares.

  Raises:
    ValueError: a file is missing or damaged, or the manifest is. The message names it and what to do.
  """
  _check(pathlib.Path(folder), _is_weights, slice(part, None, parts))


def check_settings(folder: str | os.PathLike[str]) -> None:
  """Compares the small files of a folder, such as the tokenizer, with its manifest. Raises: see `check_weights`."""
  _check(pathlib.Path(folder), lambda name: not _is_weights(name))


def fault(folder: pathlib.Path, source: Mapping[str, Any]) -> str:
  """Describes why a folder does not hold what was written from `source`; '' if it does."""
  if not (folder / FILE).exists():
    return f'has no {FILE}'
  try:
    entries = _read(folder)
    if entries['source'] != source:
      return 'was written from another state'
    _compare(folder, entries['sha256'])
  except ValueError as error:
    return str(error)
  return ''


def sha256(path: pathlib.Path) -> str:
  """The SHA-256 of a file in hexadecimal digits. On a disk it is computed once for each version in a process."""
  if paths.scheme(path):
    with path.open('rb') as stream:
      return hashlib.file_digest(stream, 'sha256').hexdigest()
  status = path.stat()
  return _sha256(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=256)
def _sha256(path: pathlib.Path, *version: int) -> str:
  del version
  with path.open('rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()


def _is_within(name: str) -> bool:
  """Whether this is the name of a file in a model folder."""
  *parents, own = pathlib.PurePosixPath(name).parts
  return name == '/'.join((*parents, own)) and own != '..' and (not parents or '/'.join(parents) in paths.SUBFOLDERS)


def _is_weights(name: str) -> bool:
  return name.endswith('.safetensors')


def _check(folder: pathlib.Path, selected: Callable[[str], bool], share: slice = slice(None)) -> None:
  if not (folder / FILE).exists():
    return
  try:
    sums = _read(folder)['sha256']
    names = sorted(filter(selected, sums))[share]
    _compare(folder, {name: sums[name] for name in names})
  except ValueError as error:
    raise ValueError(
      f'{error}. Copy or write the model again; the training command that wrote it repairs it. To use the folder '
      f'anyway, delete {folder / FILE}'
    ) from None


def _compare(folder: pathlib.Path, sums: Mapping[str, str]) -> None:
  for name in sums:
    if not (folder / name).is_file():
      raise ValueError(f'{folder / name}: is missing')
    if sha256(folder / name) != sums[name]:
      raise ValueError(f'{folder / name}: has changed since it was written (its SHA-256 differs from that in {FILE})')


def _read(folder: pathlib.Path) -> dict[str, Any]:
  try:
    entries = json.loads((folder / FILE).read_bytes())
    sums = entries['sha256']
    sound = all(isinstance(value, str) and _is_within(name) for name, value in sums.items())
    if not sound or not isinstance(entries['source'], dict):
      raise ValueError('an entry is malformed')
  except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
    raise ValueError(f'{folder / FILE}: is damaged') from None
  return entries
