"""Findings about a share of the examples: how many, what share, and where the first one is."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from alignjax.data.tokens import dataset
from alignjax.doctor import findings


class Thresholds(NamedTuple):
  """Shares of the examples, or of the rows, above which a finding is a warning or an error instead of a note."""

  warning: float
  error: float

  def severity(self, share: float) -> str:
    if share > self.error:
      return findings.ERROR
    return findings.WARNING if share > self.warning else findings.NOTE


NONE = 0.0
FEW = 0.01  # problems that should never happen
SOME = 0.05  # effects of length limits on sound data
MANY = 0.5
ALL = 1.0  # never exceeded

NEVER = Thresholds(ALL, ALL)  # always a note
ANY_IS_ERROR = Thresholds(NONE, NONE)
ANY_IS_WARNING = Thresholds(NONE, ALL)
FEW_IS_ERROR = Thresholds(NONE, FEW)
FEW_IS_WARNING = Thresholds(FEW, ALL)
MANY_IS_ERROR = Thresholds(FEW, MANY)
MANY_IS_WARNING = Thresholds(MANY, ALL)
SOME_IS_WARNING = Thresholds(SOME, MANY)


class Symptom(NamedTuple):
  """A problem that some examples have."""

  name: str  # the name of the finding
  what: str  # a verb phrase whose subject is the examples
  advice: str  # how to fix it
  thresholds: Thresholds = FEW_IS_WARNING


def found(symptom: Symptom, data: dataset.TokenDataset, rows: np.ndarray) -> Iterator[findings.Finding]:
  """Yields a finding about the examples where `rows` [n] is true, if there are any."""
  count = int(np.count_nonzero(rows))
  if count:
    share = count / len(data)
    seen = f'{count:,} of {len(data):,} examples ({share:.1%}) {symptom.what}'
    first = data.origin(int(np.argmax(rows)))
    yield findings.Finding(
      symptom.name, symptom.thresholds.severity(share), f'{seen}; the first is {first}', symptom.advice
    )
