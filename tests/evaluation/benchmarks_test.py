"""Files for public judges: their schemas, and what is read from verdicts."""

import json
import math

import pytest

from alignjax.data.reading import rows
from alignjax.evaluation.benchmarks import alpaca_eval, arena_hard, mt_bench


def write_lines(path, *objects):
  path.write_text(''.join(json.dumps(each) + '\n' for each in objects))
  return str(path)


def lines(path):
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def test_outputs_for_alpaca_eval(tmp_path):
  path = tmp_path / 'outputs.json'
  alpaca_eval.write(path, [alpaca_eval.Output('Say hi.', 'Hé!'), alpaca_eval.Output('Bye?', '')], 'mine')
  assert json.loads(path.read_text(encoding='utf-8')) == [
    {'instruction': 'Say hi.', 'output': 'Hé!', 'generator': 'mine', 'dataset': 'alpaca_eval'},
    {'instruction': 'Bye?', 'output': '', 'generator': 'mine', 'dataset': 'alpaca_eval'},
  ]
  assert [each.name for each in tmp_path.iterdir()] == ['outputs.json']


def test_annotations_of_alpaca_eval(tmp_path):
  path = tmp_path / 'annotations.json'
  base = {'output_1': 'reference', 'output_2': 'model', 'generator_1': 'gpt4_turbo', 'generator_2': 'mine'}
  preferences = {'a': 1.0, 'b': 2, 'c': 1.25, 'd': 0, 'e': None}
  path.write_text(json.dumps([base | {'instruction': name, 'preference': p} for name, p in preferences.items()]))
  found = alpaca_eval.read(str(path))
  assert {each.instruction: each.win for each in found} == {'a': 0.0, 'b': 1.0, 'c': 0.25, 'd': 0.5}
  assert {(each.output, each.reference) for each in found} == {('model', 'reference')}


ANSWER = """# Title
## Part
Some **bold** and __other__ text, **also this**.
- one
  * two
1. first
```
# no header
- no item
```
"""


def test_answers_for_arena_hard(tmp_path):
  path = tmp_path / 'mine.jsonl'
  answers = [arena_hard.Answer('q1', 'Explain.', ANSWER, 40), arena_hard.Answer('q2', 'Why?', 'Because.', 3)]
  arena_hard.write(path, answers, 'mine', 12.5)
  first, second = lines(path)
  assert first == {
    'uid': 'q1',
    'ans_id': first['ans_id'],
    'model': 'mine',
    'messages': [{'role': 'user', 'content': 'Explain.'}, {'role': 'assistant', 'content': {'answer': ANSWER}}],
    'tstamp': 12.5,
    'metadata': {
      'token_len': 40,
      'header_count': {'h1': 1, 'h2': 1, 'h3': 0, 'h4': 0, 'h5': 0, 'h6': 0},
      'list_count': {'ordered': 1, 'unordered': 2},
      'bold_count': {'**': 2, '__': 1},
    },
  }
  assert len(first['ans_id']) == 22
  assert first['ans_id'] != second['ans_id']


def judged(uid, *scores, category='hard_prompt'):
  return {
    'uid': uid,
    'category': category,
    'judge': 'gpt-4.1',
    'model': 'mine',
    'baseline': 'o3-mini',
    'games': [score if score is None else {'score': score, 'judgment': {}, 'prompt': []} for score in scores],
  }


def test_verdicts_of_arena_hard(tmp_path):
  """The model is B in the first game, and A in the second."""
  verdicts = [('B>A', 'A>B'), ('A>B', 'B>A'), ('A=B', 'A=B'), ('B>>A', 'B>A'), ('A<B', 'B<<A'), ('A>B', None)]
  path = write_lines(tmp_path / 'j.jsonl', *(judged(str(i), *pair) for i, pair in enumerate(verdicts)))
  found = arena_hard.read(path)
  assert [(each.win, each.weight) for each in found] == [(1, 2), (0, 2), (0.5, 2), (0.75, 4), (1, 4)]
  assert {each.category for each in found} == {'hard_prompt'}
  score = arena_hard.score(found)
  assert score.mean == pytest.approx((2 + 0 + 1 + 3 + 4) / 14)
  one = arena_hard.score(found[:1])
  assert one.mean == 1.0
  assert math.isnan(one.error)


def test_answers_for_mt_bench(tmp_path):
  path = tmp_path / 'mine.jsonl'
  mt_bench.write(path, [mt_bench.Answer(82, ('c', 'd')), mt_bench.Answer(81, ('a', 'b'))], 'mine', 3.0)
  first, second = lines(path)
  assert first == {
    'question_id': 81,
    'answer_id': first['answer_id'],
    'model_id': 'mine',
    'choices': [{'index': 0, 'turns': ['a', 'b']}],
    'tstamp': 3.0,
  }
  assert second['question_id'] == 82
  assert second['answer_id'] != first['answer_id']
  with pytest.raises(ValueError, match='question 81: expected answers to 2 turns, got 1'):
    mt_bench.write(path, [mt_bench.Answer(81, ('a',))], 'mine', 3.0)


def test_scores_of_mt_bench(tmp_path):
  base = {'judge': ['gpt-4', 'single-v1'], 'user_prompt': '', 'judgment': '', 'tstamp': 1.0}
  path = write_lines(
    tmp_path / 'gpt-4_single.jsonl',
    base | {'question_id': 81, 'model': 'mine', 'score': 7, 'turn': 1},
    base | {'question_id': 81, 'model': 'mine', 'score': 8.5, 'turn': 2},
    base | {'question_id': 82, 'model': 'mine', 'score': -1, 'turn': 1},
    base | {'question_id': 81, 'model': 'other', 'score': 2, 'turn': 1},
  )
  assert mt_bench.read_scores(path, 'mine') == [(81, 1, 7.0), (81, 2, 8.5)]


def test_comparisons_of_mt_bench(tmp_path):
  games = [('model_1', 'model_1'), ('model_2', 'model_2'), ('model_1', 'model_2'), ('tie', 'tie'), ('error', 'tie')]
  rows = [
    {'question_id': 81 + i, 'model_1': 'a', 'model_2': 'b', 'g1_winner': g1, 'g2_winner': g2, 'turn': 1}
    for i, (g1, g2) in enumerate(games)
  ]
  path = write_lines(tmp_path / 'pair.jsonl', *rows, rows[0] | {'model_2': 'c'})
  assert [each.win for each in mt_bench.read_comparisons(path, 'a', 'b')] == [1.0, 0.0, 0.5, 0.5]
  assert [each.win for each in mt_bench.read_comparisons(path, 'b', 'a')] == [0.0, 1.0, 0.5, 0.5]


def test_questions_are_read(tmp_path):
  path = tmp_path / 'alpaca_eval.json'
  path.write_text(json.dumps([{'instruction': 'Say hi.', 'output': 'Hi', 'dataset': 'koala'}]))
  assert alpaca_eval.read_instructions(str(path)) == ['Say hi.']
  path = write_lines(tmp_path / 'q.jsonl', {'uid': 'u', 'category': 'hard_prompt', 'prompt': 'Explain.'})
  assert arena_hard.read_questions(path) == [('u', 'Explain.')]
  path = write_lines(tmp_path / 'm.jsonl', {'question_id': 81, 'category': 'math', 'turns': ['a', 'b']})
  assert mt_bench.read_questions(path) == [(81, 'math', ('a', 'b'))]


@pytest.mark.parametrize(
  ('read', 'row', 'message'),
  [
    (mt_bench.read_questions, {'question_id': 1, 'category': 'math', 'turns': ['a']}, 'expected two strings'),
    (mt_bench.read_questions, {'question_id': 1, 'category': 'art', 'turns': ['a', 'b']}, "'art' is not one of wri"),
    (alpaca_eval.read, {'instruction': 'x', 'preference': 3}, 'j.jsonl:2: field preference: 3 is not between 1 and 2'),
    (
      alpaca_eval.read,
      {'instruction': 'x', 'preference': 1},
      "field 'output_1' is missing; the row has",
    ),
    (arena_hard.read, judged('u', 'A>B'), 'expected 2 games, found 1'),
    (arena_hard.read, judged('u', 'A>B', 'B'), "field score: 'B' is not one of A>>B, A>B"),
    (arena_hard.read, {'uid': 'u'}, "field 'games' is missing.*Is this the right file"),
    (lambda path: mt_bench.read_scores(path, 'm'), {'model': 3}, "field 'model' has the value 3"),
  ],
)
def test_malformed_rows_are_named(tmp_path, read, row, message):
  path = tmp_path / 'j.jsonl'
  path.write_text('\n' + json.dumps(row) + '\n')
  with pytest.raises(rows.DataError, match=message):
    read(str(path))
