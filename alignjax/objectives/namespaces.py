"""Metric names in sums of objectives: `reward_margin` of the first part, `sft/nll` where a name is taken."""

from collections.abc import Mapping, Sequence
from typing import Any


class Namespaces:
  """Joins the metrics of several parts under names of their own, and finds the metrics of one part again.

  A metric keeps its name unless an earlier part has it too; then the prefix of its part comes before it. So does the
  prefix if the name begins with the prefix of any part, which keeps the two directions inverse to each other.

  Args:
    labels: one for each part. They become prefixes; a label that repeats is numbered: dpo, dpo_2, ...
  """

  def __init__(self, labels: Sequence[str]):
    self.prefixes: list[str] = []
    for label in labels:
      prefix, count = label, 1
      while prefix in self.prefixes:
        count += 1
        prefix = f'{label}_{count}'
      self.prefixes.append(prefix)

  def join(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of all parts, in the order of the labels."""
    joined = {}
    for prefix, part in zip(self.prefixes, metrics, strict=True):
      for key, value in part.items():
        joined[f'{prefix}/{key}' if key in joined or self._prefixed(key) else key] = value
    return joined

  def view(self, index: int, joined: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of part `index` under its own names: those without a prefix, and those with its prefix."""
    own = f'{self.prefixes[index]}/'
    bare = {key: value for key, value in joined.items() if not self._prefixed(key)}
    return bare | {key.removeprefix(own): value for key, value in joined.items() if key.startswith(own)}

  def _prefixed(self, key: str) -> bool:
    return any(key.startswith(f'{prefix}/') for prefix in self.prefixes)
