"""MT-Bench: the file of a model's answers, and the scores and comparisons of its judge.

  data/mt_bench/model_answer/MODEL.jsonl                       # written here
  data/mt_bench/model_judgment/{gpt-4_single,gpt-4_pair}.jsonl # read here

References:
  Zheng et al., Judging LLM-as-a-Judge, https://arxiv.org/abs/2306.05685.
"""

from collections.abc import Sequence
import pathlib
from typing import NamedTuple

from alignjax.data.reading import rows
from alignjax.evaluation.benchmarks import records

TEMPERATURES = {  # by category of the question; 0 is greedy
  'writing': 0.7,
  'roleplay': 0.7,
  'extraction': 0.0,
  'math': 0.0,
  'coding': 0.0,
  'reasoning': 0.0,
  'stem': 0.1,
  'humanities': 0.1,
}
UNDECIDED = -1  # the judge has given no score


class Answer(NamedTuple):
  """A model's answers to both turns of a question. The second is drawn with the first in its prompt."""

  question_id: int
  turns: tuple[str, str]


def write(path: pathlib.Path, answers: Sequence[Answer], model: str, time: float) -> None:
  """Writes a model's answers, sorted by question.

  Args:
    path: the .jsonl file, named after the model.
    answers: one answer for each question.
    model: the name of the model.
    time: when the answers were drawn, in seconds since 1970.

  Raises:
    ValueError: a question has other than two turns.
  """
  for each in answers:
    if len(each.turns) != 2:
      raise ValueError(f'question {each.question_id}: expected answers to 2 turns, got {len(each.turns)}')
  records.write_lines(
    path,
    (
      {
        'question_id': each.question_id,
        'answer_id': records.identifier(str(each.question_id), model, *each.turns),
        'model_id': model,
        'choices': [{'index': 0, 'turns': list(each.turns)}],
        'tstamp': time,
      }
      for each in sorted(answers)
    ),
  )


class Question(NamedTuple):
  """A question of two turns."""

  question_id: int
  category: str
  turns: tuple[str, str]


def read_questions(path: str) -> list[Question]:
  """Reads the benchmark's question.jsonl.

  Raises:
    DataError: a row is malformed; the message names it.
  """
  found = []
  for origin, fields in records.read(path):
    number, category, turns = (
      records.field(origin, fields, name, kind)
      for name, kind in (('question_id', int), ('category', str), ('turns', list))
    )
    if len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
      raise rows.DataError(origin, 'wrong_field', f'field turns: expected two strings, found {turns!r}')
    if category not in TEMPERATURES:
      known = ', '.join(TEMPERATURES)
      raise rows.DataError(origin, 'wrong_field', f'field category: {category!r} is not one of {known}')
    found.append(Question(number, category, tuple(turns)))
  return found


class Score(NamedTuple):
  """The judge's score of the answer to one turn."""

  question_id: int
  turn: int  # 1 or 2
  score: float  # 1 .. 10


def read_scores(path: str, model: str) -> list[Score]:
  """Reads the scores of a model; answers that the judge has not scored are left out, as in the benchmark.

  Raises:
    DataError: a row is malformed; the message names it.
  """
  found = []
  for origin, fields in records.read(path):
    if records.field(origin, fields, 'model', str) == model:
      question, turn = (records.field(origin, fields, name, int) for name in ('question_id', 'turn'))
      score = records.field(origin, fields, 'score', (int, float))
      if score != UNDECIDED:
        found.append(Score(question, turn, float(score)))
  return found


class Comparison(NamedTuple):
  """The judge's comparison of two models on one turn."""

  question_id: int
  turn: int  # 1 or 2
  win: float  # 1 if the model wins in both orders, 0 if the other does, else 1/2


def read_comparisons(path: str, model: str, other: str) -> list[Comparison]:
  """Reads the comparisons of two models, whichever is first in the file; undecided ones are left out.

  Raises:
    DataError: a row is malformed; the message names it.
  """
  found = []
  for origin, fields in records.read(path):
    names = [records.field(origin, fields, name, str) for name in ('model_1', 'model_2')]
    if sorted(names) != sorted((model, other)):
      continue
    winners = [records.field(origin, fields, name, str) for name in ('g1_winner', 'g2_winner')]
    for winner in winners:
      if winner not in ('model_1', 'model_2', 'tie', 'error'):
        raise rows.DataError(origin, 'wrong_field', f'{winner!r} is not one of model_1, model_2, tie, error')
    if 'error' in winners:
      continue
    own = f'model_{1 + names.index(model)}'
    win = 0.5 if winners[0] != winners[1] or winners[0] == 'tie' else float(winners[0] == own)
    question, turn = (records.field(origin, fields, name, int) for name in ('question_id', 'turn'))
    found.append(Comparison(question, turn, win))
  return found
