"""Renders a conversation with each of its responses, and compares the rendering with what was meant to be shown.

Published templates drop reasoning, ignore tools, or write something of their own. What is lost is an error of the row,
because nothing else would show it; what a template adds is a note.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import re
from typing import Any, NamedTuple

from alignjax.data.reading import rows
from alignjax.data.tokens import chat_template

SHOWN = 40  # characters of a text that a message quotes
PROBE = ' probe'  # added to a message to see whether the template shows it
SPACE = re.compile(r'\s+')


class EncodingError(ValueError):
  """The texts cannot be encoded. `reason` is a key of a drop report."""

  def __init__(self, reason: str, message: str):
    super().__init__(reason, message)
    self.reason = reason

  def __str__(self) -> str:
    return self.args[1]


class Texts(NamedTuple):
  """The text of a prompt alone, then prompt and response together for each response."""

  texts: list[str]
  notes: tuple[tuple[str, str], ...] = ()  # reasons and details for the report


def render_prompt(template: chat_template.ChatTemplate, prompt: list[rows.Message] | rows.Dialogue) -> str:
  """The text of a prompt, up to where the response starts.

  Raises:
    EncodingError: the template rejects the messages, or leaves out a part of them.
  """
  messages, variables = rows.messages_of(prompt), rows.variables_of(prompt)
  start = ''
  if messages[-1]['role'] == 'assistant':  # the response continues this message
    messages, start = messages[:-1], messages[-1]['content']
  text = _render(template, messages, variables, add_generation_prompt=True)
  _check_shown(template, messages, variables, text)
  return text + start


def render(
  template: chat_template.ChatTemplate, prompt: list[rows.Message] | rows.Dialogue, responses: Sequence[rows.Response]
) -> Texts:
  """Renders a prompt and its responses.

  Raises:
    EncodingError: the template rejects the messages, or leaves out a part of them or of a response.
  """
  text = render_prompt(template, prompt)
  messages, variables = rows.messages_of(prompt), rows.variables_of(prompt)
  joint = []
  for i, response in enumerate(responses):
    answered = _answered(messages, response, response_name(i, len(responses)))
    joint.append(_render(template, answered, variables, add_generation_prompt=False))
  if not all(whole.startswith(text) for whole in joint):
    _check_only_appends(template, messages, variables, joint)
  notes = [note for i, whole in enumerate(joint) for note in _compare(text, whole, responses, i)]
  if messages[-1]['role'] == 'assistant':
    notes.append(('prefilled', 'the prompt ends with the start of the answer, which the response continues'))
  hidden = [i for i, message in enumerate(messages) if 'name' in message and message['name'] not in text]
  if hidden:
    notes.append(('name_not_shown', f"field 'prompt[{hidden[0]}].name': the chat template does not show it"))
  return Texts([text, *joint], tuple(dict.fromkeys(notes)))


def response_name(number: int, count: int) -> str:
  """What messages call a response of an example."""
  return ('chosen', 'rejected')[number] if count == 2 else f'responses[{number}]'


def _answered(messages: list[rows.Message], response: rows.Response, name: str) -> list[rows.Message]:
  """The messages with a response."""
  if messages[-1]['role'] != 'assistant':
    added = {'role': 'assistant', 'content': response} if isinstance(response, str) else response
    return [*messages, added]
  if not isinstance(response, str):
    raise EncodingError(
      'wrong_role', f"field '{name}': must be a text, because the prompt ends with the start of the answer"
    )
  return [*messages[:-1], {'role': 'assistant', 'content': messages[-1]['content'] + response}]


def _render(
  template: chat_template.ChatTemplate,
  messages: Sequence[rows.Message],
  variables: Mapping[str, Any],
  *,
  add_generation_prompt: bool,
) -> str:
  try:
    return template.render(messages, variables, add_generation_prompt=add_generation_prompt)
  except chat_template.TemplateError as error:
    raise EncodingError('template_refused', f"field 'prompt': {error}") from None


def _check_only_appends(
  template: chat_template.ChatTemplate,
  messages: list[rows.Message],
  variables: Mapping[str, Any],
  joint: Sequence[str],
) -> None:
  """Some templates open an assistant turn with text that they drop later (such as <think>).

  Such a difference is fine, because the split finds the boundary, but the conversation before it must stay the same.
  """
  before = messages[:-1] if messages[-1]['role'] == 'assistant' else messages
  shared = _render(template, before, variables, add_generation_prompt=False)
  if not all(whole.startswith(shared) for whole in joint):
    raise EncodingError(
      'template_changes_prompt',
      "field 'prompt': the chat template renders the prompt differently when a response follows; use a "
      'template that only appends',
    )


# --- the prompt


def _check_shown(
  template: chat_template.ChatTemplate, messages: list[rows.Message], variables: Mapping[str, Any], text: str
) -> None:
  """Raises EncodingError if the template does not show a message, its tool calls or the tools."""

  def unchanged(i: int, changed: rows.Message) -> bool:
    others = [*messages[:i], changed, *messages[i + 1 :]]
    return _try_to_render(template, others, variables) == text

  for i, message in enumerate(messages):
    content = (message['content'] or '').rpartition('</think>')[2].strip()
    hidden = content not in text and unchanged(i, message | {'content': message['content'] + PROBE})
    if hidden:
      raise _hidden(f'prompt[{i}].content')
    if 'tool_calls' in message:
      without = {name: each for name, each in message.items() if name != 'tool_calls'}
      if unchanged(i, without | {'content': message['content'] or ''}):
        raise _hidden(f'prompt[{i}].tool_calls')
  for name in ('tools', 'documents'):
    if name in variables:
      others = {other: each for other, each in variables.items() if other != name}
      if _try_to_render(template, messages, others) == text:
        raise _hidden(name)


def _try_to_render(
  template: chat_template.ChatTemplate, messages: list[rows.Message], variables: Mapping[str, Any]
) -> str | None:
  try:
    return template.render(messages, variables, add_generation_prompt=True)
  except chat_template.TemplateError:
    return None


def _hidden(name: str) -> EncodingError:
  return EncodingError(
    'template_hides',
    f"field '{name}': the chat template does not show it, so the model would not see it; use a model whose template "
    'does, or write it into the text of the messages',
  )


# --- the response


def _compare(text: str, whole: str, responses: Sequence[rows.Response], number: int) -> Iterator[tuple[str, str]]:
  """Compares a response with its rendering. Yields notes.

  Raises:
    EncodingError: a part of the response is not trained.
  """
  response, name = responses[number], response_name(number, len(responses))
  common = _common(text, whole)
  content = rows.text_of(response).strip()
  parts = [content] if content else []
  if not isinstance(response, str):
    parts += [response['reasoning_content'].strip()] if 'reasoning_content' in response else []
  first = len(whole)
  for part in parts:
    at = whole.find(part, max(0, common - len(part)))
    if at < 0:
      if _without_space(part) not in _without_space(whole[max(0, common - len(part)) :]):
        raise _changed(name, _first_missing(part, whole[common:]))
      yield 'template_changes_space', f"field '{name}': the chat template changes the white space of the response"
    elif first is not None:
      first = min(first, at)
  trained = whole[common:]
  for leaf in [] if isinstance(response, str) else _leaves_of_calls(response.get('tool_calls', [])):
    if not any(spelling in trained for spelling in (leaf, json.dumps(leaf, ensure_ascii=False)[1:-1])):
      raise _changed(f'{name}.tool_calls', leaf)
  added = whole[common:first].strip()
  if added and isinstance(response, str) and first < len(whole):
    yield (
      'template_adds_text',
      f'the chat template puts {added[:SHOWN]!r} before the response, which is trained; to make it part of the prompt, '
      'set a variable of the template (template_arguments), if it has one',
    )


def _common(a: str, b: str) -> int:
  """The length of the longest common start."""
  if b.startswith(a):
    return len(a)
  return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _leaves_of_calls(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """The names of the functions that are called, and the texts of their arguments."""
  for call in calls:
    function = call.get('function', call)
    yield function['name']
    arguments = function.get('arguments', {})
    if isinstance(arguments, str):
      try:
        arguments = json.loads(arguments)
      except ValueError:
        yield arguments
        continue
    yield from _leaves(arguments)


def _leaves(value: Any) -> Iterator[str]:
  if isinstance(value, dict):
    for name, each in value.items():
      yield name
      yield from _leaves(each)
  elif isinstance(value, list):
    for each in value:
      yield from _leaves(each)
  elif isinstance(value, str):
    yield value


def _without_space(text: str) -> str:
  return SPACE.sub('', text)


def _first_missing(part: str, trained: str) -> str:
  """The first line of a text that is not in another one."""
  lines = [line.strip() for line in part.splitlines()]
  return next((line for line in lines if line and line not in trained), part)


def _changed(name: str, missing: str) -> EncodingError:
  return EncodingError(
    'template_changes_response',
    f"field '{name}': the chat template leaves out {missing[:SHOWN]!r}, so it would not be trained; use a template "
    'that keeps the whole response, or remove this part of it',
  )
