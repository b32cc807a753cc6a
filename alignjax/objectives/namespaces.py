"""Names the metrics of sums of objectives: `nll` in the first part that has it, `sft/nll` in a later one."""

from collections.abc import Mapping, Sequence
from typing import Any


class Namespaces:
  """Joins the metrics of several parts under unique names, and splits them again.

  A metric keeps its name unless an earlier part has the same name; then it gets the prefix of its part. A name that
  begins with the prefix of any part gets a prefix too, so that `view` is the inverse of `join`.

  Args:
    labels: one label per part, used as prefixes. Repeated labels are numbered: dpo, dpo_2, ...
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
