"""Oracles of `alignjax.objectives.distillation`: token by token, over the whole vocabulary."""

import numpy as np

from tests.oracles.data import Case


def distil(data, first, second):
  """KL(first || second) of each position, averaged over the tokens of a response, then over responses."""
  loss = []
  for row, lengths in enumerate(data.length):
    values = []
    for n, size in enumerate(lengths):
      p, q = first[row, n, :size], second[row, n, :size]
      values.append(np.mean([np.sum(np.exp(p[t]) * (p[t] - q[t])) for t in range(size)]))
    loss.append(np.mean(values))
  return np.array(loss)


CASES = (
  Case('distil()', lambda d, _: distil(d, d.policy, d.reference), responses=1, at_reference=0.0),
  Case("distil(divergence='forward')", lambda d, _: distil(d, d.reference, d.policy), responses=3, at_reference=0.0),
)
