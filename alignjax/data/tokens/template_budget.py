"""What a rendering of a chat template may cost: a budget of units, about 16 bytes or 100 ns each.

The cost depends on no clock, so a template fails on every machine or on none.
"""

from collections.abc import Iterator, MappingView
from typing import Any

MAX_TEXT = 2**20  # bytes of the largest value; the messages may add 4 times their own size
UNITS = 1_000_000
UNITS_PER_MESSAGE = 20_000
CELL = 16  # bytes of an entry of a list or a dict
ITEM_COST = 8  # units for an item that a filter reads
CONTAINERS = (list, tuple, dict, MappingView)
_LARGE = 2**14  # bytes of text that make every further operation cost one unit more


class LimitError(Exception):
  """A template costs too much, or uses something whose cost is not bounded."""


class Budget:
  """What is left to one rendering.

  Args:
    messages: number of messages that are rendered.
    size: bytes of their text.
  """

  def __init__(self, messages: int = 0, size: int = 0):
    self.limit = MAX_TEXT + 4 * size  # bytes of the largest value
    self.units = UNITS + UNITS_PER_MESSAGE * messages + 4 * size
    self._factor = 1  # cost of a node: more if there are large values, which it may read or compare

  def tick(self, nodes: int) -> None:
    """Pays for a body with this many nodes. Raises as `spend` does."""
    self.units -= nodes * self._factor
    if self.units < 0:
      self.spend(0)

  def spend(self, units: int) -> None:
    """Pays units.

    Raises:
      LimitError: none are left.
    """
    self.units -= units
    if self.units < 0:
      raise LimitError('it takes too many operations')

  def check(self, size: int) -> None:
    """Raises a LimitError if a value would have too many bytes."""
    if size > self.limit:
      raise LimitError(f'it makes a value of more than {self.limit:,} bytes')

  def made(self, value: Any) -> Any:
    """Pays for a value that the template has made, and returns it. A generator is paid item by item."""
    if isinstance(value, str):
      size = len(value) if value.isascii() else 4 * len(value)
      self.units -= size // CELL
      if size >= _LARGE:
        self.check(size)
        self._factor = max(self._factor, 1 + size // _LARGE)
      if self.units < 0:
        self.spend(0)
    elif isinstance(value, CONTAINERS):
      cells, _ = self.measure(value)
      self._factor = max(self._factor, 1 + cells // 32)
      self.spend(cells)
    elif isinstance(value, Iterator):
      return self._paid(value)
    return value

  def measure(self, value: Any) -> tuple[int, int]:
    """Entries of a value and of all values in it, each as often as it occurs, and its bytes.

    Raises:
      LimitError: the value is too large. So whatever walks through a value, such as its conversion to text, ends.
    """
    cells, size, stack = 1, 0, [value]
    while stack:
      item = stack.pop()
      if isinstance(item, str):
        size += text_size(item)
      elif isinstance(item, CONTAINERS):
        cells += len(item)
        stack.extend(item)
        if isinstance(item, dict):
          stack.extend(item.values())
      self.check(cells * CELL + size)
    return cells, cells * CELL + size

  def _paid(self, items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
      self.spend(ITEM_COST)
      yield item


def text_size(text: str) -> int:
  """Bytes of a string, at most."""
  return len(text) if text.isascii() else 4 * len(text)
