"""The reward interface and the registry of rewards for expressions."""

from collections.abc import Callable, Sequence

import numpy as np

from alignjax import expressions, registry

Reward = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(prompts, responses), one prompt per response -> float64 [len(responses)]; higher is better."""

REWARDS: dict[str, Callable[..., Reward]] = {}
"""All reward factories, by their names in expressions; `factory` adds entries."""


def factory[**P](build: Callable[P, Reward]) -> Callable[P, Reward]:
  """Registers a function that builds a reward, so that expressions can use its name.

  Raises:
    ValueError: another function is registered under the same name.
  """
  return registry.add(REWARDS, build, 'rewards')


def parse(text: str) -> Reward:
  """Reads a reward from its expression, such as `'vader()'`.

  Raises:
    ExpressionError: the text is not a valid reward. The message shows the position, the reason and the known names.
  """
  return expressions.parse(text, Callable, 'a reward', {'rewards': REWARDS})
