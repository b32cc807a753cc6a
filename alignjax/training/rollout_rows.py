"""From a round of rollouts to rows of training batches: which responses of a prompt form a row, and their scores."""

from collections.abc import Callable, Collection
import dataclasses
from typing import NamedTuple

import numpy as np

from alignjax import stats
from alignjax.training import rollout_files
from alignjax.types import PreferenceBatch


class Chosen(NamedTuple):
  """K rows for each of P prompts, with M of its N responses each."""

  index: np.ndarray  # [P, K, M] int, of the responses
  tied: np.ndarray  # [P, K] bool: the scores do not order the responses of the row, although they should


def _first(usable: np.ndarray, count: int) -> np.ndarray:
  """[P, count]: the first usable responses; others follow if there are too few."""
  return np.sort(np.argsort(~usable, axis=1, kind='stable')[:, :count], axis=1)


class Pairing(NamedTuple):
  """A way to form rows from the N scored responses to a prompt."""

  fewest: int  # N must be at least this
  rows: Callable[[int], int]  # from N to K, the rows of a prompt
  responses: Callable[[int], int]  # from N to M, the responses of a row
  choose: Callable[[np.ndarray, np.ndarray], Chosen]  # from scores [P, N], and which responses to prefer, [P, N] bool


def _all(score: np.ndarray, usable: np.ndarray) -> Chosen:
  del usable
  index = np.broadcast_to(np.arange(score.shape[1]), score.shape)[:, None]
  return Chosen(index, np.zeros((len(score), 1), bool))


def _best(score: np.ndarray, usable: np.ndarray) -> Chosen:
  best = np.argmax(np.where(usable, score, -np.inf), axis=1)
  return Chosen(best[:, None, None], np.zeros((len(score), 1), bool))


def _best_worst(score: np.ndarray, usable: np.ndarray) -> Chosen:
  best = np.argmax(np.where(usable, score, -np.inf), axis=1)
  worst = np.argmin(np.where(usable, score, np.inf), axis=1)
  return _ordered(score, np.stack([best, worst], axis=1)[:, None])


def _two(score: np.ndarray, usable: np.ndarray) -> Chosen:
  return _ordered(score, _first(usable, 2)[:, None])


def _all_pairs(score: np.ndarray, usable: np.ndarray) -> Chosen:
  del usable
  pairs = np.stack(np.triu_indices(score.shape[1], 1), axis=1)
  return _ordered(score, np.broadcast_to(pairs, (len(score), *pairs.shape)))


def _ordered(score: np.ndarray, pairs: np.ndarray) -> Chosen:
  """Pairs [P, K, 2], the response with the higher score first."""
  first, second = np.moveaxis(np.take_along_axis(score[:, None], pairs, axis=2), 2, 0)
  return Chosen(np.where((first < second)[..., None], pairs[..., ::-1], pairs), first == second)


PAIRINGS = {
  'all': Pairing(1, lambda n: 1, lambda n: n, _all),
  'best': Pairing(1, lambda n: 1, lambda n: 1, _best),
  'best_worst': Pairing(2, lambda n: 1, lambda n: 2, _best_worst),
  'two': Pairing(2, lambda n: 1, lambda n: 2, _two),
  'all_pairs': Pairing(2, lambda n: n * (n - 1) // 2, lambda n: 2, _all_pairs),
}


@dataclasses.dataclass(frozen=True)
class Shaping:
  """How scored responses become rows.

  Args:
    pairing: a name in `PAIRINGS`.
    unfinished: 'drop' forms rows of finished responses if there are enough, and gives the others weight 0, so that they
      count neither in sums nor in what these are divided by; 'keep' treats all responses alike.
    ties: 'drop' gives a pair of equal scores weight 0, 'keep' gives it the label 1/2.
    kl_in_score: c in score - c (log pi(y|x) - log pi_ref(y|x)), with the policy that drew y; units of score per nat.
    ratio_reference: what objectives get as log pi_ref: 'initial', the reference, or 'round', the policy that drew y.
    fields: the fields of a batch to fill besides those of every batch: `Objective.reads`, and names of statistics.
  """

  pairing: str = 'all'
  ties: str = 'drop'
  kl_in_score: float = 0.0
  ratio_reference: str = 'initial'
  unfinished: str = 'keep'
  fields: Collection[str] = ()

  def score(self, drawn: rollout_files.Round) -> np.ndarray:
    """[P, N] float64: the scores that rows are formed by, and that objectives read."""
    if not self.kl_in_score:
      return drawn.score
    if drawn.reference_logp is None:
      raise rollout_files.RolloutError('kl_in_score reads the reference, whose log-probabilities were not recorded')
    log_ratio = (drawn.policy_logp.astype(np.float64) - drawn.reference_logp).sum(axis=2)
    return drawn.score - self.kl_in_score * log_ratio

  def rows(self, drawn: rollout_files.Round) -> PreferenceBatch:
    """All rows of a round, [P * K, M, R], those of a prompt together, as numpy arrays."""
    score = self.score(drawn)
    index, tied = self._chosen(drawn, score)
    prompts, rows, responses = index.shape

    def pick(values: np.ndarray) -> np.ndarray:
      places = index.reshape(prompts, rows * responses, *[1] * (values.ndim - 2))
      return np.take_along_axis(values, places, axis=1).reshape(prompts * rows, responses, *values.shape[2:])

    cached = {}
    if stats.reference_logp.name in self.fields:
      values = drawn.policy_logp if self.ratio_reference == 'round' else drawn.reference_logp
      if values is None:
        raise rollout_files.RolloutError('the log-probabilities of the reference were not recorded')
      cached[stats.reference_logp.name] = pick(values)
    if stats.BEHAVIOUR_TOKEN_LOGP in self.fields:
      cached[stats.BEHAVIOUR_TOKEN_LOGP] = pick(drawn.strategy_logp)
    behaviour = pick(drawn.strategy_logp.sum(axis=2, dtype=np.float64)).astype(np.float32)
    left_out = (tied & (self.ties == 'drop') | self.cut(drawn)).reshape(-1)
    return PreferenceBatch(
      prompt=np.repeat(drawn.prompt, rows, axis=0),
      prompt_length=np.repeat(drawn.prompt_length, rows),
      response=pick(drawn.response),
      response_length=pick(drawn.response_length),
      label=np.where(tied.reshape(-1), 0.5, 1.0).astype(np.float32),
      weight=np.where(left_out, 0.0, np.repeat(drawn.weight, rows)).astype(np.float32),
      score=pick(score).astype(np.float32),
      behaviour_logp=behaviour if 'behaviour_logp' in self.fields else None,
      cached=cached,
    )

  def tied(self, drawn: rollout_files.Round) -> np.ndarray:
    """[P, K] bool: see `Chosen`."""
    return self._chosen(drawn, self.score(drawn)).tied

  def cut(self, drawn: rollout_files.Round) -> np.ndarray:
    """[P, K] bool: the row is left out, because its responses or too many of its prompt were cut off."""
    usable = self._usable(drawn)
    index = self._chosen(drawn, self.score(drawn)).index
    whole = np.take_along_axis(usable[:, None], index, axis=2).all(axis=2)
    enough = usable.sum(axis=1) >= PAIRINGS[self.pairing].fewest
    return ~(whole & enough[:, None])

  def _usable(self, drawn: rollout_files.Round) -> np.ndarray:
    """[P, N] bool: the responses that rows may have."""
    return drawn.finished if self.unfinished == 'drop' else np.ones_like(drawn.finished)

  def _chosen(self, drawn: rollout_files.Round, score: np.ndarray) -> Chosen:
    return PAIRINGS[self.pairing].choose(score, self._usable(drawn))


def minibatch(rows: PreferenceBatch, prompts: np.ndarray, of_prompt: int, places: np.ndarray) -> PreferenceBatch:
  """Some rows of a round.

  Args:
    rows: all rows of the round, those of a prompt together.
    prompts: the places of the prompts in the round that the minibatch takes.
    of_prompt: K, rows of one prompt.
    places: the places in the minibatch of the rows that this process holds.
  """
  index = (prompts[:, None] * of_prompt + np.arange(of_prompt)).ravel()[places]
  values = {
    item.name: getattr(rows, item.name)[index]
    for item in dataclasses.fields(rows)
    if item.name != 'cached' and getattr(rows, item.name) is not None
  }
  return PreferenceBatch(**values, cached={name: each[index] for name, each in rows.cached.items()})
