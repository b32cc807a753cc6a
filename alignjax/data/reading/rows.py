"""What a row of a dataset becomes, and the errors for rows that cannot be read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, Any]  # {'role': ..., 'content': ...}, and any of MESSAGE_FIELDS


class Dialogue(NamedTuple):
  """A conversation with what else its chat template gets, such as the tools that the assistant can call."""

  messages: list[Message]
  variables: dict[str, Any]  # by the names that templates use: `tools`, `documents`, `enable_thinking`, ...


Prompt = str | list[Message] | Dialogue
Response = str | Message  # an assistant's message with fields besides its content, such as tool calls, stays a message

ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
MESSAGE_FIELDS = ('name', 'tool_calls', 'tool_call_id', 'reasoning_content')  # passed to the chat template as they are
FLOAT32_MAX = 3.4028234e38
PER_RESPONSE = {'score': FLOAT32_MAX, 'behaviour_logp': 0.0}  # fields with one number per response, and their maximum


def messages_of(prompt: list[Message] | Dialogue) -> list[Message]:
  """The messages of a prompt."""
  return prompt.messages if isinstance(prompt, Dialogue) else prompt


def variables_of(prompt: list[Message] | Dialogue) -> dict[str, Any]:
  """What the chat template gets besides the messages."""
  return prompt.variables if isinstance(prompt, Dialogue) else {}


def text_of(response: Response) -> str:
  """The content of a response."""
  return response if isinstance(response, str) else response['content'] or ''


class Example(NamedTuple):
  """One prompt with its N responses, the preferred one first. A response to messages is the assistant's message.

  N = 2 is a preference pair. With N = 1, the label is whether the response is desirable. N = 0 is a bare prompt.
  """

  prompt: Prompt
  responses: tuple[Response, ...]
  label: float = 1.0
  weight: float = 1.0
  score: tuple[float, ...] | None = None
  behaviour_logp: tuple[float, ...] | None = None  # nats per response, end token included
  behaviour_token_logp: tuple[tuple[float, ...], ...] | None = None  # nats per token of each response
  path: str = '<memory>'
  line: int = 0  # line or row, counted from 1
  fields: Mapping[str, Any] = {}  # columns of the row that the reader was told to keep

  @property
  def origin(self) -> str:
    return f'{self.path}:{self.line}'


class DataError(ValueError):
  """A row that cannot be used. The message is `file:line: `, then the field, what is wrong and what to do."""

  def __init__(self, origin: str, reason: str, message: str):
    super().__init__(origin, reason, message)  # all three, so that the error survives pickling
    self.origin = origin
    self.reason = reason

  def __str__(self) -> str:
    return f'{self.args[0]}: {self.args[2]}'


class Refused(Exception):
  """The row is malformed. Raised by code that does not know which file and line it came from."""

  def __init__(self, reason: str, message: str):
    super().__init__(reason, message)
    self.reason = reason
    self.message = message


class Dropped(Refused):
  """The row is well-formed but useless for training. It is counted, never an error."""


def check_policy(on_error: str) -> None:
  """Raises ValueError unless `on_error` is 'raise' or 'skip'."""
  if on_error not in ('raise', 'skip'):
    raise ValueError(
      f"on_error={on_error!r}: must be 'raise' (stop at the first malformed row) or 'skip' (count it and continue)"
    )
