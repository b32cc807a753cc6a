"""Samples responses from a language model.

  alignjax sample --model=runs/first/model --prompt='Tell me about your day.' --samples=3
  alignjax sample --model=runs/first/model --prompts=questions.jsonl --greedy --output=answers.jsonl
  alignjax sample --model=base --adapter=runs/first/adapter --prompt='Tell me about your day.'

If the model has a chat template, the text of --prompt is a user's message; otherwise the model continues it. --prompts
takes [form:]location like training data, such as hh:train.jsonl.gz. Without a form, rows are {"prompt": ...}: the model
continues a string; the chat template formats a list of messages. Each line of --output has the prompt, the response,
its log-probability in nats under the model's own distribution, its number of tokens, and whether it ended. The same
command draws the same responses.

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
from alignjax.run import fields, locations, process_flags, sampling_settings, user_code
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
  processes: process_flags.Processes = dataclasses.field(default_factory=process_flags.Processes, metadata={'flag': ''})

  def __post_init__(self):
    fields.check(self)


def _prompts(settings: Settings) -> list[rows.Prompt]:
  if settings.prompts:
    return text.read_prompts(settings.prompts, settings.ignore_fields, settings.unknown_columns)
  if tokenization.Tokenizer.load(settings.model).template is None:
    return [settings.prompt]
  return [[{'role': 'user', 'content': settings.prompt}]]


def _print(responses: Iterator[text.Response]) -> None:
  for response in responses:
    prompt = response.prompt if isinstance(response.prompt, str) else rows.messages_of(response.prompt)[-1]['content']
    length = f'{response.tokens} tokens' if response.finished else f'cut after {response.tokens} tokens'
    print(f'--- {prompt}\n{response.response}\n    [{length}, log-probability {response.logp:.2f}]')


def run(settings: Settings) -> None:
  """Draws responses, and prints or writes them.

  Raises:
    ValueError: the settings, the model or the prompts cannot be used.
  """
  if bool(settings.prompt) == bool(settings.prompts):
    raise ValueError('give either --prompt or --prompts')
  named = {'model': settings.model, 'adapter': settings.adapter}
  found = {name: locations.resolve(value, f'--{name}') for name, value in named.items() if value}
  settings = dataclasses.replace(settings, **found)
  options = sampling_settings.options(settings)
  loading = checkpoint_io.Loading(together=processes.on_all)
  if settings.adapter:
    loading = loading._replace(convert=peft.merging(settings.adapter, checkpoint_io.load_config(settings.model)))
  prompts = _prompts(settings)
  text_sampler, params = text.load(settings.model, options, settings.compute_dtype, loading)
  responses = text_sampler(params, prompts)
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
