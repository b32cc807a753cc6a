"""Reads small files that users name, with one clear error for everything that can be wrong; replaces files."""

import json
import os
import pathlib
from typing import Any

from alignjax import paths

MAX_BYTES = 2**30  # of a file that is read as a whole


def check_regular(path: str | os.PathLike[str]) -> pathlib.Path:
  """The path, if it is a file. Reading a pipe or a device could block forever.

  Raises:
    ValueError: there is no such file, or it is a folder, a pipe or a device.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return path
  if path.is_dir():
    raise ValueError(f'{path}: is a folder, not a file')
  if path.exists():
    raise ValueError(f'{path}: is a pipe or a device, not a file')
  raise ValueError(f'{path}: there is no such file')


def replace(path: pathlib.Path, content: bytes) -> None:
  """Writes a small file. Whoever reads it finds the old content or the new one, also after a crash.

  On a disk, a partial file beside it is renamed. An object store replaces an object as a whole.
  """
  if paths.scheme(path):
    path.write_bytes(content)
    return
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(content)
  os.replace(partial, path)


def read_text(path: str | os.PathLike[str]) -> str:
  """The text of a file in UTF-8.

  Raises:
    ValueError: it is no file, is too large, or is not UTF-8. The message names it.
  """
  path = check_regular(path)
  size = path.stat().st_size
  if size > MAX_BYTES:
    raise ValueError(f'{path}: has {size:,} bytes, more than {MAX_BYTES:,}')
  try:
    return path.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: byte {error.start + 1} is not valid UTF-8; save the file as UTF-8') from None


def read_json(path: str | os.PathLike[str]) -> Any:
  """The value in a JSON file.

  Raises:
    ValueError: it cannot be read as text, or is not JSON. The message names the file.
  """
  text = read_text(path)
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError(f'{path}: the JSON is nested too deeply') from None
  except ValueError as error:
    raise ValueError(f'{path}: not JSON: {error}') from None
