"""Every field of the configuration is read, checked, and has a say in what resuming means."""

import ast
import dataclasses
import json
import pathlib

import pytest

from alignjax.run import fields, settings

ROOT = pathlib.Path(__file__).parents[2]


def field_names() -> list[str]:
  fields = dataclasses.fields(settings.Config)
  groups = {'mesh': settings.MeshConfig, 'watch': settings.WatchConfig}
  nested = [f'{group}.{field.name}' for group, kind in groups.items() for field in dataclasses.fields(kind)]
  return [field.name for field in fields if field.name not in groups] + nested


def attributes_read(source: str) -> set[str]:
  """What is read as `config.<name>`, `self._config.<name>` or `config.mesh.<name>`."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ('config', 'self._config'):
      found.add(node.attr)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == 'mesh':
      found.add(f'mesh.{node.attr}')
  if 'dataclasses.asdict(config.watch)' in source:  # passed on as a whole
    found |= {f'watch.{field.name}' for field in dataclasses.fields(settings.WatchConfig)}
  return found


@pytest.mark.parametrize('name', field_names())
def test_every_field_is_read_by_the_trainer(name):
  files = ('training', 'record', 'inputs', 'preparation', 'adapters', 'on_policy', 'rollout_source')
  assert any(
    name in attributes_read((ROOT / 'alignjax' / 'run' / f'{file}.py').read_text(encoding='utf-8')) for file in files
  )


@pytest.mark.parametrize('name', field_names())
def test_every_field_is_documented_and_has_one_meaning_on_resume(name):
  assert settings.on_resume()[name] in (settings.IDENTITY, settings.WARNS, settings.FREE)
  assert any(leaf.name == name and leaf.field.metadata['text'] for leaf in fields.leaves(settings.Config))
  assert name in settings.flat(settings.Config())


def test_nothing_else_has_a_meaning_on_resume():
  assert sorted(settings.on_resume()) == sorted(field_names()) == sorted(settings.flat(settings.Config()))


@pytest.mark.parametrize('name', ['seed', 'objective', 'batch_size', 'max_prompt', 'max_response', 'buckets'])
def test_what_makes_another_training_is_part_of_the_identity(name):
  assert settings.on_resume()[name] == settings.IDENTITY


@pytest.mark.parametrize('name', ['steps', 'log_every', 'save_every', 'workdir'])
def test_what_only_makes_a_run_longer_or_louder_may_change(name):
  assert settings.on_resume()[name] != settings.IDENTITY


def test_a_part_has_the_fields_of_its_concern_alone():
  config = settings.Config(batch_size=4)
  assert isinstance(config, settings.DataSettings)
  names = {field.name for field in dataclasses.fields(settings.DataSettings)}
  assert {'data', 'batch_size', 'seed'} <= names
  assert not {'model', 'objective', 'optimizer', 'workdir'} & names


def test_json_of_a_run_gives_its_config_back():
  config = settings.Config(model='m', data=('a',), buckets=((64, 32),), mesh=settings.MeshConfig(tensor=2))
  assert settings.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'batchsize': 8}, r'config\.batchsize is not a setting; did you mean batch_size\?'),
    ({'mesh': {'fsdb': 8}}, r'config\.mesh\.fsdb is not a setting; did you mean mesh\.fsdp\?'),
    ({'zzz': 8}, r'config\.zzz is not a setting; --help lists the settings'),
    ({'batch_size': 0}, r'config\.batch_size = 0: must be at least 1'),
    ({'batch_size': 2**31}, r'config\.batch_size = 2147483648: must be at most 16777216'),
    ({'steps': 2**31}, r'config\.steps = 2147483648: must be at most 2147483647'),
    ({'seed': 2**63}, r'config\.seed = 9223372036854775808: must be at most 9223372036854775807'),
    ({'batch_size': '8'}, r"config\.batch_size = '8': must be a whole number"),
    ({'mesh': {'data': 2**31}}, r'config\.mesh\.data = 2147483648: must be at most'),
    ({'batch_size': 2.0}, r'config\.batch_size = 2\.0: must be a whole number'),
    ({'batch_size': True}, r'config\.batch_size = True: must be a whole number'),
    ({'gradient_clip': '1'}, r"config\.gradient_clip = '1': must be a number"),
    ({'gradient_clip': float('nan')}, r'config\.gradient_clip = nan: must be at least 0'),
    ({'optimizer': 1e-3}, r'config\.optimizer = 0\.001: must be text'),
    ({'warmup': -1}, r'config\.warmup = -1\.0: must be a share of the run in \[0, 1\) or a whole number of updates'),
    ({'delta_dtype': 'float16'}, r"config\.delta_dtype = 'float16': must be bfloat16 or float32"),
    ({'steps': 5, 'epochs': 1}, r'config\.epochs = 1: must be 0 if steps=5 is given'),
    ({'schedule': 'cosin'}, r"config\.schedule = 'cosin': unknown name 'cosin'; did you mean cosine\(to=0\.0\)"),
    ({'compute_dtype': 'float16'}, r"config\.compute_dtype = 'float16': must be auto or float32 or bfloat16"),
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
