"""Ways in which a file is damaged on disk, at random places."""

from collections.abc import Callable, Mapping
import pathlib
import random
import types

BLOCK = 16  # bytes
PAGE = 4096


def _flip(content: bytearray, draw: random.Random) -> bytes:
  bit = draw.randrange(8 * len(content))
  content[bit // 8] ^= 1 << bit % 8
  return content


def _truncate(content: bytearray, draw: random.Random) -> bytes:
  return content[: draw.randrange(len(content))]


def _zeros(content: bytearray, draw: random.Random) -> bytes:
  start = draw.randrange(max(1, len(content) - PAGE))
  size = min(PAGE, len(content) - start)
  content[start : start + size] = bytes(size)
  return content


def _exchange(content: bytearray, draw: random.Random) -> bytes:
  """Exchanges two blocks."""
  first, second = (BLOCK * place for place in draw.sample(range(max(2, len(content) // BLOCK)), 2))
  one, other = content[first : first + BLOCK], content[second : second + BLOCK]
  content[first : first + len(other)], content[second : second + len(one)] = other, one
  return content


# The new content of a file; None removes it.
KINDS: Mapping[str, Callable[[bytearray, random.Random], bytes | None]] = types.MappingProxyType(
  {
    'one bit flipped': _flip,
    'truncated': _truncate,
    'deleted': lambda content, draw: None,
    '4 KiB of zeros': _zeros,
    'empty': lambda content, draw: b'',
    'bytes appended': lambda content, draw: content + draw.randbytes(draw.randint(1, 64)),
    'all random': lambda content, draw: draw.randbytes(len(content)),
    '16-byte blocks exchanged': _exchange,
  }
)


def damage(path: pathlib.Path, kind: str, draw: random.Random) -> bool:
  """Damages a file; False if this kind of damage leaves it as it was."""
  before = path.read_bytes()
  if not before:
    return False
  after = KINDS[kind](bytearray(before), draw)
  if after is None:
    path.unlink()
  elif bytes(after) == before:
    return False
  else:
    path.write_bytes(after)
  return True
