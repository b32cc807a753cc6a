"""Findings of an examination: how severe, what was seen, and how to fix it."""

from collections.abc import Iterable
from typing import NamedTuple

ERROR, WARNING, NOTE = SEVERITIES = ('error', 'warning', 'note')


class Finding(NamedTuple):
  """One observation worth reporting."""

  name: str  # identifies the kind of finding, such as 'duplicate_examples'
  severity: str  # ERROR: training would be wrong; WARNING: it may be wrong; NOTE: good to know
  seen: str  # the numbers, with an example if there is one
  advice: str  # how to fix it, or why it is harmless

  def __str__(self) -> str:
    return f'{self.severity:7}  {self.name}: {self.seen}. {self.advice}'


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
  """Sorts errors before warnings before notes, and otherwise keeps the order."""
  return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
