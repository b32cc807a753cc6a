"""What the processes of a run see in a folder that they share. On some file systems they do not see it at once."""

from collections.abc import Callable
import json
import pathlib
import time

import jax

from alignjax.training import processes

VISIBLE = 20.0  # seconds until all processes must see what process 0 sees
POLL = 0.1  # seconds between looks


def agreed(folder: pathlib.Path, look: Callable[[], list[str]]) -> list[str]:
  """The names that process 0 sees in a folder. The other processes wait until they see the same.

  All processes must call it. What follows then depends on no process's own view.

  Args:
    folder: named in the error.
    look: lists the names, in JSON types.

  Raises:
    ValueError: a process does not see the same in time. Every process raises.
  """
  expected = json.loads(processes.from_first(lambda alive: json.dumps(look())))
  processes.on_all(lambda: _wait(folder, look, expected))
  return expected


def _wait(folder: pathlib.Path, look: Callable[[], list[str]], expected: list[str]) -> None:
  deadline = time.monotonic() + VISIBLE
  while jax.process_index() and (seen := look()) != expected:
    if time.monotonic() > deadline:
      raise ValueError(
        f'{folder}: holds {", ".join(expected) or "nothing"} as process 0 sees it, but {", ".join(seen) or "nothing"} '
        f'as process {jax.process_index()} does. All processes must share the work directory'
      )
    time.sleep(POLL)
