"""What a reward is, and the names under which expressions know rewards."""

from collections.abc import Callable, Sequence

import numpy as np

from alignjax import expressions, registry

Reward = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(prompts, responses), aligned one to one -> float64 [len(responses)], higher is better."""

REWARDS: dict[str, Callable[..., Reward]] = {}
"""Every factory by the name that expressions use; `factory` adds to it."""


def factory[**P](build: Callable[P, Reward]) -> Callable[P, Reward]:
  """Registers a function that builds a reward, so that expressions know it by its name.

  Raises:
    ValueError: another function is registered under the name.
  """
  return registry.add(REWARDS, build, 'rewards')


def parse(text: str) -> Reward:
  """Reads a reward from its expression, such as `'vader()'`.

  Raises:
    ExpressionError: for anything else. The message shows where, gives the reason and lists the known names.
  """
  return expressions.parse(text, Callable, 'a reward', {'rewards': REWARDS})
