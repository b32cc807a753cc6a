"""How a check of `health` says what it found: which pairs, what share of them, and the first one's place."""

from collections.abc import Iterator

import numpy as np

from alignjax.data import findings
from alignjax.data import pairs as pairs_lib

# Shares of pairs, or of rows read, above which a finding is more than a note.
NONE = 0.0
FEW = 0.01  # of what should not happen at all
SOME = 0.05  # of what limits of length do to sound data
MANY = 0.5
ALL = 1.0  # never


def severity(share: float, warning: float, error: float) -> str:
  return findings.ERROR if share > error else findings.WARNING if share > warning else findings.NOTE


def found(
  name: str,
  pairs: pairs_lib.TokenizedPairs,
  rows: np.ndarray,
  what: str,
  advice: str,
  *,
  warning: float = FEW,
  error: float = ALL,
) -> Iterator[findings.Finding]:
  """A finding about the pairs where `rows` [n] is true, if there are any.

  Args:
    name: of the finding.
    pairs: that were examined.
    rows: [n] bool.
    what: is wrong with them: a verb and what follows it.
    advice: what to do.
    warning: share of the pairs above which it is no longer a note.
    error: share above which it is an error.
  """
  count = int(np.count_nonzero(rows))
  if count:
    share = count / len(pairs)
    seen = f'{count:,} of {len(pairs):,} pairs ({share:.1%}) {what}; the first is {pairs.origin(int(np.argmax(rows)))}'
    yield findings.Finding(name, severity(share, warning, error), seen, advice)
