"""More row forms of well-known public datasets. Each lists the columns it reads and the published columns it skips."""

from collections.abc import Collection, Mapping
from typing import Any

from alignjax.data.reading import messages, public_forms, ranking, rows, values

NECTAR = ('prompt', 'answers')
NECTAR_UNUSED = ('turns', 'num_responses', 'source', 'good_natured')
ANSWER = ('answer', 'rank')
ANSWER_UNUSED = ('model',)
HELPSTEER = ('context', 'response1', 'response2', 'overall_preference')
HELPSTEER_UNUSED = ('domain', 'language', 'individual_preference')
SHP = ('history', 'human_ref_A', 'human_ref_B', 'labels', 'score_A', 'score_B')
SHP_UNUSED = (
  'post_id',
  'domain',
  'upvote_ratio',
  'score_ratio',
  'seconds_difference',
  *(f'{name}_{side}' for side in 'AB' for name in ('c_root_id', 'created_at_utc')),
)
PKU = ('prompt', 'response_0', 'response_1', 'better_response_id')
PKU_UNUSED = (
  'prompt_source',
  'safer_response_id',
  *(f'response_{i}_{name}' for i in (0, 1) for name in ('source', 'severity_level', 'harm_category', 'sha256')),
  *(f'is_response_{i}_safe' for i in (0, 1)),
)


def nectar(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  r"""Nectar: `prompt`, a transcript that ends with "\n\nAssistant: ", and `answers`, a list of objects with `answer`
  and `rank`, 1 for the best. They become responses with the score -rank, the best first."""
  values.require(fields, NECTAR)
  prompt = public_forms.speeches(fields['prompt'], 'prompt')
  if prompt[-1]['role'] == 'assistant' and not prompt[-1]['content']:
    prompt = prompt[:-1]
  if prompt[-1]['role'] != 'user':
    raise rows.Dropped('no_question', "field 'prompt': the last turn is by the assistant")
  answers = values.items(fields['answers'], 'answers')
  if not answers:
    raise rows.Dropped('no_completions', 'the list of answers is empty')
  found = [_answer(each, f'answers[{i}]', ignored) for i, each in enumerate(answers)]
  responses, scores = zip(*found, strict=True)
  return ranking.best_first(rows.Example(prompt, responses, score=scores))


def nectar_pair(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """The columns of `nectar`. The best and the worst answer form a pair."""
  return ranking.best_and_worst(nectar(fields, ignored), 'answers')


def _answer(value: Any, name: str, ignored: Collection[str]) -> tuple[str, float]:
  values.mapping(value, name, ANSWER, {*ANSWER_UNUSED, *ignored})
  values.require(value, ANSWER, name)
  return values.filled(value['answer'], f'{name}.answer', 'response'), -values.number(value['rank'], f'{name}.rank')


def helpsteer(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """HelpSteer3: `context`, messages, `response1`, `response2`, and `overall_preference`, from -3 (the first is much
  better) to 3. Its size is stored as the difference of the scores. Rows with preference 0 are dropped."""
  values.require(fields, HELPSTEER)
  prompt = messages.prompt(fields['context'], 'context', ignored)
  preference = values.number(fields['overall_preference'], 'overall_preference', -3.0, 3.0)
  pair = tuple(messages.response(fields[name], name, prompt, ignored) for name in ('response1', 'response2'))
  if not preference:
    raise rows.Dropped('tied_scores', "field 'overall_preference': 0 prefers neither response")
  example = rows.Example(prompt, pair if preference < 0 else pair[::-1], score=(abs(preference), 0.0))
  ranking.check_different(example.responses)
  return example


def shp(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """Stanford Human Preferences: `history`, the user's message, `human_ref_A`, `human_ref_B`, and `labels`, 1 if A is
  preferred, 0 if B is. Optional: `score_A` and `score_B`, rewards."""
  del ignored
  values.require(fields, SHP[:4])
  prompt = [{'role': 'user', 'content': values.filled(fields['history'], 'history', 'prompt')}]
  responses = tuple(values.filled(fields[f'human_ref_{side}'], f'human_ref_{side}', 'response') for side in 'AB')
  score = None
  if 'score_A' in fields or 'score_B' in fields:
    values.require(fields, ('score_A', 'score_B'))
    score = tuple(values.number(fields[f'score_{side}'], f'score_{side}') for side in 'AB')
  first = _choice(fields['labels'], 'labels') == 1
  return _ordered(rows.Example(prompt, responses, score=score), first)


def pku(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """PKU-SafeRLHF: `prompt`, the user's message, `response_0`, `response_1`, and `better_response_id`, 0 or 1.

  Map better_response_id to safer_response_id to prefer the safer response.
  """
  del ignored
  values.require(fields, PKU)
  prompt = [{'role': 'user', 'content': values.filled(fields['prompt'], 'prompt', 'prompt')}]
  responses = tuple(values.filled(fields[name], name, 'response') for name in ('response_0', 'response_1'))
  return _ordered(rows.Example(prompt, responses), _choice(fields['better_response_id'], 'better_response_id') == 0)


def _choice(value: Any, name: str) -> float:
  choice = values.number(value, name)
  if choice not in (0, 1):
    raise rows.Refused('out_of_range', f"field '{name}': {choice:g} is out of range; it must be 0 or 1")
  return choice


def _ordered(example: rows.Example, first: bool) -> rows.Example:
  """A pair with the preferred response first."""
  ranking.check_different(example.responses)
  return example if first else ranking.pick(example, (1, 0))
