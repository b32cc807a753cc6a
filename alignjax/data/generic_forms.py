"""Forms of rows that are written for training: pairs, single responses, and lists of responses.

A prompt is a string, which its responses follow as they stand, or a list of messages {role, content}; a response to
messages is the assistant's text, or a list of that one message. Every form may have a `weight` >= 0, 1 by default.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from alignjax.data import rows, values

PREFERENCE = ('prompt', 'chosen', 'rejected', 'label', 'weight', 'margin', *rows.PER_RESPONSE)
UNPAIRED = ('prompt', 'completion', 'label', 'weight')
RANKED = ('prompt', 'responses', 'weight')
SCORED = ('prompt', 'responses', 'scores', 'weight', 'behaviour_logp')


def preference(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Pair:
  """A pair: `prompt`, `chosen`, `rejected`.

  Without `prompt`, `chosen` and `rejected` are two conversations, equal up to their last, assistant, message.

  Optional: `label` in [0, 1], the probability that `chosen` is preferred, 1 by default; `score`, [float, float], a
  reward for `chosen` and for `rejected`; or in its place `margin`, the difference of the two, which becomes the score
  (margin, 0), since objectives of pairs read differences only; `behaviour_logp`, [float, float], the log-probability of
  each whole response, end token included, under the policy that wrote it, nats.
  """
  if 'prompt' in fields:
    values.require(fields, ('prompt', 'chosen', 'rejected'))
    prompt = values.prompt(fields['prompt'], 'prompt', ignored)
    chosen, rejected = (values.response(fields[name], name, prompt, ignored) for name in ('chosen', 'rejected'))
  else:
    prompt, chosen, rejected = conversations(fields, ignored)
  pair = rows.Pair(
    prompt,
    (chosen, rejected),
    values.number(fields['label'], 'label', 0.0, 1.0) if 'label' in fields else 1.0,
    weight(fields),
    _score(fields),
    behaviour_logp(fields, 2),
  )
  if chosen == rejected:
    raise rows.Dropped('identical_text', 'chosen and rejected are the same text')
  return pair


def conversations(fields: Mapping[str, Any], ignored: Collection[str]) -> tuple[list[rows.Message], str, str]:
  """The prompt that the conversations `chosen` and `rejected` share, and the last message of each."""
  values.require(fields, ('chosen', 'rejected'))
  sides = []
  for name in ('chosen', 'rejected'):
    value = fields[name]
    if isinstance(value, str) and not (isinstance(value, values.Cell) and value.startswith('[')):
      raise rows.Refused(
        'missing_field',
        f"field 'prompt' is missing; give it, or make '{name}' the whole conversation, a list of messages",
      )
    messages = values.messages(values.items(value, name), name, ignored)
    if len(messages) < 2 or messages[-1]['role'] != 'assistant' or messages[-2]['role'] != 'user':
      raise rows.Refused(
        'wrong_role', f"field '{name}': without 'prompt' it must be a conversation that ends with user, then assistant"
      )
    values.filled(messages[-1]['content'], name, 'response')
    sides.append(messages)
  chosen, rejected = sides
  if chosen[:-1] != rejected[:-1]:
    first = next(
      (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(min(sides, key=len))
    )
    raise rows.Refused(
      'prompts_differ',
      f"field 'rejected[{first}]': the conversations differ before their last message; give both the same prompt",
    )
  return chosen[:-1], chosen[-1]['content'], rejected[-1]['content']


def unpaired(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Pair:
  """A single response: `prompt`, `completion`, and `label`: true if it is desirable, false, or the probability."""
  values.require(fields, ('prompt', 'completion', 'label'))
  prompt = values.prompt(fields['prompt'], 'prompt', ignored)
  completion = values.response(fields['completion'], 'completion', prompt, ignored)
  return rows.Pair(prompt, (completion,), values.truth(fields['label'], 'label'), weight(fields))


def ranked(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Pair:
  """A ranking: `prompt`, and `responses`, two or more, the best first."""
  values.require(fields, ('prompt', 'responses'))
  prompt, responses = _list(fields, ignored)
  if len(responses) == 1:
    raise rows.Refused('wrong_length', "field 'responses': has one response; a ranking needs two or more")
  check_different(responses)
  return rows.Pair(prompt, responses, weight=weight(fields))


def scored(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Pair:
  """Responses with rewards: `prompt`, `responses`, one or more in any order, and `scores`, a number for each.

  Optional: `behaviour_logp`, as many numbers: see `preference`.
  """
  values.require(fields, ('prompt', 'responses', 'scores'))
  prompt, responses = _list(fields, ignored)
  scores = values.numbers(fields['scores'], 'scores', len(responses))
  pair = rows.Pair(
    prompt, responses, weight=weight(fields), score=scores, behaviour_logp=behaviour_logp(fields, len(responses))
  )
  if len(responses) > 1:
    check_different(responses)
    check_untied(scores)
  return best_first(pair)


def scored_pair(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Pair:
  """The columns of `scored`, of which the best and the worst response make a pair."""
  return best_and_worst(scored(fields, ignored), 'responses')


def best_first(pair: rows.Pair) -> rows.Pair:
  """The responses in the order of their scores; equal ones stay in the order of the row."""
  order = sorted(range(len(pair.responses)), key=lambda i: -pair.score[i])
  return _pick(pair, order)


def best_and_worst(pair: rows.Pair, name: str) -> rows.Pair:
  """The first and the last response; `name` is the field that has them."""
  if len(pair.responses) == 1:
    raise rows.Refused('wrong_length', f"field '{name}': has one response; a pair needs two or more")
  pair = _pick(pair, (0, -1))
  check_different(pair.responses)
  return pair


def check_different(responses: Sequence[str]) -> None:
  """Drops a row whose responses are one and the same."""
  if all(response == responses[0] for response in responses):
    raise rows.Dropped('identical_text', 'all responses are the same text')


def check_untied(scores: Sequence[float]) -> None:
  """Drops a row that prefers nothing."""
  if all(score == scores[0] for score in scores):
    raise rows.Dropped('tied_scores', f'all {len(scores)} responses have the score {scores[0]:g}')


def weight(fields: Mapping[str, Any]) -> float:
  """The optional column `weight`."""
  return values.number(fields['weight'], 'weight', 0.0) if 'weight' in fields else 1.0


def behaviour_logp(fields: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
  """The optional column `behaviour_logp` of `count` responses."""
  name = 'behaviour_logp'
  return values.numbers(fields[name], name, count, rows.PER_RESPONSE[name]) if name in fields else None


def _score(fields: Mapping[str, Any]) -> tuple[float, ...] | None:
  if 'margin' not in fields:
    return values.numbers(fields['score'], 'score', 2) if 'score' in fields else None
  if 'score' in fields:
    raise rows.Refused('score_and_margin', "field 'margin': the row has a 'score' as well; give one of the two")
  return values.number(fields['margin'], 'margin'), 0.0


def _list(fields: Mapping[str, Any], ignored: Collection[str]) -> tuple[rows.Prompt, tuple[str, ...]]:
  prompt = values.prompt(fields['prompt'], 'prompt', ignored)
  found = values.items(fields['responses'], 'responses')
  if not found:
    raise rows.Refused('wrong_length', "field 'responses': the list is empty; give it responses or leave the row out")
  return prompt, tuple(
    values.response(response, f'responses[{i}]', prompt, ignored) for i, response in enumerate(found)
  )


def _pick(pair: rows.Pair, order: Sequence[int]) -> rows.Pair:
  columns = {name: getattr(pair, name) for name in ('responses', *rows.PER_RESPONSE)}
  return pair._replace(
    **{name: tuple(column[i] for i in order) for name, column in columns.items() if column is not None}
  )
