"""How varied responses are."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def distinct_n(responses: Iterable[Sequence[Hashable]], n: int) -> float:
  """Number of different n-grams over the number of n-grams, in all responses together.

  It falls as responses get longer or more numerous, so compare only sets of similar size.

  Args:
    responses: token ids or words of each response. Those shorter than n have no n-gram.
    n: number of tokens in an n-gram, at least 1.

  Returns:
    A share in (0, 1]; nan if there is no n-gram.

  Raises:
    ValueError: n is below 1.

  References:
    Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models,
    https://arxiv.org/abs/1510.03055, section 5.2.
  """
  if n < 1:
    raise ValueError(f'n={n} must be at least 1')
  grams = [tuple(response[i : i + n]) for response in responses for i in range(len(response) - n + 1)]
  return len(set(grams)) / len(grams) if grams else float(np.nan)
