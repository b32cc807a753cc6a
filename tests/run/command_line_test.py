"""Command lines of train and doctor: flags, files of settings, runs to resume, and conflicts between them."""

import dataclasses
import json
import pathlib
import re

from absl import flags
import pytest

from alignjax.run import command_line, fields, settings

ROOT = pathlib.Path(__file__).parents[2]
LISTS = [leaf for leaf in fields.leaves(settings.Config) if leaf.field.type == fields.Strings]


def invoke(*arguments: str) -> command_line.Invocation:
  return command_line.parse_flags(command_line.Invocation, ['train', *arguments], flags.FlagValues())


def parse(*arguments: str) -> settings.Config:
  return invoke(*arguments).config


def record(folder, **values) -> settings.Config:
  """Writes the config.json of a run whose work directory is the folder, and returns its configuration."""
  config = settings.Config(**{'model': 'm', 'data': ('d.jsonl',), 'workdir': str(folder)} | values)
  (folder / 'config.json').write_text(json.dumps(dataclasses.asdict(config)))
  return config


def test_every_setting_has_a_plain_flag():
  plain = ['--batch_size=16', '--mesh.tensor=2', '--warmup=0', '--buckets=((64, 32), (128, 64))', '--noscan_layers']
  config = parse(*plain, '--data=a.jsonl', '--data=b.jsonl', '--remat=none', '--import=mine.py')
  expected = settings.Config(
    batch_size=16,
    mesh=settings.MeshConfig(tensor=2),
    warmup=0.0,
    buckets=((64, 32), (128, 64)),
    scan_layers=False,
    data=('a.jsonl', 'b.jsonl'),
    remat='none',
    imports=('mine.py',),
  )
  assert config == expected
  assert parse() == settings.Config()


@pytest.mark.parametrize('leaf', LISTS, ids=lambda leaf: leaf.name)
def test_lists_have_one_notation_in_flags_and_files(leaf, tmp_path):
  expected = ('a', 'b[c,d]')
  for flag in (f'--{leaf.flag}', f'--config.{leaf.name}'):
    for spelling in ('=a,b[c,d]', "=('a', 'b[c,d]')", '=[a,b[c,d]]', '= a , b[c,d],'):
      assert getattr(parse(flag + spelling), leaf.name) == expected
    assert getattr(parse(f'{flag}=a', f'{flag}=b[c,d]'), leaf.name) == expected
    assert getattr(parse(flag, 'a,b[c,d]'), leaf.name) == expected
    assert getattr(parse(f'{flag}='), leaf.name) == ()
  contents = {
    'x.yaml': [f'{leaf.name}: [a, "b[c,d]"]', f'{leaf.name}: a,b[c,d]', f'{leaf.name}:\n  - a\n  - b[c,d]'],
    'x.json': [json.dumps({leaf.name: expected}), json.dumps({leaf.name: 'a,b[c,d]'})],
    'x.py': [
      f'from alignjax.run import settings\ndef get_config(): return settings.config_dict({leaf.name}={value!r})'
      for value in (expected, list(expected), 'a,b[c,d]')
    ],
  }
  for name, texts in contents.items():
    for text in texts:
      (tmp_path / name).write_text(text)
      assert getattr(parse(f'--config={tmp_path / name}'), leaf.name) == expected, text


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['--buckets=(64,32),(128,64)'], ((64, 32), (128, 64))),
    (['--buckets=[[64,32],[128,64]]'], ((64, 32), (128, 64))),
    (['--buckets=(64,32)', '--buckets=(128,64)'], ((64, 32), (128, 64))),
    (['--buckets=(64, 32)'], ((64, 32),)),
    (['--buckets=((64, 32),)'], ((64, 32),)),
    (['--buckets='], ()),
  ],
)
def test_buckets_are_a_list_too(arguments, expected):
  assert parse(*arguments).buckets == expected


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--batch_size=4', '--config.batch_size=8'], '--batch_size=4 and --config.batch_size=8 differ: give one of them'),
    (['--objective=ipo()', '--config.objective=dpo()'], '--objective=ipo() and --config.objective=dpo() differ'),
    (['--batch_size=4', '--batch_size=8'], '--batch_size is given twice, as 4 and 8: give it once'),
    (['--scan_layers', '--noscan_layers'], '--scan_layers is given twice, as True and False: give it once'),
    (['--config=a.yaml', '--config=b.yaml'], "--config is given twice, as 'a.yaml' and 'b.yaml': give it once"),
    (['--config=nowhere.py'], '--config=nowhere.py: there is no such file'),
    (['--config=nowhere.json'], '--config=nowhere.json: there is no such file'),
    (['--config=run.txt'], '--config=run.txt: must be a .yaml, .json or .py file'),
    (['--warmup=1.5'], 'config.warmup = 1.5: must be a share of the run in [0, 1) or a whole number of updates'),
    (['--buckets=64'], 'config.buckets = 64: must be a list of pairs (prompt, response)'),
    (['--buckets=64,32'], 'config.buckets = (64, 32): must be a list of pairs (prompt, response)'),
    (['--batch_size'], '--batch_size needs a value'),
    (['train.jsonl'], "unexpected argument 'train.jsonl': give settings as --<name>=<value>"),
    (['batch_size=4'], "unexpected argument 'batch_size=4': type --batch_size=4"),
    (['—batch_size=4'], "unexpected argument '—batch_size=4': it starts with '—'; type --batch_size=4"),
  ],
)
def test_command_lines_that_contradict_themselves_are_refused(arguments, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    parse(*arguments)


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--batch_size=x', '--batch_size=x: must be a whole number, such as 8'),
    ('--batch_size=', '--batch_size=: must be a whole number, such as 8'),
    ('--warmup=ten', '--warmup=ten: must be a number, such as 0.5'),
    ('--scan_layers=maybe', '--scan_layers=maybe: must be true or false'),
    ('--remat=ful', '--remat=ful: must be none or dots or full; did you mean full?'),
    ('--config.remat=x', '--config.remat=x: must be none or dots or full'),
  ],
)
def test_a_value_of_the_wrong_type_is_refused_by_the_name_of_its_flag(argument, message):
  with pytest.raises(flags.IllegalFlagValueError) as caught:
    parse(argument)
  assert str(caught.value) == message


def test_the_same_value_twice_is_no_conflict():
  assert parse('--batch_size=4', '--batch_size=4', '--config.batch_size=4').batch_size == 4


def test_flags_override_a_file_and_the_run_names_them_once(tmp_path):
  file = tmp_path / 'run.yaml'
  file.write_text('batch_size: 32\nobjective: ipo()\nseed: 3\n')
  found = invoke(f'--config={file}', '--batch_size=16', '--config.objective=dpo()', '--seed=3', '--steps=9')
  assert (found.config.batch_size, found.config.objective, found.config.steps) == (16, 'dpo()', 9)
  assert found.notes == (f"flags override {file}: batch_size=16 (not 32), objective='dpo()' (not 'ipo()')",)
  assert invoke(f'--config={file}').notes == ()


def test_flags_of_both_spellings_override_a_python_file():
  config = parse(
    f'--config={ROOT}/experiments/configs/dpo.py',
    '--batch_size=16',
    '--config.mesh.tensor=2',
    '--config.warmup=0',
    '--optimizer=chain(sgd(1), weight_decay(0.1))',
    '--config.buckets=((64, 32), (128, 64))',
    '--config.data=("a.jsonl", "b.jsonl")',
    '--config.scan_layers=false',
  )
  assert (config.batch_size, config.mesh.tensor, config.mesh.fsdp) == (16, 2, -1)
  assert isinstance(config.warmup, float)
  assert config.optimizer == 'chain(sgd(1), weight_decay(0.1))'
  assert config.buckets == ((64, 32), (128, 64))
  assert config.data == ('a.jsonl', 'b.jsonl')
  assert config.scan_layers is False


def test_a_run_is_resumed_by_its_work_directory_alone(tmp_path):
  recorded = record(tmp_path, batch_size=16, mesh=settings.MeshConfig(tensor=2), warmup=0.0, buckets=((8, 4),))
  assert invoke(f'--workdir={tmp_path}') == command_line.Invocation(recorded)
  longer = invoke(f'--workdir={tmp_path}', '--steps=2000')
  assert longer.config == dataclasses.replace(recorded, steps=2000)
  changed = invoke(f'--workdir={tmp_path}', '--batch_size=8')
  assert changed.notes == (f'flags override {tmp_path}/config.json: batch_size=8 (not 16)',)


def test_a_complete_command_describes_its_run_itself(tmp_path):
  """So leaving a flag out means its default, as in a new run, and the identity is compared."""
  record(tmp_path, batch_size=16)
  assert parse(f'--workdir={tmp_path}', '--model=m', '--data=d.jsonl').batch_size == 32
  (tmp_path / 'run.yaml').write_text('model: m\n')
  assert parse(f'--workdir={tmp_path}', f'--config={tmp_path}/run.yaml').batch_size == 32


def test_a_recorded_configuration_starts_the_same_run_elsewhere(tmp_path):
  recorded = record(tmp_path, batch_size=16)
  found = parse(f'--config={tmp_path}/config.json', '--workdir=elsewhere')
  assert found == dataclasses.replace(recorded, workdir='elsewhere')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"model": "m", "nothing": 1}', 'line 1: config.nothing is not a setting'),
    ('{"model": ', 'line 1: not valid JSON: Expecting value'),
    ('', 'the file is empty'),
  ],
)
def test_a_damaged_record_is_refused_by_name(tmp_path, text, message):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=re.escape(f'--config={tmp_path}/config.json: {message}')):
    parse(f'--workdir={tmp_path}')


def test_a_work_directory_without_a_record_needs_a_model(tmp_path):
  message = f'config.model is missing: give --model=... for a new run; there is none to resume in {tmp_path} (no config'
  with pytest.raises(ValueError, match=re.escape(message)):
    parse(f'--workdir={tmp_path}', '--data=d.jsonl')
