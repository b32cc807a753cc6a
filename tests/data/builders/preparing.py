"""Data sets that the tests of the builders prepare from files that they write."""

import gzip
import json
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from alignjax.data import builders

tfds.disable_progress_bar()


def write(path: pathlib.Path, rows: list[Any]) -> pathlib.Path:
  """Writes one row a line: bytes as they stand, all else as JSON."""
  lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
  content = b'\n'.join(lines) + b'\n'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)
  return path


def build(folder: pathlib.Path, name: str, files: dict[str, list[Any]], **options) -> builders.base.PreferenceBuilder:
  """Prepares a data set in folder/data from files in folder/manual."""
  for file, rows in files.items():
    write(folder / 'manual' / file, rows)
  return builders.build(name, manual_dir=folder / 'manual', data_dir=folder / 'data', **options)
