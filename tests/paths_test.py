"""Paths: `~` and object stores, in every setting of every program."""

import json
import os

from absl import flags
import pytest

from alignjax import paths
from alignjax.commands import main, program
from alignjax.run import command_line, fields, settings


def settings_of(loaded):
  """The settings of all programs of a group."""
  if isinstance(loaded, program.Group):
    for name in loaded.summaries:
      yield from settings_of(loaded.load(name))
  else:
    yield loaded.settings


def of_paths(kind):
  return [leaf for leaf in fields.leaves(kind) if leaf.field.metadata.get('path')]


def test_every_setting_that_names_a_file_or_folder_is_a_path():
  named = ('folder', 'file', 'data,', 'data in', 'python file', 'prompts to read', 'data to read')
  for kind in settings_of(main.PROGRAM):
    for leaf in fields.leaves(kind):
      if leaf.field.metadata['text'].lower().startswith(named):
        listed = leaf.name.rpartition('.')[2] in ('ignore_fields',)  # fields of data files
        assert listed or leaf.field.metadata['path'], f'{kind.__name__}.{leaf.name}'


@pytest.mark.parametrize('flag', [leaf.name for leaf in of_paths(settings.Config)])
def test_the_home_folder_is_expanded_on_the_command_line_and_in_files(flag, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', '/home/someone')
  many = next(leaf for leaf in of_paths(settings.Config) if leaf.name == flag).field.type == fields.Strings
  given = ['~/a', 'hh:~/b', './~', 'a~'] if many else '~/a'
  expected = ('/home/someone/a', 'hh:/home/someone/b', './~', 'a~') if many else '/home/someone/a'
  file = tmp_path / 'config.json'
  file.write_text(json.dumps({flag: given}))
  leaf = next(leaf for leaf in of_paths(settings.Config) if leaf.name == flag)
  others = [] if flag == 'model' else ['--model=m']
  for argument in (f'--config={file}', f'--{leaf.flag}={",".join(given) if many else given}'):
    parsed = command_line.parse_flags(command_line.Invocation, ['train', argument, *others], flags.FlagValues())
    assert getattr(parsed.config, flag) == expected


def test_nothing_but_a_leading_tilde_of_a_path_is_expanded():
  assert paths.expand('~') == os.path.expanduser('~')
  assert paths.expand('a/~/b') == 'a/~/b'
  assert settings.from_dict({'ignore_fields': ['~']}).ignore_fields == ('~',)


@pytest.mark.parametrize('path', ['gs://bucket/run', 's3://bucket/run', 'hh:gs://bucket/pairs.jsonl'])
def test_a_store_without_its_module_is_refused_with_the_extra(path):
  scheme, module, extra = ('s3', 's3fs', 's3') if path.startswith('s3') else ('gs', 'gcsfs', 'gcs')
  with pytest.raises(ValueError, match=rf'{path}: {scheme}:// .* needs the module {module}: pip install') as caught:
    paths.check(path)
  assert f"'alignjax[{extra}]'" in str(caught.value)
  assert 'mount the bucket' in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'path', 'message'),
  [
    ('workdir', 'memory://run', 'memory:// is not supported, only gs:// and s3://'),
    ('data', 'hh:https://example.org/a.jsonl', 'https:// is not supported'),
    ('workdir', 's3://bucket/run', 'a run cannot write checkpoints to s3://, only to a disk or gs://'),
    ('reference_cache', 'gs://bucket/cache', 'this setting needs a folder on a disk'),
    ('token_cache', 's3://bucket/cache', 'this setting needs a folder on a disk'),
  ],
)
def test_what_a_setting_cannot_use_is_refused_by_name(name, path, message):
  with pytest.raises(ValueError, match=f'config.{name} = {path}: {message}'):
    settings.from_dict({name: path})


@pytest.mark.parametrize('kind', [kind for kind in settings_of(main.PROGRAM) if of_paths(kind)])
def test_every_program_refuses_before_it_creates_anything(kind, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for leaf in of_paths(kind):
    value = ('gs://bucket/x',) if leaf.field.type == fields.Strings else 'gs://bucket/x'
    with pytest.raises(ValueError, match='gs://bucket/x'):
      fields.build(kind, fields.nested({leaf.name: value}))
  assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_no_folder(monkeypatch, tmp_path, capsys):
  monkeypatch.chdir(tmp_path)
  arguments = ['alignjax', 'train', '--model=m', '--data=d.jsonl', '--workdir=gs://bucket/run']
  assert program.execute(main.PROGRAM, arguments) == 1
  message = capsys.readouterr().err
  assert message.startswith(
    'error: config.workdir = gs://bucket/run: gs:// (Google Cloud Storage) needs the module gcsfs'
  )
  assert len(message.splitlines()) == 1
  assert not list(tmp_path.iterdir())


def test_an_earlier_run_is_read_without_the_stores_of_its_paths():
  values = {'data': ['gs://bucket/a.jsonl'], 'workdir': 'gs://bucket/run', 'seed': 3}
  assert settings.saved(values) == settings.Config(seed=3)
