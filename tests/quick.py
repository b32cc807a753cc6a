"""Cases of a parametrised test that always run; the others run with --slow."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def first(count: int, cases: Iterable[Any]) -> list[Any]:
  """All cases, of which the first `count` are quick."""
  cases = list(cases)
  return [*cases[:count], *map(slow, cases[count:])]


def slow(case: Any) -> Any:
  """A case that runs with --slow: one value, or a tuple of values."""
  return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)


def named(cases: dict[str, Any], names: Sequence[str]) -> list[Any]:
  """The cases by their names as ids; those with the given names are quick."""
  return [
    pytest.param(
      *(case if isinstance(case, tuple) else (case,)), id=name, marks=() if name in names else pytest.mark.slow
    )
    for name, case in cases.items()
  ]
