"""Disks that are full, or become so."""

from collections.abc import Iterator
import contextlib
import pathlib
import subprocess

import pytest


@contextlib.contextmanager
def small(folder: pathlib.Path, size: str) -> Iterator[pathlib.Path]:
  """Creates a folder and mounts a file system of this size there, which only root may do."""
  folder.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], capture_output=True).returncode:
    pytest.skip('file systems cannot be mounted here')
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', folder], check=True)
