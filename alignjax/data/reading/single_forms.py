"""Row forms with one desired response, for supervised fine-tuning.

Every form accepts a `weight`. All but `text` accept `system`, `tools`, `documents` and `chat_template_kwargs`, and
those with a `prompt` accept `user` in its place, as in `generic_forms`.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from alignjax.data.reading import generic_forms, messages, public_forms, ranking, rows, values

CONVERSATION = ('messages', 'conversations', 'weight', *messages.CONTEXT)
CONVERSATION_UNUSED = ('prompt', 'prompt_id', 'chosen', 'rejected', 'score_chosen', 'score_rejected')
SUPERVISED = ('prompt', 'completion', 'weight', *generic_forms.PROMPT[1:])
TEXT = ('text', 'weight')
CHOSEN = ('prompt', 'chosen', 'rejected', 'label', 'weight', *generic_forms.PROMPT[1:])
CHOSEN_UNUSED = ('prompt_id', 'messages', 'score', 'margin', 'score_chosen', 'score_rejected', 'behaviour_logp')
ALPACA = ('instruction', 'input', 'output', 'chosen', 'rejected', 'weight', *messages.CONTEXT)
ALPACA_UNUSED = ('text',)  # the same row, put into a template


def conversation(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A conversation: `messages` or `conversations`, which ends with a message of the assistant.

  Each message of the assistant that answers a user or a tool becomes an example; what comes before it is its prompt.
  The option `turns=last` takes the last message alone.
  """
  if 'messages' in fields and 'conversations' in fields:
    raise rows.Refused('two_fields', "field 'messages': the row has 'conversations' too; ignore one of the two")
  name = 'conversations' if 'conversations' in fields else 'messages'
  values.require(fields, (name,))
  return _last_turn(messages.turns(fields[name], name, ignored), name, fields)


def every_turn(example: rows.Example) -> Iterator[rows.Example | rows.Dropped]:
  """The examples of a conversation, one for each message of the assistant, in their order.

  Args:
    example: the whole conversation, with its last message as the response.
  """
  asked = rows.messages_of(example.prompt)
  for i, message in enumerate(asked):
    if message['role'] != 'assistant':
      continue
    if i == 0 or asked[i - 1]['role'] not in ('user', 'tool'):
      yield rows.Dropped('no_question', f"field 'messages[{i}]': follows no message of a user or a tool")
      continue
    try:
      response = messages.as_response(message, f'messages[{i}]')
    except rows.Refused as problem:
      yield rows.Dropped(problem.reason, problem.message)
      continue
    prompt = asked[:i]
    if isinstance(example.prompt, rows.Dialogue):
      prompt = example.prompt._replace(messages=prompt)
    yield example._replace(prompt=prompt, responses=(response,))
  yield example


def supervised(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A `prompt` and its `completion`, as in `unpaired`, but without a label."""
  prompt = generic_forms.prompt_of(fields, ignored)
  values.require(fields, ('completion',))
  completion = messages.response(fields['completion'], 'completion', prompt, ignored)
  return rows.Example(prompt, (completion,), weight=generic_forms.weight_of(fields))


def text(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A plain `text`. All of it is trained but its first token, or BOS, which the model is given."""
  del ignored
  values.require(fields, ('text',))
  return rows.Example('', (values.filled(fields['text'], 'text', 'response'),), weight=generic_forms.weight_of(fields))


def chosen(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """The preferred side of a pair: `prompt` and `chosen`, or `chosen` alone, a conversation or a transcript of HH.

  If there is a `label` below 0.5, it is `rejected`.
  """
  label = values.number(fields['label'], 'label', 0.0, 1.0) if 'label' in fields else 1.0
  name = 'chosen' if label >= 0.5 else 'rejected'
  values.require(fields, (name,))
  value = fields[name]
  if isinstance(value, str) and 'prompt' not in fields and 'user' not in fields and public_forms.TURN.match(value):
    return _last_turn(public_forms.speeches(value, name), name, fields)
  whole = isinstance(value, list) and len(value) > 1 and not isinstance(fields.get('prompt'), list)
  if whole or not fields.keys() & {'prompt', 'user'}:
    return _last_turn(messages.turns(value, name, ignored), name, fields)
  prompt = generic_forms.prompt_of(fields, ignored)
  response = messages.response(value, name, prompt, ignored)
  return rows.Example(prompt, (response,), weight=generic_forms.weight_of(fields))


def alpaca(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """Alpaca's columns: `instruction` with an optional `input`, a user's message; and `output`, or a pair of `chosen`
  and `rejected`."""
  del ignored
  values.require(fields, ('instruction',))
  question = values.filled(fields['instruction'], 'instruction', 'prompt')
  extra = values.text(fields.get('input', ''), 'input')
  content = f'{question}\n\n{extra}' if extra.strip() else question
  prompt = messages.with_context([{'role': 'user', 'content': content}], fields)
  names = ('chosen', 'rejected') if 'chosen' in fields or 'rejected' in fields else ('output',)
  values.require(fields, names)
  if len(names) == 2 and 'output' in fields:
    raise rows.Refused('two_fields', "field 'output': the row has 'chosen' too; ignore one of the two")
  responses = tuple(messages.response(fields[name], name, [], ()) for name in names)
  if len(responses) == 2:
    ranking.check_different(responses)
  return rows.Example(prompt, responses, weight=generic_forms.weight_of(fields))


def _last_turn(found: list[rows.Message], name: str, fields: Mapping[str, Any]) -> rows.Example:
  """The last message of a conversation, as the response to the others."""
  prompt = messages.with_context(found[:-1], fields)
  return rows.Example(prompt, (messages.as_response(found[-1], name),), weight=generic_forms.weight_of(fields))
