"""What a row of preference data is once it has been read, and the errors of rows that cannot be."""

from typing import NamedTuple

Message = dict[str, str]  # {'role': ..., 'content': ...}
Prompt = str | list[Message]

ROLES = ('system', 'user', 'assistant')
FLOAT32_MAX = 3.4028234e38
PER_RESPONSE = {'score': FLOAT32_MAX, 'behaviour_logp': 0.0}  # fields of one number a response, and the largest allowed


class Pair(NamedTuple):
  """One prompt with its N responses, the preferred one first. Responses to a chat prompt are an assistant's contents.

  Most often N is 2, hence the name. With N = 1 the label says whether the response is desirable.
  """

  prompt: Prompt
  responses: tuple[str, ...]
  label: float = 1.0
  weight: float = 1.0
  score: tuple[float, ...] | None = None
  behaviour_logp: tuple[float, ...] | None = None
  path: str = '<memory>'
  line: int = 0  # line or row, counted from 1

  @property
  def origin(self) -> str:
    return f'{self.path}:{self.line}'


class DataError(ValueError):
  """A row that cannot be used. Its text starts with `file:line:` and says which field, why, and what to do."""

  def __init__(self, origin: str, reason: str, message: str):
    super().__init__(origin, reason, message)  # all three, so that the error survives pickling
    self.origin = origin
    self.reason = reason

  def __str__(self) -> str:
    return f'{self.args[0]}: {self.args[2]}'


class Refused(Exception):
  """Raised by whoever does not know the place: the row is at fault."""

  def __init__(self, reason: str, message: str):
    super().__init__(reason, message)
    self.reason = reason
    self.message = message


class Dropped(Refused):
  """Raised by a form: the row is sound but of no use, so it is counted whatever the policy."""
