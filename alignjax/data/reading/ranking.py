"""Orders the responses of an example, and drops examples that express no preference."""

from collections.abc import Sequence

from alignjax.data.reading import rows

COLUMNS = ('responses', 'score', 'behaviour_logp', 'behaviour_token_logp')  # one entry per response


def best_first(example: rows.Example) -> rows.Example:
  """Sorts the responses by score, highest first. Ties keep the order of the row.

  Raises:
    Dropped: there are several responses, and all texts or all scores are the same.
  """
  if len(example.responses) > 1:
    check_different(example.responses)
    check_untied(example.score)
  return pick(example, sorted(range(len(example.responses)), key=lambda i: -example.score[i]))


def best_and_worst(example: rows.Example, name: str) -> rows.Example:
  """Keeps the first and the last response; `name` is the field that holds them."""
  if len(example.responses) == 1:
    raise rows.Refused('wrong_length', f"field '{name}': has one response; a pair needs two or more")
  example = pick(example, (0, -1))
  check_different(example.responses)
  return example


def pick(example: rows.Example, order: Sequence[int]) -> rows.Example:
  """Keeps the responses with these indices, in this order."""
  columns = {name: getattr(example, name) for name in COLUMNS}
  return example._replace(
    **{name: tuple(column[i] for i in order) for name, column in columns.items() if column is not None}
  )


def check_different(responses: Sequence[rows.Response]) -> None:
  """Drops a row whose responses are all the same."""
  if all(response == responses[0] for response in responses):
    raise rows.Dropped('identical_text', 'all responses are the same text')


def check_untied(scores: Sequence[float]) -> None:
  """Drops a row whose scores are all the same."""
  if all(score == scores[0] for score in scores):
    raise rows.Dropped('tied_scores', f'all {len(scores)} responses have the score {scores[0]:g}')
