"""What unknown settings are answered with."""

import re

import pytest

from alignjax import objectives
from alignjax.commands import data, export, merge, sample
from alignjax.data.reading import sources
from alignjax.optim import recipes, schedules
from alignjax.run import adapters, command_line, fields, hints, merge_folders

PROGRAMS = {
  'train': command_line.Invocation,
  'sample': sample.Settings,
  'merge': merge.Settings,
  'export': export.Settings,
  'data inspect': data.InspectSettings,
}


def flags_of(program: str) -> list[str]:
  return [leaf.flag for leaf in fields.leaves(PROGRAMS[program])]


@pytest.mark.parametrize(
  ('program', 'name', 'expected'),
  [
    ('train', 'per_device_train_batch_size', '--batch_size=32'),
    ('train', 'per-device-train-batch-size', '--batch_size=32'),
    ('train', 'micro_batch_size', '--batch_size=32'),
    ('train', 'learning_rate', "--optimizer='adamw(1e-6)'"),
    ('train', 'num_train_epochs', '--epochs=1'),
    ('train', 'num_epochs', '--epochs=1'),
    ('train', 'max_length', '--max_prompt=512 and --max_response=512'),
    ('train', 'cutoff_len', '--max_prompt=512 and --max_response=512'),
    ('train', 'wandb', '--trackers=wandb'),
    ('train', 'report_to', '--trackers=wandb'),
    ('train', 'output_dir', '--workdir=runs/first'),
    ('train', 'gradient_accumulation_steps', '--microbatches=4'),
    ('train', 'bf16', '--compute_dtype=bfloat16'),
    ('train', 'random_seed', '--seed=0'),
    ('train', 'lora_r', "--adapter='lora(rank=16, alpha=32)'"),
    ('train', 'load_in_4bit', '--base_quantization=nf4'),
    ('train', 'resume_from_checkpoint', '--workdir=runs/first alone'),
    ('train', 'model_name_or_path', '--model=Qwen/Qwen2.5-0.5B'),
    ('train', 'dataset_name', '--data=pairs.jsonl'),
    ('train', 'beta', "--objective='dpo(beta=0.1)'"),
    ('train', 'deepspeed', '--mesh.fsdp'),
    ('sample', 'output_dir', '--output=answers.jsonl'),
    ('sample', 'max_length', '--max_new_tokens=128'),
    ('sample', 'num_return_sequences', '--samples=3'),
    ('sample', 'dataset', '--prompts=questions.jsonl'),
    ('merge', 'merge_method', "--method='ties(density=0.5)'"),
    ('merge', 'output_dir', '--out=merged'),
    ('export', 'output_dir', '--workdir=runs/first'),
    ('data inspect', 'max_prompt_length', '--max_prompt=512'),
  ],
)
def test_names_of_other_trainers_are_answered_with_the_flag_to_use(program, name, expected):
  hint = hints.hint(name, flags_of(program), prefix='--')
  assert hint.startswith(': ')
  assert expected in hint


def test_there_are_hints_for_what_others_use_most_and_none_for_own_flags():
  assert len(hints.HINTS) > 150
  own = {flag for kind in PROGRAMS.values() for leaf in fields.leaves(kind) for flag in (leaf.flag,)}
  assert not set(hints.HINTS) & set(flags_of('train'))
  for texts in hints.HINTS.values():
    for text in texts:
      mentioned = re.findall(r'--([a-z][\w.]*)', text.partition('alignjax ')[0])
      assert set(mentioned) <= own, text


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('batchsize', '; did you mean --batch_size?'),
    ('batch-size', '; did you mean --batch_size?'),
    ('Batch_Size', '; did you mean --batch_size?'),
    ('objectiv', '; did you mean --objective?'),
    ('imports', '; did you mean --import?'),
    ('mesh.tensors', '; did you mean --mesh.tensor?'),
    ('zzzz', '; --help lists the settings'),
  ],
)
def test_other_names_are_answered_with_the_nearest_flag(name, hint):
  assert hints.hint(name, flags_of('train'), prefix='--') == hint


def test_a_hint_names_only_flags_that_the_program_has():
  assert hints.hint('learning_rate', flags_of('merge'), prefix='--') == '; --help lists the settings'


def test_the_expressions_in_hints_are_valid():
  parsers = {
    'optimizer': recipes.parse_optimizer,
    'objective': objectives.parse,
    'adapter': adapters.parse_adapter,
    'method': merge_folders.parse_method,
    'data': sources.parse_expression,
    'schedule': schedules.parse_shape,
  }
  texts = ' '.join(text for texts in hints.HINTS.values() for text in texts)
  found = re.findall(r"--(\w+)=(?:'([^']*)'|(\S+?)(?=,? |;|$))", texts)
  given = {(name, quoted or plain) for name, quoted, plain in found if name in parsers}
  folders = {('adapter', 'adapter')}  # of `alignjax sample`
  used = {name for name, text in given - folders if parsers[name](text)}
  assert used == parsers.keys()
