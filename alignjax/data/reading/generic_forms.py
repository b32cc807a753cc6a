"""Row forms designed for training: preference pairs, single responses, lists of responses, and bare prompts.

A `prompt` is a string that its responses continue verbatim, or a list of messages. A response to messages is the
assistant's text, or one message. Every form accepts:

  `weight`                  a number >= 0, 1 by default;
  `user`                    in place of `prompt`: the text of a user's message;
  `system`                  a system message, put before the messages; a string `prompt` becomes a user's message;
  `tools`, `documents`      lists that the chat template shows;
  `chat_template_kwargs`    an object with other variables of the chat template, such as enable_thinking.
"""

from collections.abc import Collection, Mapping
from typing import Any

from alignjax.data.reading import messages, ranking, rows, values

PROMPT = ('prompt', 'user', *messages.CONTEXT)
PREFERENCE = ('prompt', 'chosen', 'rejected', 'label', 'weight', 'margin', 'score', 'behaviour_logp', *PROMPT[1:])
UNPAIRED = ('prompt', 'completion', 'label', 'weight', *PROMPT[1:])
RANKED = ('prompt', 'responses', 'weight', *PROMPT[1:])
SCORED = ('prompt', 'responses', 'scores', 'weight', 'behaviour_logp', *PROMPT[1:])
PROMPTS = ('prompt', 'weight', *PROMPT[1:])
PROMPTS_UNUSED = tuple(sorted({*PREFERENCE, *UNPAIRED, *RANKED, *SCORED} - {*PROMPTS}))


def preference(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A pair: `prompt`, `chosen`, `rejected`.

  Without `prompt`, `chosen` and `rejected` are two conversations that differ only in their last, assistant, message.

  Optional: `label` in [0, 1], the probability that `chosen` is preferred, 1 by default; `score`, [float, float], the
  rewards of `chosen` and `rejected`; or instead `margin`, their difference, which is stored as the score (margin, 0)
  because pairwise objectives read only differences; `behaviour_logp`, the log-probability in nats of each response, end
  token included, under the policy that wrote it: [float, float], or two lists with one number per token.
  """
  if 'prompt' in fields or 'user' in fields:
    prompt = prompt_of(fields, ignored)
    values.require(fields, ('chosen', 'rejected'))
    chosen, rejected = (messages.response(fields[name], name, prompt, ignored) for name in ('chosen', 'rejected'))
  else:
    prompt, chosen, rejected = messages.conversations(fields, ignored)
    prompt = messages.with_context(prompt, fields)
  label = values.number(fields['label'], 'label', 0.0, 1.0) if 'label' in fields else 1.0
  example = rows.Example(prompt, (chosen, rejected), label, weight_of(fields), _score(fields))
  example = _with_behaviour(example, fields)
  if chosen == rejected:
    raise rows.Dropped('identical_text', 'chosen and rejected are the same text')
  return example


def unpaired(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A single response: `prompt`, `completion`, and `label`: whether it is desirable, as a boolean or a probability."""
  prompt = prompt_of(fields, ignored)
  values.require(fields, ('completion', 'label'))
  completion = messages.response(fields['completion'], 'completion', prompt, ignored)
  return rows.Example(prompt, (completion,), values.truth(fields['label'], 'label'), weight_of(fields))


def ranked(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A ranking: `prompt`, and `responses`, two or more, the best first."""
  prompt, responses = _prompt_and_responses(fields, ignored)
  if len(responses) == 1:
    raise rows.Refused('wrong_length', "field 'responses': has one response; a ranking needs two or more")
  ranking.check_different(responses)
  return rows.Example(prompt, responses, weight=weight_of(fields))


def scored(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """Responses with rewards: `prompt`, `responses`, one or more in any order, and `scores`, one number per response.

  Optional: `behaviour_logp`, one entry per response: see `preference`.
  """
  prompt, responses = _prompt_and_responses(fields, ignored)
  values.require(fields, ('scores',))
  scores = values.numbers(fields['scores'], 'scores', len(responses))
  example = _with_behaviour(rows.Example(prompt, responses, weight=weight_of(fields), score=scores), fields)
  return ranking.best_first(example)


def scored_pair(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """The columns of `scored`. The best and the worst response form a pair."""
  return ranking.best_and_worst(scored(fields, ignored), 'responses')


def prompts(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A bare `prompt`, to sample responses for. The other columns of the forms above are allowed but not read."""
  return rows.Example(prompt_of(fields, ignored), (), weight=weight_of(fields))


def prompt_of(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Prompt:
  """The prompt of a row: the columns `prompt` or `user`, and those of `messages.CONTEXT`."""
  if 'user' not in fields:
    values.require(fields, ('prompt',))
    return messages.with_context(messages.prompt(fields['prompt'], 'prompt', ignored), fields)
  if 'prompt' in fields:
    raise rows.Refused('two_fields', "field 'user': the row has a 'prompt' too; give one of the two")
  question = {'role': 'user', 'content': values.filled(fields['user'], 'user', 'prompt')}
  return messages.with_context([question], fields)


def weight_of(fields: Mapping[str, Any]) -> float:
  """The column `weight`."""
  return values.number(fields['weight'], 'weight', 0.0) if 'weight' in fields else 1.0


def _score(fields: Mapping[str, Any]) -> tuple[float, ...] | None:
  if 'margin' not in fields:
    return values.numbers(fields['score'], 'score', 2) if 'score' in fields else None
  if 'score' in fields:
    raise rows.Refused('score_and_margin', "field 'margin': the row has a 'score' as well; give one of the two")
  return values.number(fields['margin'], 'margin'), 0.0


def _with_behaviour(example: rows.Example, fields: Mapping[str, Any]) -> rows.Example:
  """Adds the optional column `behaviour_logp`, which holds a number or a list of numbers per response."""
  name = 'behaviour_logp'
  if name not in fields:
    return example
  count, limit = len(example.responses), rows.PER_RESPONSE[name]
  entries = values.items(fields[name], name)
  if len(entries) != count or not all(isinstance(entry, list) for entry in entries):
    return example._replace(behaviour_logp=values.numbers(fields[name], name, count, limit))
  tokens = tuple(values.numbers(entry, f'{name}[{i}]', len(entry), limit) for i, entry in enumerate(entries))
  return example._replace(behaviour_token_logp=tokens)


def _prompt_and_responses(
  fields: Mapping[str, Any], ignored: Collection[str]
) -> tuple[rows.Prompt, tuple[rows.Response, ...]]:
  prompt = prompt_of(fields, ignored)
  values.require(fields, ('responses',))
  found = values.items(fields['responses'], 'responses')
  if not found:
    raise rows.Refused('wrong_length', "field 'responses': the list is empty; add responses or remove the row")
  return prompt, tuple(
    messages.response(response, f'responses[{i}]', prompt, ignored) for i, response in enumerate(found)
  )
