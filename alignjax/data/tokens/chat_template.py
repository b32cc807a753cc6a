"""Chat templates: Jinja text that comes with a model, rendered in a sandbox that cannot run Python code."""

from collections.abc import Callable, Mapping, Sequence
import copy
import datetime
from typing import Any

import jinja2

from alignjax.data.reading import rows
from alignjax.data.tokens import sandbox, template_budget

Clock = Callable[[], datetime.datetime]
MAX_DATE = 256  # characters of a date format
LARGE = 2**16  # bytes of messages from which on the limits of a rendering depend on them
MAX_REASON = 500  # characters of a message from a template


class TemplateError(ValueError):
  """The template is not valid Jinja, rejects the messages, or costs too much."""


class ChatTemplate:
  """A compiled chat template, with the names and filters that templates written for `transformers` expect.

  Args:
    source: the Jinja text.
    special_tokens: text by name (`bos_token`, `eos_token`, ...), available to the template.
    clock: gives the date that `strftime_now` formats. It is called once, and only if the template prints the date. Such
      a template gives different tokens tomorrow, so a run that is resumed must pass the date of its first start.
    origin: the file of the template, for messages.

  Attributes:
    date: what `clock` returned; None if the template does not print the date.
    with_tools: the template that replaces this one when there are tools; None if it is this one.
    arguments: variables of all renderings, unless a conversation has its own; see `with_arguments`.

  Raises:
    TemplateError: the source is not valid Jinja.
  """

  def __init__(
    self,
    source: str,
    special_tokens: Mapping[str, str],
    clock: Clock = datetime.datetime.now,
    origin: str = 'chat template',
  ):
    if not isinstance(source, str):
      raise TemplateError(f'{origin}: chat_template must be text, not {type(source).__name__}')
    self._origin, self._special_tokens = origin, dict(special_tokens)
    self._environment = sandbox.Environment()
    self._environment.globals['raise_exception'] = _raise_exception
    self._environment.globals['strftime_now'] = self._strftime_now
    try:
      self._template = self._environment.template(source)
      prints_date = 'strftime_now' in source
    except Exception as error:  # Jinja and the Python compiler raise many kinds, such as RecursionError and MemoryError
      raise TemplateError(f'{origin}: the chat template is not valid Jinja: {_reason(error)}') from None
    self.date = clock() if prints_date else None
    self.with_tools: ChatTemplate | None = None
    self.arguments: dict[str, Any] = {}

  def with_arguments(self, arguments: Mapping[str, Any]) -> 'ChatTemplate':
    """This template with variables for all renderings.

    Args:
      arguments: their values, JSON types by name.

    Raises:
      TemplateError: the template does not read one of them.
    """
    parts = [part for part in (self, self.with_tools) if part is not None]
    known = frozenset().union(*(part._environment.variables for part in parts))
    if unread := sorted(arguments.keys() - known):
      others = sorted(known - {'messages', 'add_generation_prompt', *self._special_tokens, *self._environment.globals})
      raise TemplateError(
        f'{self._origin}: the chat template reads no variable {unread[0]!r}; it reads {", ".join(others) or "none"}'
      )
    changed = copy.copy(self)
    changed.arguments = dict(arguments)
    if self.with_tools is not None:
      changed.with_tools = copy.copy(self.with_tools)
      changed.with_tools.arguments = changed.arguments
    return changed

  def render(
    self, messages: Sequence[rows.Message], variables: Mapping[str, Any] | None = None, *, add_generation_prompt: bool
  ) -> str:
    """Renders a conversation; with `add_generation_prompt` the text ends where the assistant's next message starts.

    Args:
      messages: the conversation.
      variables: what else the template gets, such as `tools`.
      add_generation_prompt: see above.

    Raises:
      TemplateError: the template rejects the messages, fails on them, or takes too much time or memory.
    """
    if self.with_tools is not None and {**self.arguments, **(variables or {})}.get('tools'):
      return self.with_tools.render(messages, variables, add_generation_prompt=add_generation_prompt)
    try:
      return self._rendered(messages, variables or {}, add_generation_prompt)
    except TemplateError:
      if all(message['content'] is not None for message in messages):
        raise
    # Many templates add up texts, so they fail on a message that has tool calls and no content.
    filled = [message | {'content': message['content'] or ''} for message in messages]
    return self._rendered(filled, variables or {}, add_generation_prompt)

  def _rendered(
    self, messages: Sequence[rows.Message], variables: Mapping[str, Any], add_generation_prompt: bool
  ) -> str:
    values = {
      **self._special_tokens,
      'messages': [{name: each for name, each in message.items() if each is not None} for message in messages],
      'add_generation_prompt': add_generation_prompt,
      'tools': None,
      'documents': None,
      **self.arguments,
      **variables,
    }
    try:
      try:
        return self._environment.render(self._template, values, template_budget.Budget(len(messages)))
      except template_budget.LimitError:
        size = _size([*messages, self.arguments, variables])
        if size < LARGE:
          raise
        return self._environment.render(self._template, values, template_budget.Budget(len(messages), size))
    except template_budget.LimitError as error:
      raise TemplateError(f'{self._origin}: the chat template was stopped: {error}') from None
    except Exception as error:  # templates are foreign programs and can raise anything
      raise TemplateError(f'{self._origin}: the chat template rejects the messages: {_reason(error)}') from None

  def _strftime_now(self, form: str) -> str:
    if len(form) > MAX_DATE:
      raise template_budget.LimitError(f'it formats the date with more than {MAX_DATE} characters')
    return self.date.strftime(form)


def _size(value: Any) -> int:
  """Bytes of all texts in a nested value, at most."""
  if isinstance(value, str):
    return template_budget.text_size(value)
  if isinstance(value, Mapping):
    return sum(_size(name) + _size(each) for name, each in value.items())
  return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def _reason(error: Exception) -> str:
  text = f'{type(error).__name__}: {error}'
  return text if len(text) <= MAX_REASON else f'{text[:MAX_REASON]} ...'


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)
