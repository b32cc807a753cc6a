"""Ways in which a disk damages a file."""

import os
import pathlib

import numpy as np


def flip(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[-3] ^= 1
  path.write_bytes(bytes(content))


def cut(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[:-5])


def zero(path: pathlib.Path) -> None:
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def exchange(path: pathlib.Path) -> None:
  """Exchanges two blocks of 8 bytes that differ."""
  content = path.read_bytes()
  start = next(i for i in range(0, len(content) - 8, 8) if content[i : i + 8] != content[-8:])
  path.write_bytes(content[:start] + content[-8:] + content[start + 8 : -8] + content[start : start + 8])


def replace_by_pipe(path: pathlib.Path) -> None:
  path.unlink()
  os.mkfifo(path)


KINDS = {
  'flip': flip,
  'cut': cut,
  'zero': zero,
  'exchange': exchange,
  'append': lambda path: path.write_bytes(path.read_bytes() + b'x'),
  'empty': lambda path: path.write_bytes(b''),
  'random': lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
  'remove': lambda path: path.unlink(),
  'pipe': replace_by_pipe,
}
