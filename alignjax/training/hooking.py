"""Functions that the training loop calls after some of the updates."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from alignjax.training.state import TrainState


class Hook(NamedTuple):
  """A function, and the updates after which the loop calls it.

  The metrics of the update are written first. The next update donates the state, so `call` must not keep a reference to
  it. Every process calls every hook.
  """

  due: Callable[[int], bool]  # updates done -> whether to call
  call: Callable[[int, TrainState], None]  # receives the updates done, and the state after them


def every(steps: int, call: Callable[[int, TrainState], None]) -> Hook:
  """Calls a function after every `steps` updates. Raises a ValueError if `steps` is below 1."""
  if steps < 1:
    raise ValueError(f'steps={steps}: a hook is called every 1 or more updates')
  return Hook(lambda done: done % steps == 0, call)


def at(steps: Collection[int], call: Callable[[int, TrainState], None]) -> Hook:
  """Calls a function after each of these numbers of updates. Hooks follow an update, so 0 is never reached."""
  return Hook(frozenset(steps).__contains__, call)
