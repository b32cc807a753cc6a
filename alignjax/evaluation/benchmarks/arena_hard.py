"""Arena-Hard 2: the file of a model's answers, and the games that its judge has decided.

  data/arena-hard-v2.0/model_answer/MODEL.jsonl              # written here
  data/arena-hard-v2.0/model_judgment/JUDGE/MODEL.jsonl      # read here

References:
  Li et al., From Crowdsourced Data to High-Quality Benchmarks, https://arxiv.org/abs/2406.11939.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re
from typing import Any, NamedTuple

from alignjax.data.reading import rows
from alignjax.evaluation import evaluator
from alignjax.evaluation.benchmarks import records

STRONG = 3  # how often a verdict such as A>>B counts
VERDICTS = {  # P(A is better), and how often it counts
  'A>>B': (1.0, STRONG),
  'A>B': (1.0, 1),
  'A=B': (0.5, 1),
  'B>A': (0.0, 1),
  'B>>A': (0.0, STRONG),
}
SPELLED = {'B<<A': 'A>>B', 'B<A': 'A>B', 'B=A': 'A=B', 'A<B': 'B>A', 'A<<B': 'B>>A'}
CODE = re.compile('```[^`]*```')


class Answer(NamedTuple):
  """A model's answer to a question of the benchmark."""

  uid: str  # of the question
  prompt: str
  answer: str
  tokens: int  # its length; the benchmark itself counts tokens of GPT-4o, and uses them only to control for style


def write(path: pathlib.Path, answers: Sequence[Answer], model: str, time: float) -> None:
  """Writes a model's answers.

  Args:
    path: the .jsonl file, named after the model.
    answers: one answer for each question.
    model: the name of the model.
    time: when the answers were drawn, in seconds since 1970.
  """
  records.write_lines(path, (_row(each, model, time) for each in answers))


def _row(answer: Answer, model: str, time: float) -> dict[str, Any]:
  return {
    'uid': answer.uid,
    'ans_id': records.identifier(answer.uid, model, answer.answer),
    'model': model,
    'messages': [
      {'role': 'user', 'content': answer.prompt},
      {'role': 'assistant', 'content': {'answer': answer.answer}},
    ],
    'tstamp': time,
    'metadata': {'token_len': answer.tokens, **style(answer.answer)},
  }


def style(text: str) -> dict[str, dict[str, int]]:
  """Counts Markdown headers, list items and bold phrases outside of code blocks."""
  text = CODE.sub('', text)

  def count(pattern: str) -> int:
    return len(re.findall(pattern, text, re.MULTILINE))

  return {
    'header_count': {f'h{level}': count(rf'^#{{{level}}}\s') for level in range(1, 7)},
    'list_count': {'ordered': count(r'^\s*\d+\.\s'), 'unordered': count(r'^\s*[-*+]\s')},
    'bold_count': {'**': count(r'\*\*[^*\n]+\*\*'), '__': count(r'__[^_\n]+__')},
  }


def read_questions(path: str) -> list[tuple[str, str]]:
  """The uids and prompts of the benchmark's question.jsonl.

  Raises:
    DataError: a row is malformed; the message names it.
  """
  return [
    (records.field(origin, fields, 'uid', str), records.field(origin, fields, 'prompt', str))
    for origin, fields in records.read(path)
  ]


class Outcome(NamedTuple):
  """The judge's verdicts on one question, over both orders of the answers."""

  uid: str
  category: str
  win: float  # mean over the verdicts, in [0, 1]
  weight: int  # number of verdicts, strong ones counted three times


def read(path: str) -> list[Outcome]:
  """Reads the judgments of a model. Questions with an undecided game are left out, as in the benchmark.

  In the first game, A is the baseline and B the model; in the second, they are exchanged.

  Raises:
    DataError: a row is malformed; the message names it.
  """
  found = []
  for origin, fields in records.read(path):
    games = records.field(origin, fields, 'games', list)
    if len(games) != 2:
      raise rows.DataError(origin, 'wrong_field', f'field games: expected 2 games, found {len(games)}')
    if any(not isinstance(game, Mapping) or game.get('score') is None for game in games):
      continue
    (baseline, first), (model, second) = (_verdict(origin, game['score']) for game in games)
    weight = first + second
    win = ((1 - baseline) * first + model * second) / weight
    uid, category = (records.field(origin, fields, name, str) for name in ('uid', 'category'))
    found.append(Outcome(uid, category, win, weight))
  return found


def _verdict(origin: str, label: Any) -> tuple[float, int]:
  verdict = VERDICTS.get(SPELLED.get(label, label)) if isinstance(label, str) else None
  if verdict is None:
    raise rows.DataError(origin, 'wrong_field', f'field score: {label!r} is not one of {", ".join(VERDICTS)}')
  return verdict


def score(outcomes: Sequence[Outcome]) -> evaluator.Estimate:
  """The benchmark's score: the mean over all verdicts, sum(weight win) / sum(weight), clustered by question."""
  weighted = evaluator.clustered_mean([[each.weight * each.win] for each in outcomes]).mean
  weight = evaluator.clustered_mean([[each.weight] for each in outcomes]).mean
  mean = weighted / weight
  influence = evaluator.clustered_mean([[each.weight * (each.win - mean) / weight] for each in outcomes])
  return evaluator.Estimate(mean, influence.error)
