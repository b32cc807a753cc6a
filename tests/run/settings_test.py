"""Every field of the configuration is read, checked, and has a say in what resuming means."""

import ast
import dataclasses
import json
import pathlib

from absl import flags
from ml_collections import config_flags
import pytest

from alignjax.run import settings

ROOT = pathlib.Path(__file__).parents[2]


def field_names() -> list[str]:
  fields = dataclasses.fields(settings.Config)
  mesh = [f'mesh.{field.name}' for field in dataclasses.fields(settings.MeshConfig)]
  return [field.name for field in fields if field.name != 'mesh'] + mesh


def attributes_read(source: str) -> set[str]:
  """What is read as `config.<name>`, `self._config.<name>` or `config.mesh.<name>`."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ('config', 'self._config'):
      found.add(node.attr)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == 'mesh':
      found.add(f'mesh.{node.attr}')
  return found


@pytest.mark.parametrize('name', field_names())
def test_every_field_is_read_by_the_trainer(name):
  files = ('commands/train.py', 'run/inputs.py', 'run/preparation.py', 'run/adapters.py')
  assert any(name in attributes_read((ROOT / 'alignjax' / file).read_text(encoding='utf-8')) for file in files)


@pytest.mark.parametrize('name', field_names())
def test_every_field_is_documented_and_has_one_meaning_on_resume(name):
  assert settings.on_resume()[name] in (settings.IDENTITY, settings.WARNS, settings.FREE)
  assert f'--config.{name} ' in settings.describe_fields()
  assert name in settings.flat(settings.Config())


def test_nothing_else_has_a_meaning_on_resume():
  assert sorted(settings.on_resume()) == sorted(field_names()) == sorted(settings.flat(settings.Config()))


@pytest.mark.parametrize('name', ['seed', 'objective', 'batch_size', 'max_prompt', 'max_response', 'buckets'])
def test_what_makes_another_training_is_part_of_the_identity(name):
  assert settings.on_resume()[name] == settings.IDENTITY


@pytest.mark.parametrize('name', ['steps', 'log_every', 'save_every', 'workdir'])
def test_what_only_makes_a_run_longer_or_louder_may_change(name):
  assert settings.on_resume()[name] != settings.IDENTITY


# ml_collections loads the file in a way that Python has deprecated.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize(
  'file', sorted((ROOT / 'experiments' / 'configs').glob('[!_]*.py')), ids=lambda file: file.name
)
def test_config_files_load_and_flags_change_them(file, monkeypatch):
  arguments = [
    'train',
    f'--config={file}',
    '--config.batch_size=16',
    '--config.mesh.tensor=2',
    '--config.warmup=0',
    '--config.optimizer=chain(sgd(1), weight_decay(0.1))',
    '--config.buckets=((64, 32), (128, 64))',
    '--config.data=("a.jsonl", "b.jsonl")',
    '--config.scan_layers=false',
  ]
  monkeypatch.setattr('sys.argv', arguments)  # where config_flags looks for the fields to define
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file('config', flag_values=values)
  values(arguments)
  config = settings.from_dict(holder.value.to_dict())
  assert (config.batch_size, config.mesh.tensor, config.mesh.fsdp) == (16, 2, -1)
  assert isinstance(config.warmup, float)
  assert config.optimizer == 'chain(sgd(1), weight_decay(0.1))'
  assert config.buckets == ((64, 32), (128, 64))
  assert config.data == ('a.jsonl', 'b.jsonl')
  assert config.scan_layers is False


def test_json_of_a_run_gives_its_config_back():
  config = settings.Config(model='m', data=('a',), buckets=((64, 32),), mesh=settings.MeshConfig(tensor=2))
  assert settings.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'batchsize': 8}, r'config\.batchsize is no field of a training run; did you mean batch_size\? Known: model, '),
    ({'mesh': {'fsdb': 8}}, r'config\.mesh\.fsdb is no field .* did you mean mesh\.fsdp\?'),
    ({'zzz': 8}, r'config\.zzz is no field of a training run\. Known: '),
    ({'batch_size': 0}, r'config\.batch_size = 0: must be at least 1'),
    ({'batch_size': 2.0}, r'config\.batch_size = 2\.0: must be of type int'),
    ({'batch_size': True}, r'config\.batch_size = True: must be of type int'),
    ({'gradient_clip': '1'}, r"config\.gradient_clip = '1': must be of type float"),
    ({'gradient_clip': float('nan')}, r'config\.gradient_clip = nan: must be at least 0'),
    ({'optimizer': 1e-3}, r'config\.optimizer = 0\.001: must be of type str'),
    ({'warmup': 50}, r'config\.warmup = 50\.0: must be in \[0, 1\)'),
    ({'delta_dtype': 'float16'}, r"config\.delta_dtype = 'float16': must be bfloat16 or float32"),
    ({'steps': 5, 'epochs': 1}, r'config\.epochs = 1: must be 0 where steps=5 is given'),
    ({'schedule': 'cosin'}, r"config\.schedule = 'cosin': must be constant or cosine or linear"),
    ({'compute_dtype': 'float16'}, r"config\.compute_dtype = 'float16': must be float32 or bfloat16"),
    ({'data': 3}, r'config\.data = 3: must be a list of strings'),
    ({'buckets': [[64]]}, r'config\.buckets = \[\[64\]\]: must be a list of pairs'),
    ({'buckets': [['a', 'b']]}, r'config\.buckets = .*: must be a list of pairs'),
    ({'save_every': -1}, r'config\.save_every = -1: must be at least 0'),
  ],
)
def test_bad_values_are_refused_naming_the_field(values, message):
  with pytest.raises(ValueError, match=message):
    settings.from_dict(values)


def test_one_path_stands_for_a_list_of_one():
  assert settings.from_dict({'data': 'a.jsonl'}).data == ('a.jsonl',)
