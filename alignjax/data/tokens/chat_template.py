"""Chat templates: Jinja text that comes with a model, rendered in a sandbox that cannot run Python code."""

from collections.abc import Mapping, Sequence
import datetime
import json
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, sandbox

from alignjax.data.reading import rows


class TemplateError(ValueError):
  """The template is not valid Jinja, or rejects the messages."""


class _Generation(ext.Extension):
  """`{% generation %} ... {% endgeneration %}` marks the assistant's text. The contents are rendered as usual."""

  tags = frozenset({'generation'})

  def parse(self, parser: parser.Parser) -> list[nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


class ChatTemplate:
  """A compiled chat template, with the names and filters that templates written for `transformers` expect.

  Args:
    source: the Jinja text.
    special_tokens: text by name (`bos_token`, `eos_token`, ...), available to the template.
    now: the time that `strftime_now` formats; None reads the clock. A template that prints the date gives different
      tokens tomorrow, so pass a fixed time if a run must be reproducible.

  Raises:
    TemplateError: the source is not valid Jinja.
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

  def render(self, messages: Sequence[rows.Message], *, add_generation_prompt: bool) -> str:
    """Renders a conversation; with `add_generation_prompt` the text ends where the assistant's next message starts.

    Raises:
      TemplateError: the template rejects the messages, or fails on them.
    """
    try:
      return self._template.render(
        **self._special_tokens,
        messages=[dict(message) for message in messages],
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
      )
    except Exception as error:  # templates are foreign programs and can raise anything
      raise TemplateError(f'the chat template rejects the messages: {type(error).__name__}: {error}') from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
  """Plain JSON. (Jinja's own filter escapes the text for HTML.)"""
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)
