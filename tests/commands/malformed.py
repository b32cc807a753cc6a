"""Malformed command lines, config files, model folders and data, by kind: each must be one error."""

from collections.abc import Iterator
import itertools
import json
import os
import pathlib
import random
import shutil
from typing import NamedTuple

from tests import assets, runs
from tests.data.tokens import hostile_templates

DEEP = '{"a":' * 100_000 + '1' + '}' * 100_000
HUGE = str(10**20)
INTEGERS = (
  'batch_size', 'seed', 'steps', 'epochs', 'max_prompt', 'max_response', 'microbatches', 'chunk', 'log_every',
  'eval_every', 'save_every', 'keep', 'mesh.data', 'mesh.tensor', 'local_devices', 'num_processes', 'process_id',
)  # fmt: skip
CHOICES = ('on_error', 'base_quantization', 'schedule', 'compute_dtype', 'remat', 'attention', 'doctor', 'delta_memory')
JSON_FILES = ('config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json')


class Case(NamedTuple):
  """A command line that must fail, and a part of the error."""

  name: str
  argv: list[str]
  says: str


class Factory:
  """Makes malformed inputs in a folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.random = runs.write_folder(folder), random.Random(0)
    self._names = itertools.count()

  def train(self, *flags: str, model: str = 'model', data: str = 'train.jsonl', workdir: str = 'run') -> list[str]:
    """A command line that would train, were it not for the flags."""
    paths = {'model': model, 'data': data, 'workdir': workdir}
    given = {name: f'{self.folder}/{path}' for name, path in paths.items()}
    given |= {'steps': '1', 'batch_size': '8', 'doctor': 'off'}
    changed = {flag.partition('=')[0] for flag in flags}
    others = [f'--{name}={value}' for name, value in given.items() if f'--{name}' not in changed]
    return ['train', *others, *flags]

  def file(self, ending: str, content: str | bytes) -> str:
    path = self.folder / f'{next(self._names)}{ending}'
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)

  def model(self, name: str, content: str | bytes | None) -> str:
    """A model folder with one other file; None is a pipe."""
    folder = self.folder / f'model_{next(self._names)}'
    shutil.copytree(self.folder / 'model', folder)
    self.replace(folder / name, content)
    return folder.name

  def replace(self, path: pathlib.Path, content: str | bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is None:
      os.mkfifo(path)
    elif content == 'FOLDER':
      path.mkdir()
    else:
      path.write_bytes(content.encode() if isinstance(content, str) else content)


def numbers(make: Factory) -> Iterator[Case]:
  values = (HUGE, str(10**30), '-3', 'x', '1.5', '1' + '0' * 5000, '', '1e3', '--', '0x', '\u0663x')
  for value, name in itertools.product(values, INTEGERS):
    yield Case(f'{name}={value[:40]}', make.train(f'--{name}={value}'), name.rpartition('.')[2])


def fractions(make: Factory) -> Iterator[Case]:
  values = {'warmup': ('nan', 'inf', '-1', '1.5', 'x', ''), 'gradient_clip': ('nan', '-inf', '-1', 'x', '1,5')}
  for name, given in values.items():
    for value in given:
      yield Case(f'{name}={value}', make.train(f'--{name}={value}'), name)


def words(make: Factory) -> Iterator[Case]:
  for value, name in itertools.product(('x', '', 'None', '\u2603', 'a' * 5000), CHOICES):
    yield Case(f'{name}={value[:20]}', make.train(f'--{name}={value}'), name)


def shapes(make: Factory) -> Iterator[Case]:
  values = ('((1000000000,1000000000),)', f'(({HUGE},8),)', '((0,0),)', '((-1,3),)', '((1,),)', '((1,2)', '1')
  for value in (*values, '((1,2.5),)', '(' * 3000, '(((1,2),),)', '{}', 'x', '((True,True),)', '(("a","b"),)'):
    yield Case(f'buckets={value[:30]}', make.train(f'--buckets={value}'), 'buckets')
  yield Case('7 prompts', make.train('--batch_size=7'), 'config.batch_size = 7: must be a multiple of 8, because')
  yield Case(
    'microbatches',
    make.train('--microbatches=3'),
    '3 microbatches and each of them over 8 shards (mesh.data=1 x mesh.fsdp=8)',
  )
  yield Case('a large batch', make.train('--batch_size=16777216'), 'lower batch_size')
  for axis in ('data', 'tensor', 'fsdp'):
    yield Case(f'mesh {axis}', make.train(f'--mesh.{axis}=3'), f'{axis}=3')


def names(make: Factory) -> Iterator[Case]:
  for name in (*INTEGERS, *CHOICES, 'objective', 'optimizer', 'workdir'):
    place = make.random.randrange(2, len(name))
    wrong = name[:place] + 'q' + name[place:]
    yield Case(f'--{wrong}', make.train(f'--{wrong}=1'), wrong)
    yield Case(f'--config.{wrong}', make.train(f'--config.{wrong}=1'), 'config' if '.' in wrong else wrong)


def expressions(make: Factory) -> Iterator[Case]:
  broken = {
    'dpo(beta=0.1, beta=0.5)': "argument 'beta' more than once",
    'dpo(0.1, beta=0.5)': 'beta',
    'dpo(beta="x")': 'wrong type',
    'dpo(beta=None)': 'wrong type',
    'dpo(beta=-1)': 'beta',
    'dpo(beta=1e999)': 'too large',
    'dpo(gamma=1)': 'gamma',
    'dpo(': 'never closed',
    'dpo': 'must be called',
    '': 'empty',
    '\0': 'null bytes',
    '(' * 3000: 'not an expression',
    'dpo(' + '-' * 3000 + '1)': 'too deeply',
    'sft() + ' * 40 + '1': 'joins two objectives',
    'x' * 5000: 'at most 4000',
    '9' * 3000: 'too large',
    'dpo()[0]': 'only calls',
    'lambda: 1': 'only calls',
    'dpo(*[1])': 'does not unpack',
    'dpo(**{})': 'does not unpack',
    'dpo() ** 2': 'other operators',
    'dpo() * dpo()': 'scales an objective',
    '__import__("os")': 'unknown name',
    'dpo().apply': 'only calls',
    'ra_dpo(risk=cvar(2))': 'level',
    f'dpo(beta={HUGE * 20})': 'too large',
  }
  for text, says in broken.items():
    yield Case(f'objective {text[:30]!r}', make.train(f'--objective={text}'), says)
  optimizers = (
    'adamw()',
    'adamw(x)',
    'sgd(lr=1)',
    'chain()',
    'adamw(1, learning_rate=2)',
    'adamw(1e-6',
    'lion() +',
    '1',
  )
  for text in optimizers:
    yield Case(f'optimizer {text!r}', make.train(f'--optimizer={text}'), text[:4])
  adapters = {'lora(rank=0)': 'rank', 'lora(rank="x")': 'rank', 'lora(targets="nothing")': 'nothing', 'dpo()': 'dpo'}
  for text, says in (adapters | {'lora(rank=4, rank=8)': 'more than once'}).items():
    yield Case(f'adapter {text!r}', make.train(f'--adapter={text}'), says)


def flag_files(make: Factory) -> Iterator[Case]:
  yield Case('no flagfile', make.train('--flagfile=/nowhere'), '/nowhere: there is no such file')
  yield Case('a folder as flagfile', make.train(f'--flagfile={make.folder}'), 'is a folder')
  yield Case('a device as flagfile', make.train('--flagfile=/dev/zero'), 'is a pipe or a device')
  for content in ('--batch_size=x', '--nothing=1', 'word', '--buckets=((((', f'--steps={HUGE}', '--flagfile=/nowhere'):
    yield Case(f'flagfile {content}', make.train(f'--flagfile={make.file(".flags", content)}'), content.strip('-')[:4])


def config_files(make: Factory) -> Iterator[Case]:
  start = 'from alignjax.run import settings\ndef get_config():\n  '
  python = {
    'def get_config(:': 'line 1: SyntaxError: invalid syntax',
    '\0': 'null bytes',
    'raise RuntimeError("why")': 'line 1: RuntimeError: why',
    'def get_config():\n  return 1 / 0': 'line 2: ZeroDivisionError',
    'def get_config():\n  return get_config()': 'line 2: RecursionError',
    'import sys\nsys.exit(0)': 'line 2: SystemExit: 0',
    'x = 1': 'get_config',
    'def get_config():\n  return None': 'get_config() must return',
    'def get_config():\n  return {"steps": 1}': 'get_config() must return',
    'import nowhere_at_all': 'nowhere_at_all',
    f'{start}return settings.config_dict(batch_size=-1)': 'config.batch_size = -1: must be at least 1',
    f'{start}return settings.config_dict(batchsize=1)': 'did you mean batch_size?',
    f'{start}return settings.config_dict(batch_size="x")': "config.batch_size = 'x': must be a whole number",
    f'{start}return settings.config_dict(steps={HUGE})': 'config.steps = 1',
    f'{start}c = settings.config_dict()\n  c.nothing = 1\n  return c': 'config.nothing is not a setting',
    f'{start}c = settings.config_dict()\n  c.steps = "x"\n  return c': "'steps'",
  }
  for content, says in python.items():
    path = make.file('.py', content)
    yield Case(f'config {content[-40:]!r}', make.train(f'--config={path}'), says)
  text = {
    '[' * 50_000: 'nested too deeply',
    DEEP: 'nested too deeply',
    '': 'must contain settings by name',
    '[1]': 'must contain settings by name',
    '3': 'must contain settings by name',
    '{': 'not valid',
    '{"batch_size": -1}': 'config.batch_size = -1: must be at least 1',
    '{"batch_size": "8"}': "config.batch_size = '8': must be a whole number",
    f'{{"batch_size": {HUGE}}}': 'config.batch_size = 1',
    '{"batch_size": 1' + '0' * 5000 + '}': 'Exceeds the limit',
    '{"batch_size": true}': 'config.batch_size = True: must be a whole number',
    '{"nothing": 1}': 'config.nothing is not a setting',
    '{"mesh": 3}': 'config.mesh = 3: must be a group of settings',
    '{"mesh": {"data": "x"}}': "config.mesh.data = 'x'",
    f'{{"mesh": {{"data": {HUGE}}}}}': 'config.mesh.data = 1',
    '{"mesh": {"nothing": 1}}': 'config.mesh.nothing is not a setting',
    '{"data": 3}': 'config.data = 3: must be a list of strings',
    '{"buckets": [[1]]}': 'config.buckets = [[1]]: must be a list of pairs',
    '{"steps": null}': 'config.steps = None: must be a whole number',
    '{"steps": 1, "steps": 2}': "'steps' is given more than once",
    '1: 2': 'not valid',
    'a: &a [1]\nb: *a': 'references (*a) are not allowed',
    '!!python/object/apply:os.system ["x"]': 'could not determine a constructor',
    '\0': 'not valid',
    b'\xff\xfe': 'not valid UTF-8',
    '{"warmup": 7.5}': 'config.warmup = 7.5: must be',
    '{"remat": "x"}': "config.remat = 'x': must be",
  }
  for content, says in text.items():
    path = make.file(make.random.choice(['.json', '.yaml', '.yml']), content)
    yield Case(f'config {content[:40]!r}', make.train(f'--config={path}'), says)
  paths = {'/nowhere.py': 'no such file', '/nowhere.json': 'no such file', str(make.folder): 'must be a .yaml'}
  for path, says in paths.items():
    yield Case(f'config {path[-12:]}', make.train(f'--config={path}'), says)


def model_files(make: Factory) -> Iterator[Case]:
  contents = {'deep': DEEP, 'a list': '[1]', 'not JSON': '{"a"', 'bytes': b'\xff', 'a pipe': None, 'a folder': 'FOLDER'}
  for (what, content), name in itertools.product(contents.items(), JSON_FILES):
    yield Case(f'{name} is {what}', make.train(model=make.model(name, content)), name)
  given = json.loads((make.folder / 'model' / 'config.json').read_text())
  keys = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'model_type')
  values = (-1, 'x', [], {}, 10**30, float('nan'))
  changed = [(f'{key} = {str(value)[:9]}', {key: value}) for value in values for key in (*keys, 'rope_theta')]
  for what, change in changed:
    model = make.model('config.json', json.dumps(given | change))
    yield Case(f'config.json: {what}', make.train(model=model), 'config.json')
  for key in keys:
    model = make.model('config.json', json.dumps({name: value for name, value in given.items() if name != key}))
    yield Case(f'config.json without {key}', make.train(model=model), 'config.json')


def weights(make: Factory) -> Iterator[Case]:
  whole = (make.folder / 'model' / 'model.safetensors').read_bytes()
  size = int.from_bytes(whole[:8], 'little')
  contents = {
    'a pipe': None,
    'a folder': 'FOLDER',
    'empty': b'',
    'a short header': whole[:100],
    'cut': whole[:-8],
    'longer': whole + b'x' * 8,
    'a huge header': (2**62).to_bytes(8, 'little') + whole[8:],
    'a deep header': (100_000).to_bytes(8, 'little') + b'[' * 100_000,
    'a header that is a list': (2).to_bytes(8, 'little') + b'[]',
    'other names': whole[:8] + whole[8 : 8 + size].replace(b'q_proj', b'r_proj') + whole[8 + size :],
    'other types': whole[:8] + whole[8 : 8 + size].replace(b'F32', b'I32') + whole[8 + size :],
    'not finite': whole[: 8 + size] + b'\xff' * (len(whole) - 8 - size),
  }
  for what, content in contents.items():
    folder = make.folder / make.model('model.safetensors', content)
    yield Case(f'weights: {what}', ['sample', f'--model={folder}', '--prompt=a'], 'model.safetensors')
    other = f'--models={make.folder}/model,{folder}'
    merged = ['merge', '--method=linear()', other, f'--out={make.folder}/out']
    yield Case(f'merged weights: {what}', merged, 'model.safetensors' if what != 'other names' else 'r_proj')


def tokenizers(make: Factory) -> Iterator[Case]:
  whole = (make.folder / 'model' / 'tokenizer.json').read_bytes()
  for _ in range(8):
    content = whole[: make.random.randrange(len(whole) - 2)]
    model = make.model('tokenizer.json', content)
    yield Case(f'{len(content)} bytes of a tokenizer', make.train(model=model), 'tokenizer.json')
  contents = json.loads(whole)
  for pattern in ('(', '[', r'\p{Nothing}', '*'):
    split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
    model = make.model('tokenizer.json', json.dumps(contents | {'pre_tokenizer': split}))
    yield Case(f'the pattern {pattern}', make.train(model=model), 'tokenizer.json')
  split = {'type': 'Split', 'pattern': {'Regex': '(?:a|a|a)*$'}, 'behavior': 'Isolated', 'invert': False}
  model = make.model('tokenizer.json', json.dumps(contents | {'pre_tokenizer': split}))
  data = make.file('.jsonl', json.dumps({'prompt': 'a' * 60 + '!', 'chosen': 'b', 'rejected': 'c'}))
  yield Case('an endless pattern', make.train(f'--data={data}', model=model), 'tokenizer.json: Onig')


def templates(make: Factory) -> Iterator[Case]:
  rows = [{'prompt': [{'role': 'user', 'content': word}], 'chosen': 'good', 'rejected': 'bad'} for word in runs.WORDS]
  data = pathlib.Path(make.file('.jsonl', '\n'.join(map(json.dumps, rows)))).name
  for content, says in ((3, 'must be text'), ([3], 'name and template'), ({}, 'must be text'), (True, 'must be text')):
    model = make.model('tokenizer_config.json', json.dumps({'eos_token': assets.MESSAGE_END, 'chat_template': content}))
    yield Case(f'the template {content}', make.train(model=model), says)
  for content, says in ((b'\xff', 'byte 1 is not valid UTF-8'), (None, 'is a pipe'), ('FOLDER', 'is a folder')):
    model = make.model('chat_template.jinja', content)
    yield Case(f'the template: {says}', make.train(model=model), f'chat_template.jinja: {says}')
  for name, source in hostile_templates.TEMPLATES.items():
    model = make.model('chat_template.jinja', source)
    argv = make.train(model=model, data=data, workdir='dated')  # for the date
    yield Case(f'template: {name}', argv, 'chat_template.jinja: the chat template')


def data(make: Factory) -> Iterator[Case]:
  row = {'prompt': 'a', 'chosen': ' b', 'rejected': ' c'}
  contents = {
    '': 'the file is empty',
    '\n\n': 'the file is empty',
    DEEP: 'nested too deeply',
    '[1]': 'must be a JSON object',
    '{"prompt": "a"}': 'missing',
    '{"prompt": 1, "chosen": "b", "rejected": "c"}': 'prompt',
    b'\xff\xfe': 'byte order mark',
    b'{"prompt": "\xff"}': 'not valid UTF-8',
    b'\x1f\x8b': 'gzipped',
    json.dumps(row)[:-3]: 'incomplete JSON',
    json.dumps(row | {'nothing': 1}): 'nothing',
    json.dumps(row | {'weight': 0}): 'have weight 0',
    json.dumps(row | {'weight': -1}): 'weight',
    json.dumps(row | {'weight': 1e30})[:-1] + '0' * 30 + '0}': 'weight',
    json.dumps(row | {'rejected': ' b'}): 'identical',
  }
  for content, says in contents.items():
    name = pathlib.Path(make.file('.jsonl', content)).name
    yield Case(f'data {content[:30]!r}', make.train(data=name), says)
  endings = ('.jsonl.gz', '.json', '.parquet', '.csv', '.tsv')
  for ending, content in itertools.product(endings, (b'x', b'\x00' * 99, DEEP)):
    path = make.file(ending, content)
    yield Case(f'{ending} {content[:9]!r}', ['data', 'validate', f'--data={path}'], path)
  for ending in ('.jsonl', '.json', '.parquet', '.csv', '.jsonl.gz'):
    pipe, device = make.folder / f'pipe{ending}', make.folder / f'device{ending}'
    os.mkfifo(pipe)
    device.symlink_to('/dev/zero')
    for path in (pipe, device):
      yield Case(path.name, ['data', 'validate', f'--data={path}'], f'{path.name}: is a pipe or a device')
    (make.folder / f'folder{ending}').mkdir()
    yield Case(f'folder{ending}', ['data', 'validate', f'--data={make.folder}/folder{ending}'], 'is a folder')
  for location in ('x.txt', 'nowhere.jsonl', 'tfds:../..', 'nothing:x.jsonl', 'hf:', ''):
    yield Case(
      f'data {location}', ['data', 'validate', f'--data={location}'], location.removeprefix('tfds:') or '--data'
    )


def programs(make: Factory) -> Iterator[Case]:
  model, pairs = f'--model={make.folder}/model', f'--data={make.folder}/train.jsonl'
  lines = {
    ('sample',): '--model is missing',
    ('sample', model): 'give either --prompt or --prompts',
    ('sample', model, '--prompt=a', '--prompts=b'): 'give either --prompt or --prompts',
    ('sample', '--model=/nowhere', '--prompt=a'): '/nowhere',
    ('sample', model, '--prompt=a', f'--seed={HUGE}'): '--seed',
    ('sample', model, '--prompt=a', f'--batch_size={HUGE}'): '--batch_size',
    ('sample', model, '--prompt=a', f'--max_new_tokens={HUGE}'): '--max_new_tokens',
    ('sample', model, '--prompt=a', '--temperature=nan'): 'temperature',
    ('sample', model, '--prompt=a', '--top_p=2'): 'nucleus',
    ('sample', model, '--prompt=a', '--strategy=nothing()'): 'nothing',
    ('sample', model, '--prompt=a', '--strategy=temperature(1, temperature=2)'): 'temperature',
    ('sample', model, '--prompts=/nowhere.jsonl'): '/nowhere.jsonl',
    ('export',): '--workdir is missing',
    ('export', '--workdir=/nowhere'): '/nowhere: holds no checkpoint',
    ('merge',): '--models is missing',
    ('merge', '--method=linear()', f'--models={make.folder}/model', '--out=/proc/nowhere'): '/proc',
    ('merge', '--method=ties(density=2)', f'--models={make.folder}/model,{make.folder}/model', '--out=x'): 'density',
    ('merge', '--method=nothing()', f'--models={make.folder}/model,{make.folder}/model', '--out=x'): 'nothing',
    ('merge', '--method=linear()', '--models=/nowhere,/nowhere', '--out=x'): '/nowhere',
    ('data', 'validate'): '--data is missing',
    ('data', 'nothing'): "has no program 'nothing'",
    ('data', 'inspect', pairs): '--model is missing',
    ('data', 'inspect', pairs, '--model=/nowhere'): '/nowhere',
    ('data', 'inspect', pairs, model, f'--max_prompt={HUGE}'): '--max_prompt',
    ('data', 'inspect', pairs, model, '--max_response=1'): '--max_response',
    ('data', 'convert', pairs): '--out is missing',
    ('data', 'convert', pairs, '--out=x.txt'): 'x.txt',
    ('data', 'convert', pairs, '--out=/proc/nowhere/x.jsonl'): '/proc/nowhere',
    ('data', 'build', 'nothing', '--manual_dir=x'): 'nothing',
    ('nothing',): "has no program 'nothing'",
    ('train', 'word', 'another'): "unexpected argument 'word'",
    ('sample', model, '--prompt=a', '--import=/nowhere.py'): 'there is no such file',
    ('sample', model, '--prompt=a', '--import=nowhere.at_all'): 'nowhere',
    ('train',): 'config.workdir is missing',
    ('doctor',): 'config.model is missing',
    ('doctor', '--local_devices=100000'): '--local_devices = 100000: must be at most 1024',
    ('train', '--coordinator=x'): 'coordinator=x',
    ('train', '--num_processes=2'): 'num_processes=2',
  }
  for argv, says in lines.items():
    yield Case(' '.join(argv)[:60], list(argv), says)


KINDS = (
  numbers, fractions, words, shapes, names, expressions, flag_files, config_files, model_files, weights, tokenizers,
  templates, data, programs,
)  # fmt: skip


def generate(make: Factory, count: int) -> Iterator[Case]:
  """The first `count` cases, the same number of each kind until it has no more."""
  remaining = [kind(make) for kind in KINDS]
  while remaining and count > 0:
    for kind in list(remaining):
      case = next(kind, None)
      if case is None:
        remaining.remove(kind)
      elif count > 0:
        count -= 1
        yield case
