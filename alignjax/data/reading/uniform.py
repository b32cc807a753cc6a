"""Checks that the rows of a dataset are alike."""

from collections.abc import Mapping
from typing import Any

from alignjax.data.reading import rows

SCORES = ('margin', 'scores', 'score_chosen', 'completions', 'answers', 'score_A')  # columns that become scores


class Uniform:
  """Checks what must be the same in all rows of a dataset: the number of responses, and which columns they have."""

  def __init__(self):
    self._first: dict[str, Any] = {}
    self._column: dict[str, str] = {}  # what the file calls a column

  def check(self, example: rows.Example, row: Mapping[str, Any]) -> None:
    """Raises Refused if an example differs from the first one."""
    count = len(example.responses)
    if self._first.setdefault('responses', count) != count:
      raise rows.Refused(
        'mixed_responses',
        f"field 'responses': this row has {count}, earlier rows have {self._first['responses']}; every row of a "
        'dataset needs the same number of responses',
      )
    kinds = {name: 'missing' if getattr(example, name) is None else 'present' for name in rows.PER_RESPONSE}
    if example.behaviour_token_logp is not None:
      kinds['behaviour_logp'] = 'given per token'
    for name, kind in kinds.items():
      column = next((each for each in (name, *SCORES) if each in row), name) if name == 'score' else name
      if kind == 'missing':
        column = self._column.get(name, name)
      self._column.setdefault(name, column)
      if self._first.setdefault(name, kind) != kind:
        raise rows.Refused(
          f'mixed_{name}',
          f"field '{column}': {kind} in this row but {self._first[name]} in earlier rows; give it to every row, or "
          f'leave it out of all (ignore_fields={column})',
        )
