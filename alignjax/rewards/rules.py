"""Rewards by rule: length, a missing end, a known answer, a pattern."""

from collections.abc import Sequence
import re

import numpy as np

from alignjax.rewards import base


@base.factory
def length(target: float, scale: float) -> base.Score:
  """Closeness of the length to a target: exp(-((tokens - target) / scale)^2 / 2), in (0, 1].

  Args:
    target: the length with reward 1, in tokens, the end token included.
    scale: distance from the target at which the reward is 0.61, in tokens, > 0.

  Raises:
    ValueError: scale is not positive.
  """
  if not scale > 0:
    raise ValueError(f'length: scale={scale} must be positive')

  def score(samples: Sequence[base.Sample]) -> np.ndarray:
    tokens = np.array([sample.tokens for sample in samples], np.float64)
    return np.exp(-0.5 * ((tokens - target) / scale) ** 2)

  return score


@base.factory
def missing_end(penalty: float = 1.0) -> base.Score:
  """`penalty` for a response that was cut off before its end token, 0 for a finished one. Subtract it from a reward."""

  def score(samples: Sequence[base.Sample]) -> np.ndarray:
    return np.array([0.0 if sample.finished else penalty for sample in samples], np.float64)

  return score


@base.factory
def exact_answer(field: str) -> base.Score:
  """1 if the response equals the answer in a column of the prompt's row, 0 if not. White space around both is ignored.

  Args:
    field: the name of the column.
  """

  def score(samples: Sequence[base.Sample]) -> np.ndarray:
    for sample in samples:
      if field not in sample.fields:
        known = ', '.join(map(repr, sample.fields)) or 'none'
        raise ValueError(f'the row of a prompt has no column {field!r}; it has: {known}')
    return np.array([str(sample.fields[field]).strip() == sample.response.strip() for sample in samples], np.float64)

  return score


@base.factory
def matches(regex: str) -> base.Score:
  """1 if the regular expression matches anywhere in the response, 0 if not.

  Raises:
    ValueError: `regex` is not a regular expression.
  """
  try:
    pattern = re.compile(regex)
  except re.error as error:
    raise ValueError(f'matches: {regex!r} is not a regular expression: {error}') from error

  def score(samples: Sequence[base.Sample]) -> np.ndarray:
    return np.array([pattern.search(sample.response) is not None for sample in samples], np.float64)

  return score
