"""Counts what happened to every row that was read."""

import dataclasses

EXAMPLES_KEPT = 3


@dataclasses.dataclass
class Tally:
  """How often something happened, with the first few occurrences."""

  count: int = 0
  examples: list[str] = dataclasses.field(default_factory=list)  # 'file:line: detail', at most EXAMPLES_KEPT

  def add(self, origin: str, detail: str) -> None:
    self.count += 1
    if len(self.examples) < EXAMPLES_KEPT:
      self.examples.append(f'{origin}: {detail}')


@dataclasses.dataclass
class DropReport:
  """Counts rows that were read, dropped (by reason), and kept with a change worth knowing about.

  The same report goes through reading and tokenisation, so `read == kept + dropped` always holds.
  """

  read: int = 0
  dropped: dict[str, Tally] = dataclasses.field(default_factory=dict)
  noted: dict[str, Tally] = dataclasses.field(default_factory=dict)  # kept, but truncated, merged, ...

  @property
  def kept(self) -> int:
    return self.read - sum(tally.count for tally in self.dropped.values())

  def drop(self, reason: str, origin: str, detail: str) -> None:
    self.dropped.setdefault(reason, Tally()).add(origin, detail)

  def note(self, reason: str, origin: str, detail: str) -> None:
    self.noted.setdefault(reason, Tally()).add(origin, detail)

  def add(self, later: 'DropReport') -> None:
    """Adds the counts of a report on rows that come later."""
    self.read += later.read
    for mine, theirs in ((self.dropped, later.dropped), (self.noted, later.noted)):
      for reason, tally in theirs.items():
        merged = mine.setdefault(reason, Tally())
        merged.count += tally.count
        merged.examples = (merged.examples + tally.examples)[:EXAMPLES_KEPT]

  def __str__(self) -> str:
    lines = [f'{self.read} rows read, {self.kept} kept, {self.read - self.kept} dropped']
    for verb, tallies in (('dropped', self.dropped), ('noted', self.noted)):
      for reason, tally in sorted(tallies.items(), key=lambda item: (-item[1].count, item[0])):
        lines.append(f'  {verb:7}  {tally.count:8}  {reason:23}  first: {tally.examples[0]}')
    return '\n'.join(lines)
