"""Every `alignjax` command of the README and the pages, run in order, in a folder that has what it names."""

import gzip
import json
import pathlib
import re
import shlex
import shutil

import pytest

from alignjax.commands import main, program
from alignjax.data.reading import sources
from tests import assets, runs
from tests.data import variants
from tests.docs import texts

NOT_RUN = {  # commands by their beginnings, and why
  'alignjax download smollm2': 'commands/download_test.py does it, with a file of 270 MB',
  'alignjax data build': 'tests/data/builders does it, with files that their owners publish',
  'alignjax train --model=Qwen/Qwen2.5-0.5B-Instruct --data=binarised:trl-lib': 'reads a dataset of the Hub',
  'alignjax merge --adapter=path/to/adapter': 'commands/merge_command_test.py merges adapters',
}
MODELS = ('--model', '--models', '--base', '--base_model', '--reference')
DATA = ('--data', '--eval_data')
THINKING = "{% if enable_thinking is defined and not enable_thinking %}{{ '' }}{% endif %}"
PAGES = sorted(
  {block.page for block in texts.blocks('sh') for command in texts.commands(block) if command[0] == 'alignjax'}
)


def write_model(folder):
  """A tiny model whose chat template reads the variable that one command sets."""
  assets.write_tiny_model(folder, seed=len(str(folder)), layers=1, vocab_size=384, max_positions=1024)
  path = folder / 'tokenizer_config.json'
  variants.edit_json(path, chat_template=THINKING + json.loads(path.read_text())['chat_template'])


def write_rows(path, form):
  """Data of a form, or prompts."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if form == 'preference':
    runs.write_pairs(path, 48, seed=len(path.name))
    return
  rows = {
    'conversation': lambda i: {
      'messages': [{'role': 'user', 'content': f'Film {i}?'}, {'role': 'assistant', 'content': 'A warm story.'}]
    },
    'hh': lambda i: {
      'chosen': f'\n\nHuman: Film {i}?\n\nAssistant: A warm story.',
      'rejected': f'\n\nHuman: Film {i}?\n\nAssistant: Dull.',
    },
    'mt_bench': lambda i: {'question_id': i, 'category': 'writing', 'turns': [f'Film {i}?', 'Why?']},
    'prompts': lambda i: {'prompt': f'Film {i} is'},
  }[form]
  text = ''.join(json.dumps(rows(i)) + '\n' for i in range(12)).encode()
  path.write_bytes(gzip.compress(text) if path.suffix == '.gz' else text)


def provide(command, trained):
  """Writes what a command names and earlier commands have not made."""
  benchmark = re.search(r'--benchmark=(\w+)', ' '.join(command))
  for word in command[2:]:
    flag, _, value = word.partition('=')
    if flag in MODELS:
      for place in map(pathlib.Path, value.split(',')):
        if not place.exists():
          write_model(place)
    elif flag in DATA or (flag == '--prompts' and not benchmark):
      found = sources.parse_expression(value, 'preference' if flag in DATA else 'prompts')
      if not pathlib.Path(found.location).exists():
        write_rows(pathlib.Path(found.location), found.form)
    elif flag == '--prompts':
      write_rows(pathlib.Path(value), benchmark[1])
    elif flag == '--import':
      (block,) = (each for each in texts.blocks('python') if each.text.startswith(f'# {value}\n'))
      pathlib.Path(value).write_text(block.text)
    elif not flag.startswith('-') and command[1] in ('compare', 'report'):
      for place in map(pathlib.Path, word.split(',')):
        if not place.exists():
          shutil.copytree(trained, place)


@pytest.fixture(name='trained', scope='module')
def train_once(tmp_path_factory):
  """The folder of a finished run."""
  folder = tmp_path_factory.mktemp('trained')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    provide(['alignjax', 'train', '--model=model', '--data=pairs.jsonl'], folder)
    arguments = ['--model=model', '--data=pairs.jsonl', '--steps=2', '--batch_size=8', '--doctor=off']
    assert program.execute(main.PROGRAM, ['alignjax', 'train', *arguments, '--workdir=run']) == 0
  return folder / 'run'


@pytest.mark.slow  # blocks_test.py parses every command
@pytest.mark.parametrize('page', PAGES)
def test_the_commands_of_a_page_succeed(page, trained, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  count = 0
  for block in texts.blocks('sh'):
    for command in texts.commands(block) if block.page == page and block.reason is None else ():
      text = ' '.join(command)
      if command[0] != 'alignjax' or any(text.startswith(beginning) for beginning in NOT_RUN):
        continue
      provide(command, trained)
      code = program.execute(main.PROGRAM, command)
      assert code == 0, f'{block.id}: {shlex.join(command)}\n{capsys.readouterr().err}'
      count += 1
  assert count or page == 'docs/from_trl.md'


def test_reasons_belong_to_commands():
  written = [' '.join(command) for block in texts.blocks('sh') for command in texts.commands(block)]
  for beginning in NOT_RUN:
    assert any(text.startswith(beginning) for text in written), beginning
