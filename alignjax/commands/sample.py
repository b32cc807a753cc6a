"""Samples responses from a language model.

  alignjax sample --model=runs/first/model --prompt='Tell me about your day.' --samples=3
  alignjax sample --model=runs/first/model --prompts=questions.jsonl --greedy --output=answers.jsonl
  alignjax sample --model=base --adapter=runs/first/adapter --prompt='Tell me about your day.'

If the model has a chat template, the text of --prompt is a user's message; otherwise the model continues it. --prompts
takes [form:]location like training data, such as hh:train.jsonl.gz. Without a form, rows are {"prompt": ...}: the model
continues a string; the chat template formats a list of messages. Each line of --output has the prompt, the response,
its log-probability in nats under the model's own distribution, its number of tokens, and whether it ended. The same
command draws the same responses.

With --benchmark, --prompts is the file of questions of a public benchmark, and --output the file that its judge reads:

  alignjax sample --model=runs/first/model --benchmark=mt_bench --prompts=question.jsonl --output=first.jsonl

Exit codes: 0 done, 1 an error in flags, model or prompts.
"""

import collections
from collections.abc import Iterator
import dataclasses
import os
import pathlib

import jax

from alignjax import paths
from alignjax.commands import program
from alignjax.data.reading import rows
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io, peft
from alignjax.run import benchmark_answers, fields, locations, process_flags, sampling_settings, user_code
from alignjax.sampling import text
from alignjax.training import processes


@dataclasses.dataclass(frozen=True)
class Settings(sampling_settings.SamplingSettings, user_code.UserCode):
  """Model and prompts."""

  model: str = fields.field(
    '', 'Model: a folder in Hugging Face format, or a name on the Hub.', required=True, path=paths.READ
  )
  adapter: str = fields.field(
    '', 'Folder of a LoRA adapter in PEFT format to merge into the model; empty: none.', path=paths.READ
  )
  prompt: str = fields.field('', 'A single prompt.')
  prompts: str = fields.field('', 'Prompts to read, [form:]location, as for --data of training.', path=paths.READ)
  ignore_fields: tuple[str, ...] = fields.field(
    (), 'Columns of --prompts to ignore, and paths of fields within them, such as prompt[].weight.'
  )
  unknown_columns: str = fields.field(
    'refuse', 'Columns of --prompts that the form does not have: an error, or left out.', choices=('refuse', 'note')
  )
  output: str = fields.field('', 'The .jsonl file to write; empty: print the responses.', path=paths.WRITTEN)
  benchmark: str = fields.field(
    '', 'Benchmark whose questions are in --prompts; empty: none.', choices=('', *benchmark_answers.BENCHMARKS)
  )
  name: str = fields.field('', 'Name of the model in the answers to a benchmark; empty: the name of its folder.')
  processes: process_flags.Processes = dataclasses.field(default_factory=process_flags.Processes, metadata={'flag': ''})

  def __post_init__(self):
    fields.check(self)


def _prompts(settings: Settings) -> list[rows.Prompt]:
  if settings.prompts:
    sources = locations.resolve_data(settings.prompts, '--prompts')
    columns = settings.ignore_fields, settings.unknown_columns
    return [prompt for source in sources for prompt in text.read_prompts(source, *columns)]
  if tokenization.Tokenizer.load(settings.model).template is None:
    return [settings.prompt]
  return [[{'role': 'user', 'content': settings.prompt}]]


def _print(responses: Iterator[text.Response]) -> None:
  for response in responses:
    prompt = response.prompt if isinstance(response.prompt, str) else rows.messages_of(response.prompt)[-1]['content']
    length = f'{response.tokens} tokens' if response.finished else f'cut after {response.tokens} tokens'
    print(f'--- {prompt}\n{response.response}\n    [{length}, log-probability {response.logp:.2f}]')


def _check_benchmark(settings: Settings) -> None:
  """Checks the settings that a benchmark restricts."""
  if settings.name and not settings.benchmark:
    raise ValueError(f'--name={settings.name} names the model in the answers to a benchmark: give --benchmark, too')
  if not settings.benchmark:
    return
  if not settings.prompts or not settings.output or settings.samples != 1:
    raise ValueError(
      f'--benchmark={settings.benchmark} needs the questions of the benchmark (--prompts), a file for the answers '
      '(--output), and one answer to each question (--samples=1)'
    )
  chosen = (settings.strategy, settings.greedy, settings.temperature, settings.top_k, settings.top_p)
  if settings.benchmark == 'mt_bench' and chosen != ('', False, 1.0, 0, 1.0):
    raise ValueError(
      '--benchmark=mt_bench sets the temperature by the category of a question: give it without --strategy, --greedy, '
      '--temperature, --top_k and --top_p'
    )


def _answer(settings: Settings, options: text.Options, loading: checkpoint_io.Loading) -> None:
  name = settings.name or pathlib.Path(settings.adapter or settings.model).name
  task = benchmark_answers.Task(settings.prompts, pathlib.Path(settings.output), name, options)
  benchmark_answers.answer(settings.benchmark, text.load(settings.model, settings.compute_dtype, loading), task)


def run(settings: Settings) -> None:
  """Draws responses, and prints or writes them.

  Raises:
    ValueError: the settings, the model or the prompts cannot be used.
  """
  if bool(settings.prompt) == bool(settings.prompts):
    raise ValueError('give either --prompt or --prompts')
  _check_benchmark(settings)
  settings = locations.with_paths(sampling_settings.settled(settings), models=('model', 'adapter'), data=())
  options = sampling_settings.options(settings)
  loading = checkpoint_io.Loading(together=processes.on_all)
  if settings.adapter:
    loading = loading._replace(convert=peft.merging(settings.adapter, checkpoint_io.load_config(settings.model)))
  if settings.benchmark:
    _answer(settings, options, loading)
    return
  responses = text.sample(settings.model, _prompts(settings), options, settings.compute_dtype, loading)
  if jax.process_index() > 0:  # takes part in every batch
    collections.deque(responses, maxlen=0)
    return
  if not settings.output:
    _print(responses)
    return
  partial = pathlib.Path(settings.output + '.partial')
  with partial.open('w', encoding='utf-8') as stream:
    text.write(responses, stream)
  os.replace(partial, settings.output)


PROGRAM = program.Program('sample', __doc__, Settings, run, join=process_flags.join, leave=process_flags.leave)
