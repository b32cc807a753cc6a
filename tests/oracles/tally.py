"""How far objectives are from their oracles: recorded by the tests, printed at the end of the session."""

_errors: dict[str, dict[str, float]] = {}


def record(kind: str, expression: str, error: float) -> None:
  _errors.setdefault(kind, {})[expression] = error


def recorded() -> dict[str, dict[str, float]]:
  """What a worker process sends to the one that prints."""
  return _errors


def merge(other: dict[str, dict[str, float]]) -> None:
  for kind, errors in other.items():
    _errors.setdefault(kind, {}).update(errors)


def summary() -> list[str]:
  """A line for each kind of error: the number of cases, and the largest."""
  lines = []
  for kind, errors in sorted(_errors.items()):
    worst = max(errors, key=errors.get)
    lines.append(f'{kind}: {len(errors)} cases, largest error relative to the oracle {errors[worst]:.1e}, of {worst}')
  return lines
