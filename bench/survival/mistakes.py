"""Makes typical mistakes on the command line: each must be one error that names what is wrong, and no traceback.

  python -m bench.survival.mistakes --count=461

The commands and what their errors must name are in mistake_cases.py. They run in this process. Every command is printed
with its exit code and its message, so that a person can judge whether the message helps.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import shlex
import shutil
from typing import NamedTuple

from alignjax.commands import main, program
from alignjax.run import training
from bench.survival import campaign, mistake_cases
from tests import assets, runs

ROW = {'prompt': 'a', 'chosen': ' b', 'rejected': ' c'}
MESSAGES = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
GET_CONFIG = 'from alignjax.run import settings\n\ndef get_config({}):\n  '
FILES: dict[str, str | bytes] = {
  'good.yaml': 'steps: 1\n',
  'good.json': '{"steps": 1}',
  'notes.txt': 'some text\n',
  'run.toml': 'steps = 1\n',
  'empty.yaml': '',
  'list.yaml': '- model\n- data\n',
  'tab.yaml': 'mesh:\n\tdata: 1\n',
  'indent.yaml': 'model: model\n  data: train.jsonl\n',
  'open.yaml': 'data: [train.jsonl\n',
  'twice.yaml': 'model: model\nmodel: other\n',
  'bytes.yaml': b'model: \xff\n',
  'typo.yaml': 'model: model\nbatchsize: 8\n',
  'group.yaml': 'mesh:\n  data: 1\n  fsdb: 2\n',
  'flat.yaml': 'mesh: 3\n',
  'trl.yaml': 'learning_rate: 1e-5\nper_device_train_batch_size: 4\n',
  'axolotl.yaml': 'base_model_config: model\nsequence_len: 2048\n',
  'type.yaml': 'batch_size: eight\n',
  'quoted.yaml': 'steps: "8"\n',
  'range.yaml': 'batch_size: -1\n',
  'choice.yaml': 'remat: ful\n',
  'number.yaml': 'objective: 3\n',
  'comma.json': '{\n  "model": "model",\n}\n',
  'quotes.json': "{'model': 'model'}\n",
  'cut.json': '{\n  "model": "model"',
  'typo.json': '{\n  "batchsize": 8\n}\n',
  'syntax.py': 'def get_config(:\n',
  'import.py': 'import nothing_here\n',
  'none.py': 'def get_config():\n  pass\n',
  'function.py': 'config = {}\n',
  'error.py': 'def get_config():\n  return {}["ra2"]\n',
  'argument.py': GET_CONFIG.format('name') + 'return settings.config_dict()\n',
  'plain.py': GET_CONFIG.format('') + 'return settings.config_dict()\n',
  'typo.py': GET_CONFIG.format('') + 'return settings.config_dict(batchsize=8)\n',
  'empty.jsonl': '',
  'bytes.jsonl': b'{"prompt": "\xff"}\n',
  'cut.jsonl': json.dumps(ROW) + '\n' + json.dumps(ROW)[:-4],
  'array.jsonl': '[1, 2]\n',
  'type.jsonl': json.dumps(ROW | {'chosen': 3}) + '\n',
  'null.jsonl': json.dumps(ROW | {'rejected': None}) + '\n',
  'missing.jsonl': json.dumps({'prompt': 'a', 'chosen': 'b'}) + '\n',
  'same.jsonl': json.dumps(ROW | {'rejected': ' b'}) + '\n',
  'columns.jsonl': json.dumps(ROW | {'idd': 7}) + '\n',
  'orca.jsonl': json.dumps({'question': 'a', 'chosen': 'b', 'rejected': 'c'}) + '\n',
  'hh.jsonl': json.dumps({'chosen': '\n\nHuman: a\n\nAssistant: b', 'rejected': '\n\nHuman: a\n\nAssistant: c'}) + '\n',
  'alpaca.jsonl': json.dumps({'instruction': 'a', 'input': '', 'output': 'b'}) + '\n',
  'chat.jsonl': json.dumps({'messages': MESSAGES}) + '\n',
  'unpaired.jsonl': json.dumps({'prompt': 'a', 'completion': 'b', 'label': True}) + '\n',
  'fake.jsonl.gz': 'text\n',
  'fake.parquet': 'text\n',
  'short.csv': 'prompt,chosen,rejected\na,b\n',
}


def write_files(folder: pathlib.Path) -> None:
  """Writes the files in which the mistakes are made: those in FILES, a model, and damaged copies of it."""
  runs.write_folder(folder)
  for name, content in FILES.items():
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
  for name in ('folder', 'folder.yaml', 'folder.jsonl'):
    (folder / name).mkdir()
  runs.write_pairs(folder / 'other.jsonl', 61, seed=5)
  config = json.loads((folder / 'model' / 'config.json').read_text(encoding='utf-8'))
  weights = (folder / 'model' / 'model.safetensors').read_bytes()
  damages: dict[str, tuple[str, bytes | None]] = {
    'no_config': ('config.json', None),
    'no_weights': ('model.safetensors', None),
    'no_tokenizer': ('tokenizer.json', None),
    'bad_config': ('config.json', b'{"hidden_size": '),
    'bad_tokenizer': ('tokenizer.json', b'{}'),
    'bad_template': ('chat_template.jinja', b'{% for message in messages %}'),
    'other_family': ('config.json', json.dumps(config | {'model_type': 'bert'}).encode()),
    'cut_weights': ('model.safetensors', weights[:-8]),
    'missing_tensor': ('model.safetensors', weights.replace(b'q_proj', b'z_proj')),
    'wrong_shape': ('config.json', json.dumps(config | {'hidden_size': 2 * config['hidden_size']}).encode()),
  }
  for name, (file, content) in damages.items():
    shutil.copytree(folder / 'model', folder / name)
    if content is None:
      (folder / name / file).unlink()
    else:
      (folder / name / file).write_bytes(content)


def train(folder: pathlib.Path) -> None:
  """Trains a run in done/, and writes damaged records of it to done_damaged/ and done_older/."""
  config = runs.make_config(folder, 'done', steps=2, save_every=1, eval_data=())
  training.train(dataclasses.replace(config, model='model', data=('train.jsonl',)))
  assets.write_tiny_model(folder / 'other_model', seed=1, layers=1, vocab_size=384)
  record = (folder / 'done' / 'config.json').read_text(encoding='utf-8')
  for name, content in {'done_damaged': record[:-9], 'done_older': '{"old_setting": 1}'}.items():
    (folder / name).mkdir()
    (folder / name / 'config.json').write_text(content, encoding='utf-8')


class Outcome(NamedTuple):
  """What a command does."""

  code: int | None  # None: it raises an exception
  message: str

  def faults(self, names: str) -> list[str]:
    """What is wrong with the outcome of a mistake.

    Args:
      names: a regular expression for what the message must name.
    """
    lines = self.message.splitlines()
    wrong = {
      'exit code': self.code in (0, None),
      'traceback': 'Traceback' in self.message,
      'errors': sum(line.startswith('error: ') for line in lines) != 1,
      'names nothing': re.search(names, self.message, re.DOTALL) is None,
    }
    return [fault for fault, found in wrong.items() if found]


def arguments(command: str) -> list[str]:
  """The arguments of a command in mistake_cases.py. Its flags override those of TRAIN."""
  first, *rest = shlex.split(command)
  if first != mistake_cases.TRAIN:
    return [first, *rest]
  given = {argument.partition('=')[0] for argument in rest}
  return [
    'train',
    *(f'--{name}={value}' for name, value in mistake_cases.FLAGS.items() if f'--{name}' not in given),
    *rest,
  ]


def attempt(command: str) -> Outcome:
  """Runs a command in this process and folder."""
  errors = io.StringIO()
  with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
    try:
      code = program.execute(main.PROGRAM, ['alignjax', *arguments(command)])
    except BaseException as error:
      return Outcome(None, f'{errors.getvalue()}{type(error).__name__}: {error}')
  return Outcome(code, errors.getvalue())


def cases() -> Iterator[tuple[str, str, str]]:
  """The kind, the command, and what its error must name."""
  for kind, commands in mistake_cases.KINDS.items():
    for command, names in commands.items():
      yield kind, command, names


def run(results: campaign.Results, count: int, seed: int) -> None:
  """Makes the mistakes in order, until the results hold so many."""
  del seed
  os.environ['HF_HUB_OFFLINE'] = '1'  # before huggingface_hub is imported
  made = {record['command'] for record in results.records}
  with campaign.workspace() as folder, contextlib.chdir(folder):
    write_files(folder)
    train(folder)
    for kind, command, names in cases():
      if len(results.records) >= count:
        break
      if command in made:
        continue
      outcome = attempt(command)
      record = {'kind': kind, 'command': command, 'code': outcome.code, 'message': outcome.message.strip()}
      results.add(record | {'faults': outcome.faults(names)})


def report(results: campaign.Results) -> int:
  """Prints every command with its message, and a table; returns how many mistakes are not refused as they should be."""
  for record in results.records:
    line = shlex.join(['alignjax', *arguments(record['command'])])
    faults = f'  <- {", ".join(record["faults"])}' if record['faults'] else ''
    print(f'$ {line}\n[{record["code"]}] {record["message"]}{faults}\n')
  rows = []
  for kind in mistake_cases.KINDS:
    made = results.of(kind=kind)
    rows.append([kind, len(made), len(made) - sum(bool(record['faults']) for record in made)])
  print(campaign.table(['mistakes', 'made', 'refused in one error that names them'], rows))
  return sum(bool(record['faults']) for record in results.records)


if __name__ == '__main__':
  campaign.main('mistakes', __doc__, run, report)
