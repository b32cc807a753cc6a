"""The evaluations of a contender along its runs, over seeds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.toy import language


class Outcome(NamedTuple):
  """The measurements of one model of one seed."""

  update: int
  measures: language.Measures


class Curve(NamedTuple):
  """A contender at one beta, for every seed."""

  name: str
  beta: float
  objective: str
  updates: np.ndarray  # [evaluations], the first is 0
  measures: dict[str, np.ndarray]  # [evaluations, seeds] each; nan where there is none

  @classmethod
  def of(cls, name: str, beta: float, objective: str, outcomes: Sequence[Sequence[Outcome]]) -> 'Curve':
    """Combines the outcomes of all seeds."""
    names = dict.fromkeys(key for own in outcomes for outcome in own for key in outcome.measures)
    measures = {
      key: np.array([[outcome.measures.get(key, np.nan) for outcome in own] for own in outcomes]).T for key in names
    }
    return cls(name, beta, objective, np.array([outcome.update for outcome in outcomes[0]]), measures)

  def final(self, measure: str) -> np.ndarray:
    """The measure at the end, [seeds]."""
    return self.measures[measure][-1]

  @property
  def best(self) -> np.ndarray:
    """The evaluation with the highest gold reward in validation, [seeds]."""
    return np.argmax(self.measures['validation/gold'], axis=0)

  @property
  def peak(self) -> np.ndarray:
    """The gold reward there, in testing, [seeds]."""
    return np.take_along_axis(self.measures['gold'], self.best[None], axis=0)[0]

  def stopped(self, kl: np.ndarray) -> np.ndarray:
    """The gold reward at the last evaluation whose KL is at most `kl` [seeds]."""
    within = self.measures['kl'] <= kl
    last = len(within) - 1 - np.argmax(within[::-1], axis=0)  # the first evaluation, of the reference, has a KL of 0
    return np.take_along_axis(self.measures['gold'], last[None], axis=0)[0]

  def at_kl(self, kl: float, measure: str) -> np.ndarray:
    """The measure where the KL first reaches `kl` nats, [seeds]; nan for a seed that does not reach it.

    Between two evaluations it is linear in the square root of the KL.
    """
    x, y, found = np.sqrt(self.measures['kl']), self.measures[measure], np.full(self.measures['kl'].shape[1], np.nan)
    for seed in np.flatnonzero((x >= np.sqrt(kl)).any(axis=0)):
      after = int(np.argmax(x[:, seed] >= np.sqrt(kl)))
      ends = slice(max(after - 1, 0), after + 1)
      found[seed] = np.interp(np.sqrt(kl), x[ends, seed], y[ends, seed])
    return found

  def to_json(self) -> dict[str, Any]:
    """The curve in JSON types; None instead of nan."""
    values = {
      name: [[None if np.isnan(x) else x for x in row] for row in v.tolist()] for name, v in self.measures.items()
    }
    return self._asdict() | {'updates': self.updates.tolist(), 'measures': values}


def find(curves: Sequence[Curve], name: str, beta: float) -> Curve:
  """The curve of a contender."""
  return next(curve for curve in curves if (curve.name, curve.beta) == (name, beta))
