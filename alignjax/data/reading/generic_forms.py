"""Row forms designed for training: preference pairs, single responses, lists of responses, and bare prompts.

A prompt is a string that its responses continue verbatim, or a list of messages {role, content}. A response to messages
is the assistant's text, or a list with that one message. Every form accepts a `weight` >= 0, 1 by default.
"""

from collections.abc import Collection, Mapping
from typing import Any

from alignjax.data.reading import ranking, rows, values

PREFERENCE = ('prompt', 'chosen', 'rejected', 'label', 'weight', 'margin', 'score', 'behaviour_logp')
UNPAIRED = ('prompt', 'completion', 'label', 'weight')
RANKED = ('prompt', 'responses', 'weight')
SCORED = ('prompt', 'responses', 'scores', 'weight', 'behaviour_logp')
PROMPTS = ('prompt', 'weight')
PROMPTS_UNUSED = tuple(sorted({*PREFERENCE, *UNPAIRED, *RANKED, *SCORED} - {*PROMPTS}))


def preference(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A pair: `prompt`, `chosen`, `rejected`.

  Without `prompt`, `chosen` and `rejected` are two conversations that differ only in their last, assistant, message.

  Optional: `label` in [0, 1], the probability that `chosen` is preferred, 1 by default; `score`, [float, float], the
  rewards of `chosen` and `rejected`; or instead `margin`, their difference, which is stored as the score (margin, 0)
  because pairwise objectives read only differences; `behaviour_logp`, the log-probability in nats of each response, end
  token included, under the policy that wrote it: [float, float], or two lists with one number per token.
  """
  if 'prompt' in fields:
    values.require(fields, ('prompt', 'chosen', 'rejected'))
    prompt = values.prompt(fields['prompt'], 'prompt', ignored)
    chosen, rejected = (values.response(fields[name], name, prompt, ignored) for name in ('chosen', 'rejected'))
  else:
    prompt, chosen, rejected = values.conversations(fields, ignored)
  label = values.number(fields['label'], 'label', 0.0, 1.0) if 'label' in fields else 1.0
  example = rows.Example(prompt, (chosen, rejected), label, _weight(fields), _score(fields))
  example = _with_behaviour(example, fields)
  if chosen == rejected:
    raise rows.Dropped('identical_text', 'chosen and rejected are the same text')
  return example


def unpaired(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A single response: `prompt`, `completion`, and `label`: whether it is desirable, as a boolean or a probability."""
  values.require(fields, ('prompt', 'completion', 'label'))
  prompt = values.prompt(fields['prompt'], 'prompt', ignored)
  completion = values.response(fields['completion'], 'completion', prompt, ignored)
  return rows.Example(prompt, (completion,), values.truth(fields['label'], 'label'), _weight(fields))


def ranked(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A ranking: `prompt`, and `responses`, two or more, the best first."""
  values.require(fields, ('prompt', 'responses'))
  prompt, responses = _prompt_and_responses(fields, ignored)
  if len(responses) == 1:
    raise rows.Refused('wrong_length', "field 'responses': has one response; a ranking needs two or more")
  ranking.check_different(responses)
  return rows.Example(prompt, responses, weight=_weight(fields))


def scored(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """Responses with rewards: `prompt`, `responses`, one or more in any order, and `scores`, one number per response.

  Optional: `behaviour_logp`, one entry per response: see `preference`.
  """
  values.require(fields, ('prompt', 'responses', 'scores'))
  prompt, responses = _prompt_and_responses(fields, ignored)
  scores = values.numbers(fields['scores'], 'scores', len(responses))
  example = _with_behaviour(rows.Example(prompt, responses, weight=_weight(fields), score=scores), fields)
  if len(responses) > 1:
    ranking.check_different(responses)
    ranking.check_untied(scores)
  return ranking.best_first(example)


def scored_pair(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """The columns of `scored`. The best and the worst response form a pair."""
  return ranking.best_and_worst(scored(fields, ignored), 'responses')


def prompts(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """A bare `prompt`, to sample responses for. The other columns of the forms above are allowed but not read."""
  values.require(fields, ('prompt',))
  return rows.Example(values.prompt(fields['prompt'], 'prompt', ignored), (), weight=_weight(fields))


def _weight(fields: Mapping[str, Any]) -> float:
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


def _prompt_and_responses(fields: Mapping[str, Any], ignored: Collection[str]) -> tuple[rows.Prompt, tuple[str, ...]]:
  prompt = values.prompt(fields['prompt'], 'prompt', ignored)
  found = values.items(fields['responses'], 'responses')
  if not found:
    raise rows.Refused('wrong_length', "field 'responses': the list is empty; add responses or remove the row")
  return prompt, tuple(
    values.response(response, f'responses[{i}]', prompt, ignored) for i, response in enumerate(found)
  )
