"""Reads the setting `template_arguments`: variables of the chat template that hold for all rows."""

from collections.abc import Sequence
import json
from typing import Any

TEXT = (
  'Variables of the chat template for all rows, such as enable_thinking=false, or a JSON object; variables of a row '
  'itself (chat_template_kwargs) win; can be repeated; empty: none.'
)
RESERVED = ('messages', 'add_generation_prompt')


def parse(items: Sequence[str]) -> dict[str, Any]:
  """Reads `name=value` items, whose values are JSON or text, and JSON objects.

  Raises:
    ValueError: an item is neither, a variable is given twice, or it is one that every rendering sets.
  """
  found: dict[str, Any] = {}
  for item in items:
    given = _object(item) if item.startswith('{') else dict([_pair(item)])
    for name, value in given.items():
      if name in found or name in RESERVED:
        problem = 'is given twice' if name in found else 'is set by every rendering'
        raise ValueError(f'{name!r} {problem}; remove it')
      found[name] = value
  return found


def _object(text: str) -> dict[str, Any]:
  try:
    return json.loads(text)  # an object, because the text starts with a brace
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{text!r} is no JSON object: {error}') from None


def _pair(text: str) -> tuple[str, Any]:
  name, equals, value = text.partition('=')
  if not (equals and name.isidentifier()):
    raise ValueError(
      f'{text!r} must be name=value, or, if a value has a comma, a JSON object such as {{"name": "a, b"}}'
    )
  try:
    return name, json.loads(value)
  except (ValueError, RecursionError):
    return name, value
