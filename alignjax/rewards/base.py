"""Rewards as values: what scores a response, and the algebra of rewards (`a + b`, `a - b`, `0.7 * a`, `a / 2`)."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from alignjax import expressions, registry
from alignjax.data.reading import rows
from alignjax.objectives import namespaces
from alignjax.rewards import watching

_SHOWN = 80  # characters of a response in a message


class Sample(NamedTuple):
  """One response to a prompt, and everything that a reward may read."""

  prompt: rows.Prompt
  response: str
  tokens: int  # length of the response, the end token included
  finished: bool  # False if the response was cut off before its end token
  fields: Mapping[str, Any] = {}  # other columns of the prompt's row, such as a known answer


Score = Callable[[Sequence[Sample]], np.ndarray]
"""Samples -> [n], one finite number per sample; higher is better. A function, a partial or a callable object."""


class RewardError(ValueError):
  """A reward that raises, hangs, or returns something other than one finite number per sample."""


class Scores(NamedTuple):
  """The scores of n samples."""

  total: np.ndarray  # [n] float64
  parts: Mapping[str, np.ndarray]  # [n] float64 each, by the names of the parts, without their coefficients


class Part(NamedTuple):
  """A summand of a reward: `coefficient * score(samples)`."""

  coefficient: float
  name: str  # the expression that builds it
  score: Score


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Reward:
  """A linear combination of scores. Each part is computed once per call, checked, and reported under its name.

  Args:
    parts: the summands; those of equal names share one score.
  """

  parts: tuple[Part, ...]

  def __call__(self, samples: Sequence[Sample]) -> np.ndarray:
    """The reward of each sample, [n] float64. Raises as `scores` does."""
    return self.scores(samples).total

  def scores(
    self, samples: Sequence[Sample], *, seconds: float = 0.0, first: int = 0, tick: Callable[[], None] | None = None
  ) -> Scores:
    """Computes the reward of each sample and its parts.

    Args:
      samples: n samples.
      seconds: longest time of one part; 0 for no limit.
      first: the number of the first sample; error messages count from it.
      tick: called about once per second while a part is computed, in this thread.

    Raises:
      RewardError: a part raises an exception, exceeds the time limit, or does not return one finite number per sample.
        The message names the part and the sample.
    """
    parts, total = {}, np.zeros(len(samples))
    for part in self.parts:
      if part.name not in parts:
        found = _computed(part, samples, watching.Watch(seconds, tick), first)
        parts[part.name] = _checked(part, found, samples, first)
      total += part.coefficient * parts[part.name]
    return Scores(total, parts)

  @property
  def collective(self) -> bool:
    """Whether all processes of a run must compute a part together, as for a reward model that is sharded over them."""
    return any(getattr(part.score, 'collective', False) for part in self.parts)

  @property
  def fingerprints(self) -> dict[str, str]:
    """Identifies the contents of the models that parts read, by the names of the parts."""
    found = {part.name: getattr(part.score, 'fingerprint', '') for part in self.parts}
    return {name: fingerprint for name, fingerprint in found.items() if fingerprint}

  @property
  def fingerprint(self) -> str:
    """Identifies the contents of all models that the reward reads; empty if it reads none."""
    return ' '.join(self.fingerprints.values())

  @property
  def labels(self) -> dict[str, str]:
    """A short unique label for each part, by name: `{'length(target=64, scale=16)': 'length'}`."""
    names = list(dict.fromkeys(part.name for part in self.parts))
    short = [re.match(r'\w*', name).group() or 'part' for name in names]
    return dict(zip(names, namespaces.Namespaces(short).prefixes, strict=True))

  @property
  def name(self) -> str:
    """An expression that builds the reward again."""
    text = ''
    for coefficient, name, _ in self.parts:
      sign = '-' if math.copysign(1.0, coefficient) < 0 else '+'
      size = abs(coefficient)
      term = name if size == 1 else f'{size!r} * {name}'
      text += f' {sign} {term}' if text else term if sign == '+' else f'-{term}'
    return text

  def __repr__(self) -> str:
    return self.name

  def __add__(self, other: 'Reward') -> 'Reward':
    return Reward(self.parts + other.parts) if isinstance(other, Reward) else NotImplemented

  def __radd__(self, other: int) -> 'Reward':
    return self if isinstance(other, int) and other == 0 else NotImplemented  # `sum` starts from 0

  def __neg__(self) -> 'Reward':
    return -1.0 * self

  def __sub__(self, other: 'Reward') -> 'Reward':
    return self + -other if isinstance(other, Reward) else NotImplemented

  def __rmul__(self, coefficient: float) -> 'Reward':
    if isinstance(coefficient, bool) or not isinstance(coefficient, int | float):
      return NotImplemented
    if not math.isfinite(coefficient):
      raise ValueError(f'a reward can only be scaled by a finite number, not by {coefficient}')
    return Reward(tuple(part._replace(coefficient=coefficient * part.coefficient) for part in self.parts))

  __mul__ = __rmul__

  def __truediv__(self, divisor: float) -> 'Reward':
    if isinstance(divisor, bool) or not isinstance(divisor, int | float):
      return NotImplemented
    if divisor == 0:
      raise ZeroDivisionError('a reward cannot be divided by 0')
    return (1.0 / divisor) * self


def _computed(part: Part, samples: Sequence[Sample], watch: watching.Watch, first: int) -> Any:
  """What a part returns."""
  try:
    return watching.watched(lambda: part.score(samples), watch)
  except watching.TookTooLong as error:
    raise RewardError(
      f'reward {part.name}: scoring {_span(samples, first)} took longer than {watch.seconds:g} seconds. Speed it up, '
      'or raise the time limit'
    ) from error
  except Exception as error:  # a user's function may raise anything
    raise RewardError(
      f'reward {part.name}: scoring {_span(samples, first)} failed: {type(error).__name__}: {error}'
    ) from error


def _checked(part: Part, found: Any, samples: Sequence[Sample], first: int) -> np.ndarray:
  """[n] float64: what a part has returned, if it is one finite number per sample."""
  whose, over = f'reward {part.name}', _span(samples, first)
  try:
    values = np.asarray(found, np.float64)
  except (TypeError, ValueError) as error:
    raise RewardError(f'{whose} must return numbers for {over}: {error}') from error
  if values.shape != (len(samples),):
    raise RewardError(
      f'{whose} must return one number per sample, an array of shape ({len(samples)},) for {over}, '
      f'got shape {values.shape}'
    )
  wrong = np.flatnonzero(~np.isfinite(values))
  if wrong.size:
    row = int(wrong[0])
    response = samples[row].response
    shown = repr(response if len(response) <= _SHOWN else f'{response[:_SHOWN]}...')
    raise RewardError(
      f'{whose} is {values[row]} for sample {first + row}, and not finite for {wrong.size} of {len(samples)} samples. '
      f'Response: {shown}'
    )
  return values


def _span(samples: Sequence[Sample], first: int) -> str:
  return f'samples {first} to {first + len(samples) - 1}'


REWARDS: dict[str, Callable[..., Reward]] = {}
"""All reward factories, by their names in expressions; `factory` adds entries."""


def factory[**P](build: Callable[P, Score | Reward]) -> Callable[P, Reward]:
  """Registers a function that builds a score, so that expressions can use its name.

  Args:
    build: a function of literals and rewards. It returns a function from samples to [n] numbers, or a reward, which
      then becomes a single part.

  Returns:
    A function with the same arguments that returns a `Reward`.

  Raises:
    ValueError: another function is registered under the same name.
  """

  @functools.wraps(build)
  def named(*args: P.args, **kwargs: P.kwargs) -> Reward:
    return Reward((Part(1.0, registry.expression(build, args, kwargs), build(*args, **kwargs)),))

  return registry.add(REWARDS, named, 'rewards')


def parse(text: str) -> Reward:
  """Reads a reward from its expression, such as `'0.7 * vader() - missing_end(1.0)'`.

  Raises:
    ExpressionError: the text is not a valid reward. The message shows the position, the reason and the known names.
  """
  return expressions.parse(text, Reward, 'a reward', {'rewards': REWARDS})
