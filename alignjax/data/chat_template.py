"""Chat templates: Jinja text that comes with a model, rendered in a sandbox that runs no Python code."""

from collections.abc import Mapping, Sequence
import datetime
import json
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, sandbox

from alignjax.data.sources import Message


class TemplateError(ValueError):
  """The template cannot be read, or refuses these messages."""


class _Generation(ext.Extension):
  """`{% generation %} ... {% endgeneration %}` marks an assistant's words; they are rendered as they stand."""

  tags = frozenset({'generation'})

  def parse(self, parser: parser.Parser) -> list[nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


class ChatTemplate:
  """A compiled chat template, with the names and filters that templates written for `transformers` expect.

  Args:
    source: the Jinja text.
    special_tokens: text by name (`bos_token`, `eos_token`, ...), visible to the template.
    now: what `strftime_now` reads; None is the clock. A template that prints the date makes other tokens tomorrow, so
      fix it where a run must be repeatable.

  Raises:
    TemplateError: the text is not Jinja.
  """

  def __init__(self, source: str, special_tokens: Mapping[str, str], now: datetime.datetime | None = None):
    environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, 'jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _raise_exception
    environment.globals['strftime_now'] = lambda form: (now or datetime.datetime.now()).strftime(form)
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as error:
      raise TemplateError(f'the chat template is not valid Jinja: {error}') from None
    self._special_tokens = dict(special_tokens)

  def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The text of a conversation; with `add_generation_prompt` it ends where the assistant's next message starts.

    Raises:
      TemplateError: the template refuses the messages, or fails on them.
    """
    try:
      return self._template.render(
        **self._special_tokens,
        messages=[dict(message) for message in messages],
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
      )
    except Exception as error:  # whatever a foreign program raises is about that program and these messages
      raise TemplateError(f'the chat template refuses the messages: {type(error).__name__}: {error}') from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
  """JSON as it stands: Jinja's own filter escapes it for HTML."""
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)
