"""A model's answers to the questions of public benchmarks, in the files that their judges read."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import time
from typing import NamedTuple

import jax

from alignjax.data.reading import rows
from alignjax.evaluation.benchmarks import alpaca_eval, arena_hard, mt_bench
from alignjax.sampling import strategies, text


class Task(NamedTuple):
  """What is answered, and where to."""

  questions: str  # the benchmark's file of questions
  path: pathlib.Path  # the file to write, by process 0
  name: str  # of the model, in the file
  options: text.Options  # one response to each question


def _asked(question: str) -> list[rows.Message]:
  return [{'role': 'user', 'content': question}]


def _alpaca_eval(model: text.Loaded, task: Task) -> None:
  instructions = alpaca_eval.read_instructions(task.questions)
  drawn = model.sample(map(_asked, instructions), task.options)
  outputs = [
    alpaca_eval.Output(instruction, response.response)
    for instruction, response in zip(instructions, drawn, strict=True)
  ]
  if jax.process_index() == 0:
    alpaca_eval.write(task.path, outputs, task.name)


def _arena_hard(model: text.Loaded, task: Task) -> None:
  questions = arena_hard.read_questions(task.questions)
  drawn = model.sample((_asked(prompt) for _, prompt in questions), task.options)
  answers = [
    arena_hard.Answer(uid, prompt, response.response, response.tokens)
    for (uid, prompt), response in zip(questions, drawn, strict=True)
  ]
  if jax.process_index() == 0:
    arena_hard.write(task.path, answers, task.name, time.time())


def _mt_bench(model: text.Loaded, task: Task) -> None:
  """Two turns; the second prompt contains the first answer. The category of a question determines the temperature."""
  answers = []
  questions = mt_bench.read_questions(task.questions)
  for temperature in sorted({mt_bench.TEMPERATURES[question.category] for question in questions}):
    chosen = [question for question in questions if mt_bench.TEMPERATURES[question.category] == temperature]
    strategy = strategies.temperature(temperature) if temperature else strategies.greedy()
    options = dataclasses.replace(task.options, strategy=strategy)
    prompts = [_asked(question.turns[0]) for question in chosen]
    first = [response.response for response in model.sample(prompts, options)]
    prompts = [
      [*prompt, {'role': 'assistant', 'content': answer}, *_asked(question.turns[1])]
      for prompt, answer, question in zip(prompts, first, chosen, strict=True)
    ]
    second = [response.response for response in model.sample(prompts, options)]
    answers += map(mt_bench.Answer, (question.question_id for question in chosen), zip(first, second, strict=True))
  if jax.process_index() == 0:
    mt_bench.write(task.path, answers, task.name, time.time())


BENCHMARKS: Mapping[str, Callable[[text.Loaded, Task], None]] = {
  'alpaca_eval': _alpaca_eval,
  'arena_hard': _arena_hard,
  'mt_bench': _mt_bench,
}


def answer(benchmark: str, model: text.Loaded, task: Task) -> None:
  """Answers the questions of a benchmark. All processes call it together.

  Args:
    benchmark: a name in `BENCHMARKS`.
    model: the model, which has a chat template.
    task: the questions, and how they are answered.

  Raises:
    ValueError: the model has no chat template, or the questions are not those of the benchmark.
  """
  if model.tokenizer.template is None:
    raise ValueError(f'--benchmark={benchmark}: the model has no chat template, and the benchmark asks a chat model')
  BENCHMARKS[benchmark](model, task)
