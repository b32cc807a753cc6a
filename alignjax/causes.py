"""The errors behind an error."""

from collections.abc import Iterator


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """The error, the one that caused it, the one that caused that, and so on, each once."""
  seen: list[BaseException] = []
  while error is not None and error not in seen:  # an error that is raised twice can be its own cause
    seen.append(error)
    yield error
    error = error.__cause__ or error.__context__
