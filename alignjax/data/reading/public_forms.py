"""Row forms of well-known public datasets. Each lists the columns it reads and the published columns it skips."""

from collections.abc import Collection, Mapping
import re
from typing import Any

from alignjax.data.reading import messages, ranking, rows, values

HH = ('chosen', 'rejected')
BINARISED = ('prompt', 'chosen', 'rejected', 'score_chosen', 'score_rejected')
BINARISED_UNUSED = ('prompt_id', 'messages')  # `messages` repeats `chosen`, for fine-tuning
ULTRAFEEDBACK = ('prompt', 'instruction', 'completions')
ULTRAFEEDBACK_UNUSED = ('source', 'models', 'correct_answers', 'incorrect_answers')
COMPLETION = ('response', 'score', 'overall_score')
COMPLETION_UNUSED = ('model', 'principle', 'custom_system_prompt', 'annotations', 'critique', 'fine-grained_score')
TLDR = ('info', 'summaries', 'choice')
TLDR_UNUSED = ('worker', 'batch', 'split', 'extra')
POST = ('post', 'title', 'subreddit')
POST_UNUSED = ('id', 'site', 'article')
SUMMARY = ('text',)
SUMMARY_UNUSED = ('policy', 'note')

SPEAKERS = {'Human': 'user', 'Assistant': 'assistant'}
TURN = re.compile(r'\n\n(Human|Assistant):')
REPLY = '\n\nAssistant:'


def hh(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  r"""Anthropic's HH: `chosen` and `rejected`, transcripts "\n\nHuman: ...\n\nAssistant: ..." that differ only in the
  last turn. The prompt becomes chat messages."""
  del ignored  # transcripts have no fields
  chosen, rejected = _transcripts(fields)
  return rows.Example(chosen[:-1], (chosen[-1]['content'], rejected[-1]['content']))


def hh_text(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  r"""The columns of `hh`. The prompt stays the text of the transcript up to the last "\n\nAssistant:", for models
  without a chat template."""
  del ignored
  _transcripts(fields)
  split = [fields[name].rindex(REPLY) + len(REPLY) for name in HH]
  chosen, rejected = (str(fields[name])[at:].rstrip() for name, at in zip(HH, split, strict=True))
  return rows.Example(str(fields['chosen'])[: split[0]], (chosen, rejected))


def _transcripts(fields: Mapping[str, Any]) -> tuple[list[rows.Message], list[rows.Message]]:
  """The turns of both transcripts, after checking that they form a pair."""
  values.require(fields, HH)
  chosen, rejected = (speeches(fields[name], name) for name in HH)
  if chosen[:-1] != rejected[:-1]:
    raise rows.Dropped('prompts_differ', 'the transcripts differ before their last turn')
  for name, each in (('chosen', chosen), ('rejected', rejected)):
    _check_turns(each, name)
  if chosen == rejected:
    raise rows.Dropped('identical_text', 'the last turns are the same except for white space')
  return chosen, rejected


def speeches(transcript: Any, name: str) -> list[rows.Message]:
  r"""The messages of a transcript "\n\nHuman: ...\n\nAssistant: ..."."""
  before, *parts = TURN.split(values.text(transcript, name))
  if before or not parts:
    raise rows.Refused('not_a_transcript', f"field '{name}': must start with '\\n\\nHuman:'")
  pairs = zip(parts[::2], parts[1::2], strict=True)
  return [{'role': SPEAKERS[speaker], 'content': content.strip()} for speaker, content in pairs]


def _check_turns(found: list[rows.Message], name: str) -> None:
  """Drops a transcript unless user and assistant alternate, the assistant speaks last, and no turn is empty."""
  for i, message in enumerate(found):
    if message['role'] != ('user', 'assistant')[i % 2]:
      raise rows.Dropped('roles_do_not_alternate', f"field '{name}': turn {i + 1} is by the {message['role']}")
  if found[-1]['role'] != 'assistant':
    raise rows.Dropped('no_reply', f"field '{name}': the last turn is by the user")
  if not found[-1]['content']:
    raise rows.Dropped('empty_reply', f"field '{name}': the last turn is empty")
  if not all(message['content'] for message in found):
    raise rows.Dropped('empty_turn', f"field '{name}': a turn before the last is empty")


def binarised(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """Binarised UltraFeedback and similar datasets: `chosen` and `rejected`, whole conversations that differ only in
  their last message. Optional: `prompt`, the text of a user message in them; `score_chosen` and `score_rejected`,
  rewards."""
  asked, chosen, rejected = messages.conversations(fields, ignored)
  if 'prompt' in fields:
    prompt = values.text(fields['prompt'], 'prompt').strip()
    if not any(message['role'] == 'user' and message['content'].strip() == prompt for message in asked):
      raise rows.Refused(
        'prompts_differ',
        "field 'prompt': does not match any user message of 'chosen'; correct it, or add it to ignore_fields",
      )
  example = rows.Example(asked, (chosen, rejected), score=_two_scores(fields))
  ranking.check_different(example.responses)
  return example


def _two_scores(fields: Mapping[str, Any]) -> tuple[float, float] | None:
  names = BINARISED[-2:]
  if not any(name in fields for name in names):
    return None
  values.require(fields, names)
  chosen, rejected = (values.number(fields[name], name) for name in names)
  return chosen, rejected


def ultrafeedback(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """UltraFeedback: `instruction` (or `prompt`), the user message, and `completions`, a list of objects with
  `response` and `overall_score` (or `score`). They become the responses to that message, the best first."""
  values.require(fields, ('completions',))
  prompt = _either(fields, ('instruction', 'prompt'))
  message = {'role': 'user', 'content': values.filled(fields[prompt], prompt, 'prompt')}
  completions = values.items(fields['completions'], 'completions')
  if not completions:
    raise rows.Dropped('no_completions', 'the list of completions is empty')
  found = [_completion(each, f'completions[{i}]', ignored) for i, each in enumerate(completions)]
  responses, scores = zip(*found, strict=True)
  return ranking.best_first(rows.Example([message], responses, score=scores))


def ultrafeedback_pair(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """The columns of `ultrafeedback`. The best and the worst completion form a pair."""
  return ranking.best_and_worst(ultrafeedback(fields, ignored), 'completions')


def _completion(value: Any, name: str, ignored: Collection[str]) -> tuple[str, float]:
  values.mapping(value, name, COMPLETION, {*COMPLETION_UNUSED, *ignored})
  values.require(value, ('response',), name)
  score = _either(value, ('overall_score', 'score'), name)
  response = values.filled(value['response'], f'{name}.response', 'response')
  return response, values.number(value[score], f'{name}.{score}')


def tldr(fields: Mapping[str, Any], ignored: Collection[str]) -> rows.Example:
  """OpenAI's summary comparisons: `info` with `post`, `title` and `subreddit`, two `summaries` with `text`, and
  `choice`, the index of the better one. The prompt is a text that ends in "TL;DR:". News articles are dropped."""
  values.require(fields, TLDR)
  info = values.mapping(fields['info'], 'info', POST, {*POST_UNUSED, *ignored})
  if info.get('post') is None and info.get('article') is not None:
    raise rows.Dropped('no_post', "field 'info.post': missing; the row is about a news article")
  values.require(info, ('post',), 'info')
  summaries = values.items(fields['summaries'], 'summaries')
  if len(summaries) != 2:
    raise rows.Refused('wrong_length', f"field 'summaries': has {len(summaries)} summaries; a comparison has two")
  choice = values.number(fields['choice'], 'choice')
  if choice not in (0, 1):
    raise rows.Refused('out_of_range', "field 'choice': must be 0 or 1, the index of the better summary")
  texts = []
  for i, summary in enumerate(summaries):
    name = f'summaries[{i}]'
    values.mapping(summary, name, SUMMARY, {*SUMMARY_UNUSED, *ignored})
    values.require(summary, SUMMARY, name)
    texts.append(' ' + values.filled(summary['text'], f'{name}.text', 'response').strip())
  example = rows.Example(_post(info), tuple(texts if choice == 0 else reversed(texts)))
  ranking.check_different(example.responses)
  return example


def _post(info: Mapping[str, Any]) -> str:
  """The text before a summary, in the format of the dataset's authors."""
  parts = []
  for name, heading in (('subreddit', 'SUBREDDIT: r/'), ('title', 'TITLE: '), ('post', 'POST: ')):
    if name == 'post' or info.get(name) is not None:  # the other two are optional
      parts.append(heading + values.filled(info[name], f'info.{name}', 'prompt').strip())
  return '\n\n'.join([*parts, 'TL;DR:'])


def _either(fields: Mapping[str, Any], names: tuple[str, str], where: str = '') -> str:
  """Returns which one of two alternative columns the row has."""
  given = [name for name in names if name in fields]
  if len(given) == 1:
    return given[0]
  place = f'{where}.{names[0]}' if where else names[0]
  if given:
    raise rows.Refused('two_fields', f"field '{place}': the row has {names[1]} too; give one of the two")
  raise rows.Refused('missing_field', f"field '{place}' is missing; the row needs {names[0]} or {names[1]}")
