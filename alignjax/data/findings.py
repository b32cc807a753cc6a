"""What an examination of data, a model or a run has found: how bad it is, what was seen, and what to do."""

from collections.abc import Iterable
from typing import NamedTuple

ERROR, WARNING, NOTE = SEVERITIES = ('error', 'warning', 'note')


class Finding(NamedTuple):
  """One thing worth telling."""

  name: str  # of what was found, such as 'duplicate_pairs'; the same word for the same fault everywhere
  severity: str  # ERROR: training would be wrong; WARNING: it may be; NOTE: good to know
  seen: str  # the figures, with an example where there is one
  advice: str  # what to do about it

  def __str__(self) -> str:
    return f'{self.severity:7}  {self.name}: {self.seen}. {self.advice}'


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
  """Errors, then warnings, then notes, each in the order in which they were found."""
  return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
