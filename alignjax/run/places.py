"""Settings whose paths lead into object stores, turned into settings with paths on this disk."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
from typing import Any

from absl import logging

from alignjax import paths, transfers
from alignjax.run import fields


@contextlib.contextmanager
def on_disk[S](settings: S, announce: Callable[[str], None] = logging.info) -> Iterator[S]:
  """Copies what the settings read to this disk. Copies what they write to the object store when the block succeeds.

  The folder of a run stays where it is.

  Args:
    settings: a dataclass made of `fields.field`.
    announce: called with a message for each copy.

  Yields:
    The settings with the paths of the copies.

  Raises:
    ValueError: a file does not exist, or one to be written exists.
    OSError: an object store cannot be reached.
  """
  with contextlib.ExitStack() as stack:
    yield _moved(
      settings,
      {
        paths.READ: functools.partial(transfers.fetched, announce=announce),
        paths.WRITTEN: lambda path: stack.enter_context(transfers.delivered(path)),
      },
    )


def _moved(settings: Any, moves: dict[str, Callable[[str], str]]) -> Any:
  changes = {}
  for item in dataclasses.fields(settings):
    value = getattr(settings, item.name)
    move = moves.get(item.metadata.get('path'))
    if dataclasses.is_dataclass(value):
      changes[item.name] = _moved(value, moves)
    elif move is not None:
      changes[item.name] = fields.map_paths(item, value, move)
  if all(value == getattr(settings, name) for name, value in changes.items()):
    return settings
  return dataclasses.replace(settings, **changes)
