"""Judges as values: the probability that the first of two responses to a prompt is better.

A judge that reads two texts may prefer the first or the second place. Every pair is judged in both orders, and the two
log-odds are averaged: log-odds d + b of the better response in the first place and -d + b in the second give d, and
reveal the position bias b.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from alignjax import expressions, registry, rewards
from alignjax.data.reading import rows
from alignjax.rewards import watching

LARGEST = 30.0  # nats; largest log-odds, so that a judge that is certain of both orders calls a tie

Compare = Callable[[Sequence[tuple[rows.Prompt, str, str]]], np.ndarray]
"""(prompt, response, other response) of n pairs -> [n], the probability that the first response is better."""

Pair = tuple[rewards.Sample, rewards.Sample]
"""Two responses to one prompt."""


class JudgeError(ValueError):
  """A judge that raises, or returns something other than one probability per pair."""


class Verdicts(NamedTuple):
  """The verdicts of a judge on n pairs."""

  log_odds: np.ndarray  # [n] float64, nats: log P(first is better) - log P(second is better), the mean of both orders
  position_bias: np.ndarray  # [n] float64, nats: half the difference of the two orders; above 0, it prefers the first

  @property
  def probability(self) -> np.ndarray:
    """[n]: P(first is better)."""
    return np.exp(-np.logaddexp(0.0, -self.log_odds))

  @property
  def wins(self) -> np.ndarray:
    """[n]: 1 if the first is better, 0 if the second is, 1/2 for a tie."""
    return 0.5 + 0.5 * np.sign(self.log_odds)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Judge:
  """A judge of pairs of responses.

  Args:
    name: an expression that builds it.
    compare: function that maps pairs to verdicts.
    collective: whether all processes of a run must compute it together, as for a model that is sharded over them.
    fingerprint: identifies the contents of the models that it reads; empty if it reads none.
  """

  name: str
  compare: Callable[[Sequence[Pair]], Verdicts]
  collective: bool = False
  fingerprint: str = ''

  def __repr__(self) -> str:
    return self.name

  def __call__(self, pairs: Sequence[Pair]) -> np.ndarray:
    """[n]: P(first is better). Raises as `verdicts` does."""
    return self.verdicts(pairs).probability

  def verdicts(self, pairs: Sequence[Pair], *, tick: Callable[[], None] | None = None) -> Verdicts:
    """Judges pairs of responses to the same prompt.

    Args:
      pairs: n pairs.
      tick: called about once per second, in this thread.

    Raises:
      JudgeError: the judge fails, or does not return one probability per pair.
    """
    try:
      return watching.watched(lambda: self.compare(pairs), watching.Watch(0.0, tick))
    except Exception as error:  # a user's function may raise anything
      reason = str(error) if isinstance(error, JudgeError | rewards.RewardError) else f'{type(error).__name__}: {error}'
      raise JudgeError(f'judge {self.name}: {reason}') from error


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """[...]: 1 where two judges prefer the same response, 0 where they disagree, 1/2 where one of them calls a tie.

  Args:
    first, second: wins by each judge, [...], 1, 1/2 or 0.
  """
  return first * second + (1.0 - first) * (1.0 - second)


def both_orders(compare: Compare) -> Callable[[Sequence[Pair]], Verdicts]:
  """Judges by texts, in both orders: the mean of the log-odds, and the position bias."""

  def judged(pairs: Sequence[Pair]) -> Verdicts:
    texts = [(first.prompt, first.response, second.response) for first, second in pairs]
    swapped = [(prompt, second, first) for prompt, first, second in texts]
    both = _log_odds(compare([*texts, *swapped]), 2 * len(texts))
    straight, reverse = both[: len(texts)], both[len(texts) :]
    return Verdicts((straight - reverse) / 2, (straight + reverse) / 2)

  return judged


def _log_odds(found: Any, count: int) -> np.ndarray:
  """[n] nats: log p - log(1 - p) of the probabilities that a judge has returned."""
  try:
    probability = np.asarray(found, np.float64)
  except (TypeError, ValueError) as error:
    raise JudgeError(f'it must return numbers: {error}') from error
  if probability.shape != (count,):
    raise JudgeError(
      f'it must return one probability per pair, an array of shape ({count},) for {count // 2} pairs in both orders, '
      f'got shape {probability.shape}'
    )
  wrong = np.flatnonzero(~((probability >= 0) & (probability <= 1)))
  if wrong.size:
    raise JudgeError(f'it returned {probability[wrong[0]]} for pair {wrong[0] % (count // 2)}: not a probability')
  with np.errstate(divide='ignore'):
    return np.clip(np.log(probability) - np.log1p(-probability), -LARGEST, LARGEST)


JUDGES: dict[str, Callable[..., Judge]] = {}
"""All judge factories, by their names in expressions; `factory` adds entries."""


def factory[**P](build: Callable[P, Compare | Judge]) -> Callable[P, Judge]:
  """Registers a function that builds a judge, so that expressions can use its name.

  Args:
    build: a function of literals and rewards. It returns a judge, or a `Compare`, which is called with both orders.

  Returns:
    A function with the same arguments that returns a `Judge`.

  Raises:
    ValueError: another function is registered under the same name.
  """

  @functools.wraps(build)
  def named(*args: P.args, **kwargs: P.kwargs) -> Judge:
    made, name = build(*args, **kwargs), registry.expression(build, args, kwargs)
    if isinstance(made, Judge):
      return dataclasses.replace(made, name=name)
    of_models = getattr(made, 'collective', False), getattr(made, 'fingerprint', '')
    return Judge(name, both_orders(made), *of_models)

  return registry.add(JUDGES, named, 'judges')


def parse(text: str) -> Judge:
  """Reads a judge from its expression, such as `'judge("models/qwen")'` or `'as_judge(vader() - missing_end(1.0))'`.

  Raises:
    ExpressionError: the text is not a valid judge. The message shows the position, the reason and the known names.
  """
  known = {'judges': JUDGES, 'rewards': rewards.REWARDS}
  return expressions.parse(text, Judge, 'a judge', known, operand=expressions.Kind(rewards.Reward, 'a reward'))


@factory
def as_judge(reward: rewards.Reward, scale: float = 1.0) -> Judge:
  """Judges by a reward: P(first is better) = sigmoid((r_first - r_second) / scale). It has no position bias.

  Args:
    reward: a reward, such as `reward_model(...)` or `length(...)`.
    scale: difference of rewards of 1 nat of log-odds, > 0; 1 for a reward model of `bradley_terry()`, not normalised.

  Raises:
    ValueError: the reward is none, or scale is not positive.
  """
  if not isinstance(reward, rewards.Reward):
    raise ValueError(f'as_judge: the first argument must be a reward, not {reward!r}')
  if not 0 < scale < np.inf:
    raise ValueError(f'as_judge: scale={scale} must be positive and finite')

  def compare(pairs: Sequence[Pair]) -> Verdicts:
    scores = reward([sample for pair in pairs for sample in pair]).reshape(len(pairs), 2)
    return Verdicts((scores[:, 0] - scores[:, 1]) / scale, np.zeros(len(pairs)))

  return Judge('as_judge', compare, reward.collective, reward.fingerprint)
