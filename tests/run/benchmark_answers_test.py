"""Answers to benchmarks, by a model that repeats what it is asked."""

import json
import types

import jax.numpy as jnp
import pytest

from alignjax.run import benchmark_answers
from alignjax.sampling import strategies, text

QUESTIONS = [
  {'question_id': 82, 'category': 'writing', 'turns': ['Write.', 'Shorter?']},
  {'question_id': 81, 'category': 'coding', 'turns': ['Code.', 'Faster?']},
  {'question_id': 83, 'category': 'stem', 'turns': ['Why?', 'So?']},
]


class Parrot:
  """Answers with the contents of the prompt, and with the distribution that it draws from if logits are 0 and 1."""

  tokenizer = types.SimpleNamespace(template='{{ messages }}')

  def sample(self, prompts, options):
    for prompt in prompts:
      drawn_from = options.strategy(jnp.array([0.0, 1.0])).tolist()
      said = ' '.join(message['content'] for message in prompt)
      assert [message['role'] for message in prompt] == ['user', 'assistant', 'user'][: len(prompt)]
      yield text.Response(prompt, f'{said} {drawn_from[1] - drawn_from[0]:.2f}', 0.0, 0.0, 3, True)


def test_mt_bench_has_two_turns_and_the_temperature_of_the_category(tmp_path):
  source, output = tmp_path / 'q.jsonl', tmp_path / 'a.jsonl'
  source.write_text(''.join(json.dumps(question) + '\n' for question in QUESTIONS))
  task = benchmark_answers.Task(str(source), output, 'mine', text.Options(strategy=strategies.top_k(1)))
  benchmark_answers.answer('mt_bench', Parrot(), task)
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert {row['question_id']: row['choices'][0]['turns'] for row in rows} == {
    81: ['Code. inf', 'Code. Code. inf Faster? inf'],
    82: ['Write. 1.43', 'Write. Write. 1.43 Shorter? 1.43'],
    83: ['Why? 10.00', 'Why? Why? 10.00 So? 10.00'],
  }


def test_a_model_without_a_chat_template_is_refused(tmp_path):
  model = types.SimpleNamespace(tokenizer=types.SimpleNamespace(template=None))
  task = benchmark_answers.Task('q.jsonl', tmp_path / 'a.jsonl', 'mine', text.Options())
  with pytest.raises(ValueError, match='--benchmark=arena_hard: the model has no chat template'):
    benchmark_answers.answer('arena_hard', model, task)
