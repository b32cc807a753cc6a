"""Files of settings: YAML, JSON and Python, and the one message of each that cannot be read."""

import dataclasses
import json
import pathlib
import re

import pytest

from alignjax.run import config_file, settings

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = settings.Config(
  model='m', data=('a', 'b'), buckets=((64, 32),), mesh=settings.MeshConfig(tensor=2), warmup=0.0, gradient_clip=1e-3
)
START = 'from alignjax.run import settings\n\ndef get_config({}):\n  '


def load(folder: pathlib.Path, name: str, text: str, argument: str = '') -> config_file.Loaded:
  (folder / name).write_text(text)
  return config_file.load(f'{folder / name}{argument}')


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('x.json', json.dumps(dataclasses.asdict(CONFIG))),  # as a run records it
    ('x.json', json.dumps(dataclasses.asdict(CONFIG), indent='\t')),
    (
      'x.yaml',
      'model: m  # a comment\ndata: [a, b]\nbuckets: [[64, 32]]\nmesh:\n  tensor: 2\nwarmup: 0\ngradient_clip: 1e-3\n',
    ),
    ('x.yml', 'model: m\ndata: a,b\nbuckets: (64, 32)\nmesh.tensor: 2\nwarmup: 0.0\ngradient_clip: 0.001\n'),
    (
      'x.py',
      START.format('')
      + "return settings.config_dict(model='m', data='a,b', buckets=[[64, 32]], mesh={'tensor': 2}, warmup=0, "
      'gradient_clip=1e-3)',
    ),
  ],
)
def test_every_kind_of_file_gives_the_same_configuration(tmp_path, name, text):
  loaded = load(tmp_path, name, text)
  assert loaded.config == CONFIG
  assert {'model', 'data', 'mesh.tensor'} <= loaded.names


def test_a_python_file_takes_an_argument(tmp_path):
  text = START.format('name="dpo"') + "return settings.config_dict(objective=f'{name}()')"
  assert load(tmp_path, 'x.py', text).config.objective == 'dpo()'
  assert load(tmp_path, 'x.py', text, ':ipo').config.objective == 'ipo()'
  assert load(tmp_path, 'x.py', text, ':a:b').config.objective == 'a:b()'


def test_the_shipped_file_of_defaults_has_the_defaults():
  assert config_file.load(str(ROOT / 'experiments' / 'configs' / 'dpo.py')).config == settings.Config()


@pytest.mark.parametrize('empty', ['eval_data:', 'eval_data: null', 'eval_data: ""', 'eval_data: []', 'eval_data: ~'])
def test_an_empty_value_is_an_empty_setting(tmp_path, empty):
  assert load(tmp_path, 'x.yaml', f'model: m\n{empty}\n').config == settings.Config(model='m')


@pytest.mark.parametrize(
  ('line', 'name', 'value'),
  [
    ('token_cache: off', 'token_cache', 'off'),  # false in YAML 1.1
    ('doctor: off', 'doctor', 'off'),
    ('model: no', 'model', 'no'),
    ('accept_data: 2026-01-31', 'accept_data', '2026-01-31'),
    ('warmup: 1e-2', 'warmup', 0.01),  # text in YAML 1.1
    ('seed: 010', 'seed', 10),  # 8 in YAML 1.1
    ('scan_layers: false', 'scan_layers', False),
  ],
)
def test_words_and_numbers_of_yaml_are_what_they_look_like(tmp_path, line, name, value):
  found = getattr(load(tmp_path, 'x.yaml', line).config, name)
  assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('x.yaml', 'model: m\nbatchsize: 3\n', 'line 2: config.batchsize is not a setting; did you mean batch_size?'),
    ('x.yaml', 'mesh:\n  data: 1\n  fsdb: 2\n', 'line 3: config.mesh.fsdb is not a setting; did you mean mesh.fsdp?'),
    (
      'x.yaml',
      'model: m\nlearning_rate: 1e-5\n',
      'line 2: config.learning_rate is not a setting: the learning rate',
    ),
    ('x.yaml', 'model: m\nbatch_size: "8"\n', "line 2: config.batch_size = '8': must be a whole number"),
    ('x.yaml', 'model: m\n\nremat: x\n', "line 3: config.remat = 'x': must be none or dots or full"),
    ('x.yaml', 'steps: 3\nepochs: 1\n', 'config.epochs = 1: must be 0 if steps=3 is given'),
    ('x.yaml', 'model: m\n data: d\n', 'line 2: not valid YAML: mapping values are not allowed here'),
    ('x.yaml', 'model: m\n\tdata: d\n', "line 2: not valid YAML: found character '\\t' that cannot start any token"),
    ('x.yaml', 'model: m\ndata: [a\n', 'line 3: not valid YAML: expected'),
    ('x.yaml', 'model: m\nmodel: n\n', "line 2: not valid YAML: 'model' is given more than once"),
    ('x.yaml', '1: 2\n', 'line 1: not valid YAML: names of settings must be text'),
    ('x.yaml', 'model: m\0\n', 'line 1: not valid YAML: special characters are not allowed'),
    ('x.yaml', '- model\n', 'must contain settings by name, such as batch_size: 32'),
    ('x.yaml', '# nothing\n', 'the file is empty'),
    (
      'x.json',
      '{\n"model": "m",\n"batchsize": 3}',
      'line 3: config.batchsize is not a setting; did you mean batch_size?',
    ),
    ('x.json', '{\n"model": "m"\n"data": 1}', "line 3: not valid JSON: Expecting ',' delimiter (column 1)"),
    ('x.json', '{"steps": 1, "steps": 2}', "'steps' is given more than once"),
    ('x.py', 'def get_config(:\n', 'line 1: SyntaxError: invalid syntax'),
    ('x.py', 'x = 1\n', 'defines no function get_config()'),
    ('x.py', 'import nothing_of_this_name\n', "line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ('x.py', 'def get_config():\n  raise ValueError("my own")\n', 'line 2: my own'),
    ('x.py', 'def get_config():\n  return {}\n', 'get_config() must return settings.config_dict(...), not dict'),
    ('x.py', 'def get_config(name):\n  return {}\n', 'get_config() needs an argument: give --config='),
    (
      'x.py',
      START.format('') + 'return settings.config_dict(steps=-1)',
      'line 4: config.steps = -1: must be at least 0',
    ),
    ('x.py', START.format('') + 'c = settings.config_dict()\n  c.steps = "x"\n  return c', 'line 5: '),
    ('x.txt', 'model: m', 'must be a .yaml, .json or .py file'),
  ],
)
def test_a_file_with_an_error_is_one_message_with_its_name_and_line(tmp_path, name, text, message):
  with pytest.raises(ValueError, match=re.escape(f'--config={tmp_path / name}: {message}')) as caught:
    load(tmp_path, name, text)
  assert 'Traceback' not in str(caught.value)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
  (tmp_path / 'x.yaml').mkdir()
  for name, message in (('x.yaml', 'is a folder, not a file'), ('y.yaml', 'there is no such file')):
    with pytest.raises(ValueError, match=re.escape(f'--config={tmp_path / name}: {message}')):
      config_file.load(str(tmp_path / name))


def test_an_argument_that_is_not_taken_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'get_config\(\) takes no argument: give --config=.*x\.py$'):
    load(tmp_path, 'x.py', START.format('') + 'return settings.config_dict()', ':ra2')
