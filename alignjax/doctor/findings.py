"""What an examination of data, a model or a run found: how bad it is, what was seen, and what to do."""

from collections.abc import Iterable
from typing import NamedTuple

ERROR, WARNING, NOTE = SEVERITIES = ('error', 'warning', 'note')


class Finding(NamedTuple):
  """One observation worth reporting."""

  name: str  # identifies the kind of finding, such as 'duplicate_examples'
  severity: str  # ERROR: training would be wrong; WARNING: it may be wrong; NOTE: good to know
  seen: str  # the numbers, with an example if there is one
  advice: str  # what to do about it

  def __str__(self) -> str:
    return f'{self.severity:7}  {self.name}: {self.seen}. {self.advice}'


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
  """Sorts errors before warnings before notes, and otherwise keeps the order."""
  return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
