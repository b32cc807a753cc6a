"""Reads messages, prompts and responses. Each function raises `Refused` for a value that it cannot read.

A message is {role, content}, or {from, value} as in ShareGPT, with any of `rows.MESSAGE_FIELDS`. Its content is a
string or a list of text parts. What changes the text that the model sees is passed to the chat template as it is.
`name` is the path of the value within its row, such as `prompt[0].content`.
"""

from collections.abc import Collection, Mapping
import json
from typing import Any

from alignjax.data.reading import rows, values

FIELDS = ('role', 'content', *rows.MESSAGE_FIELDS)
SHAREGPT = ('from', 'value')
SPEAKERS = {  # the roles of ShareGPT
  **dict.fromkeys(('human', 'user'), 'user'),
  **dict.fromkeys(('gpt', 'assistant', 'chatgpt', 'bot', 'model'), 'assistant'),
  **dict.fromkeys(('tool', 'observation'), 'tool'),
  'system': 'system',
}
CONTEXT = ('system', 'tools', 'documents', 'chat_template_kwargs')  # columns that every form with a prompt can have
ENDS = ('user', 'tool', 'assistant')  # roles of the last message of a prompt


def conversation(value: Any, name: str, ignored: Collection[str] = ()) -> list[rows.Message]:
  """A non-empty list of messages. Fields in `ignored` are left out of them."""
  if not isinstance(value, list):
    raise rows.Refused(
      'wrong_type', f"field '{name}': must be a string or a list of messages, not {values.kind(value)}"
    )
  if not value:
    raise rows.Refused('empty_prompt', f"field '{name}': the list of messages is empty; it needs at least one")
  if all(isinstance(each, dict) and each.keys() == {'input', 'output'} for each in value):  # as in Capybara
    value = [
      {'role': role, 'content': each[key]}
      for each in value
      for role, key in (('user', 'input'), ('assistant', 'output'))
    ]
  return [message(each, f'{name}[{i}]', ignored) for i, each in enumerate(value)]


def message(value: Any, name: str, ignored: Collection[str] = ()) -> rows.Message:
  """A single message."""
  if not isinstance(value, dict):
    raise rows.Refused('wrong_type', f"field '{name}': must be a message {{role, content}}, not {values.kind(value)}")
  if 'role' not in value and 'from' in value:
    value = _sharegpt(value, name, ignored)
  values.require(value, ('role',), name)
  if len(value) > 2 or 'content' not in value:
    values.known(value, FIELDS, ignored, name)
  role = values.text(value['role'], f'{name}.role')
  if role not in rows.ROLES:
    raise rows.Refused(
      'unknown_role', f"field '{name}.role': {values.quote(role)} is not one of {', '.join(rows.ROLES)}"
    )
  extra = {field: value[field] for field in rows.MESSAGE_FIELDS if value.get(field) and field not in ignored}
  content = None
  if 'content' in value or not (role == 'assistant' and extra.keys() & {'tool_calls', 'reasoning_content'}):
    values.require(value, ('role', 'content'), name)
    content = _content(value['content'], f'{name}.content')
  return {'role': role, 'content': content} | {
    field: _calls(each, f'{name}.{field}') if field == 'tool_calls' else values.text(each, f'{name}.{field}')
    for field, each in extra.items()
  }


def _sharegpt(value: Mapping[str, Any], name: str, ignored: Collection[str]) -> dict[str, Any]:
  values.require(value, SHAREGPT, name)
  values.known(value, (*SHAREGPT, *rows.MESSAGE_FIELDS), ignored, name)
  speaker = values.text(value['from'], f'{name}.from')
  if speaker not in SPEAKERS:
    raise rows.Refused(
      'unknown_role', f"field '{name}.from': {values.quote(speaker)} is not one of {', '.join(SPEAKERS)}"
    )
  return {'role': SPEAKERS[speaker], 'content': value['value']} | {
    field: each for field, each in value.items() if field in rows.MESSAGE_FIELDS
  }


def _content(value: Any, name: str) -> str:
  """A text, or the joined texts of content parts {type: text, text: ...}."""
  if not isinstance(value, list):
    return values.text(value, name)
  texts = []
  for i, part in enumerate(value):
    place = f'{name}[{i}]'
    if isinstance(part, str):
      raise rows.Refused(
        'wrong_type', f"field '{name}': must be a string or a list of parts {{type, text}}, not a list"
      )
    kind = part.get('type', 'text') if isinstance(part, dict) else None
    if kind != 'text' or 'text' not in part:
      what = f'a part of type {values.quote(kind)}' if isinstance(kind, str) else values.kind(part)
      raise rows.Refused(
        'not_text',
        f"field '{place}': is {what}, and a language model reads text alone; remove the rows with such parts",
      )
    texts.append(values.text(part['text'], f'{place}.text'))
  return ''.join(texts)


def _calls(value: Any, name: str) -> list[Any]:
  """The tool calls of an assistant: [{type, function: {name, arguments}}, ...]."""
  calls = values.plain(values.items(value, name), name)
  for i, call in enumerate(calls):
    function = call.get('function', call) if isinstance(call, dict) else None
    if not (isinstance(function, dict) and isinstance(function.get('name'), str)):
      raise rows.Refused(
        'wrong_type', f"field '{name}[{i}]': must be a call {{function: {{name, arguments}}}}, not {values.kind(call)}"
      )
  return calls


def prompt(value: Any, name: str, ignored: Collection[str] = ()) -> str | list[rows.Message]:
  """A string, or a conversation. If the assistant speaks last, its message is the start of each response."""
  if isinstance(value, str):
    value = values.text(value, name)
    if not value:
      raise rows.Refused('empty_prompt', f"field '{name}': the prompt is empty; fill it in")
    return value
  value = conversation(value, name, ignored)
  if value[-1]['role'] not in ENDS or (value[-1]['role'] == 'assistant' and not _is_prefill(value[-1])):
    raise rows.Refused(
      'wrong_role',
      f"field '{name}[{len(value) - 1}].role': the prompt must end with a user message or the start of the answer",
    )
  return value


def _is_prefill(value: rows.Message) -> bool:
  return bool(value['content']) and len(value) == 2


def response(value: Any, name: str, to: rows.Prompt, ignored: Collection[str] = ()) -> rows.Response:
  """A response to the prompt `to`: a string or, if `to` is messages, one assistant message, alone or in a list."""
  if isinstance(value, str):
    return values.filled(value, name, 'response')
  if isinstance(to, str) and isinstance(value, list | dict):
    raise rows.Refused(
      'mixed_forms',
      f"field '{name}': is a list of messages but 'prompt' is a string; make both strings or both messages, or, if "
      "this is the whole conversation, ignore 'prompt' (ignore_fields=['prompt'])",
    )
  found = [message(value, name, ignored)] if isinstance(value, dict) else conversation(value, name, ignored)
  if len(found) != 1 or found[0]['role'] != 'assistant':
    raise rows.Refused(
      'wrong_role', f"field '{name}': must be a string or one assistant message; move earlier messages to 'prompt'"
    )
  return as_response(found[0], name)


def as_response(found: rows.Message, name: str) -> rows.Response:
  """The last message of a conversation as a response: its text, or the message if it has more than a text."""
  if found.keys() <= {'role', 'content'}:
    return values.filled(found['content'], name, 'response')
  if not found.get('tool_calls'):
    values.filled(found['content'] or '', name, 'response')
  return found


def conversations(
  fields: Mapping[str, Any], ignored: Collection[str]
) -> tuple[list[rows.Message], rows.Response, rows.Response]:
  """Splits the conversations `chosen` and `rejected` into their shared prompt and the last message of each."""
  values.require(fields, ('chosen', 'rejected'))
  chosen, rejected = sides = [turns(fields[name], name, ignored) for name in ('chosen', 'rejected')]
  if chosen[:-1] != rejected[:-1]:
    first = next(
      (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(min(sides, key=len))
    )
    raise rows.Dropped(
      'prompts_differ',
      f"field 'rejected[{first}]': the conversations differ before their last message; both need the same prompt",
    )
  return chosen[:-1], *(as_response(side[-1], name) for side, name in zip(sides, ('chosen', 'rejected'), strict=True))


def turns(value: Any, name: str, ignored: Collection[str]) -> list[rows.Message]:
  """A conversation that ends with a message of the assistant, which answers a user or a tool."""
  if isinstance(value, str) and not (isinstance(value, values.Cell) and value.startswith('[')):
    raise rows.Refused(
      'missing_field',
      f"field 'prompt' is missing; add it, or make '{name}' the whole conversation, a list of messages",
    )
  found = conversation(values.items(value, name), name, ignored)
  if len(found) < 2 or found[-1]['role'] != 'assistant' or found[-2]['role'] not in ('user', 'tool'):
    raise rows.Refused(
      'wrong_role', f"field '{name}': without 'prompt' it must be a conversation that ends with user, then assistant"
    )
  as_response(found[-1], name)
  return found


def with_context(asked: rows.Prompt, fields: Mapping[str, Any]) -> rows.Prompt:
  """Adds the columns of `CONTEXT` to a prompt. A string with any of them becomes the message of a user.

  A `system` that is empty adds no message. `tools` and `documents` are lists, or JSON text; `chat_template_kwargs` is
  an object with other variables of the chat template.
  """
  if not any(name in fields for name in CONTEXT):
    return asked
  found = [{'role': 'user', 'content': asked}] if isinstance(asked, str) else asked
  system = values.text(fields.get('system', ''), 'system')
  if system.strip():
    if found[0]['role'] in ('system', 'developer'):
      raise rows.Refused('two_fields', "field 'system': the messages start with a system message too; keep one of them")
    found = [{'role': 'system', 'content': system}, *found]
  variables: dict[str, Any] = {}
  if 'chat_template_kwargs' in fields:
    given = _parsed(fields['chat_template_kwargs'], 'chat_template_kwargs', dict)
    variables |= {name: each for name, each in given.items() if name not in ('messages', 'add_generation_prompt')}
  for name in ('tools', 'documents'):
    if name in fields and (given := _parsed(fields[name], name, list)):
      variables[name] = given
  return rows.Dialogue(found, variables) if variables else found


def _parsed(value: Any, name: str, wanted: type) -> Any:
  """A JSON value of a given type, which may be given as text."""
  if isinstance(value, str):
    try:
      value = values.without_nulls(values.parse_json(value)) if value.strip() else wanted()
    except json.JSONDecodeError:
      raise rows.Refused('wrong_type', f"field '{name}': must be {values.KINDS[wanted]}, or one as JSON text") from None
  if not isinstance(value, wanted):
    raise rows.Refused('wrong_type', f"field '{name}': must be {values.KINDS[wanted]}, not {values.kind(value)}")
  return values.plain(value, name)
