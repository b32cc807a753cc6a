"""The whole life of a run in an object store, which gives the same bits as on a disk."""

import json
import pathlib
import time

from absl import flags
import pytest

from alignjax import paths, refusals
from alignjax.commands import main, program
from alignjax.run import command_line, settings, training
from alignjax.training import loop, metrics, owner
from tests import object_store, runs

STEPS = 12


class Killed(Exception):
  pass


@pytest.fixture(scope='module')
def store():
  with object_store.serving() as objects, pytest.MonkeyPatch.context() as patch:
    patch.setattr(owner, 'BEAT', 0.1)
    yield objects


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """The folder for copies, and the current folder."""
  folder = tmp_path_factory.mktemp('home')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setenv('ALIGNJAX_CACHE', str(folder / 'copies'))
    yield folder


@pytest.fixture(scope='module')
def whole(tiny_run, tmp_path_factory):
  """A run on a disk that nothing interrupts."""
  config = runs.make_config(tiny_run, tmp_path_factory.mktemp('whole') / 'run', steps=STEPS)
  training.train(config)
  return pathlib.Path(config.workdir)


@pytest.fixture(scope='module')
def config(tiny_run, store, home):
  """The same run, whose inputs and work directory are in an object store."""
  for name in ('model', 'train.jsonl', 'eval.jsonl'):
    place = tiny_run / name
    for file in place.iterdir() if place.is_dir() else [place]:
      store[f'bucket/{file.relative_to(tiny_run)}'] = file.read_bytes()
  return runs.make_config(
    tiny_run,
    'gs://bucket/run',
    steps=STEPS,
    model='gs://bucket/model',
    data=('gs://bucket/train.jsonl',),
    eval_data=('gs://bucket/eval.jsonl',),
  )


def deterministic(lines: bytes) -> list[dict]:
  records = map(json.loads, lines.splitlines())
  return [{k: v for k, v in record.items() if not k.startswith(metrics.TIME_PREFIX)} for record in records]


@pytest.fixture(scope='module')
def resumed(config, store):
  """The run is killed after step 8, while the checkpoint of step 5 is there and that of step 8 is half written."""
  advance = loop._Run.advance

  def killed(run):
    if run.done == 8:
      run.save()
      raise Killed
    advance(run)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop._Run, 'advance', killed)
    with pytest.raises(Killed):
      training.train(config)
  del store['bucket/run/checkpoints/8/commit_success.txt']
  gone = owner.of_this_process()._replace(machine='another', heartbeat=time.time() - 1e4)
  store['bucket/run/owner.json'] = owner._content(gone)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(owner, 'SHORTEST_WATCH', 0.1)
    result = training.train(config)
  assert result.step == STEPS
  return config


def test_a_killed_run_resumes_bit_identically(resumed, store, whole, home):
  for name in ('model.safetensors', 'tokenizer.json', 'config.json'):
    assert store[f'bucket/run/model/{name}'] == (whole / 'model' / name).read_bytes()
  assert deterministic(store['bucket/run/metrics.jsonl']) == deterministic((whole / 'metrics.jsonl').read_bytes())
  steps = {int(name.split('/')[3]) for name in store.under('bucket/run/checkpoints')}
  assert steps == {5, 10, STEPS}
  assert all(f'bucket/run/checkpoints/{step}/commit_success.txt' in store for step in steps)
  assert 'bucket/run/owner.json' not in store
  assert len(store.under('bucket/run/tensorboard')) == 2
  assert settings.from_dict(json.loads(store['bucket/run/config.json'])) == resumed
  assert [path.name for path in home.iterdir()] == ['copies']  # no folder called gs:
  assert not list((home / 'copies' / 'outputs').iterdir())


def test_the_work_directory_alone_gives_the_settings_of_a_run(resumed):
  argv = ['train', '--workdir=gs://bucket/run']
  assert command_line.parse_flags(command_line.Invocation, argv, flags.FlagValues()).config == resumed


def test_a_finished_run_repairs_its_export_and_leaves_a_sound_one(resumed, store, whole):
  before = dict(store.generations)
  training.train(resumed)
  assert store.generations['bucket/run/model/model.safetensors'] == before['bucket/run/model/model.safetensors']
  store['bucket/run/model/model.safetensors'] = b'damaged'
  training.train(resumed)
  assert store['bucket/run/model/model.safetensors'] == (whole / 'model' / 'model.safetensors').read_bytes()


@pytest.mark.slow  # checkpoint_test.py has damage on a disk
def test_a_damaged_checkpoint_in_the_store_is_set_aside(resumed, store, whole):
  metadata = f'bucket/run/checkpoints/{STEPS}/metadata/metadata'
  store[metadata] = store[metadata].replace(b'"sha256"', b'"sha255"')
  assert training.train(resumed).step == STEPS
  assert metadata.replace(f'checkpoints/{STEPS}', f'checkpoints-corrupt/{STEPS}.0') in store
  assert store['bucket/run/model/model.safetensors'] == (whole / 'model' / 'model.safetensors').read_bytes()
  assert deterministic(store['bucket/run/metrics.jsonl']) == deterministic((whole / 'metrics.jsonl').read_bytes())


def test_a_checkpoint_in_the_store_is_exported_without_the_data(resumed, store, whole, capsys):
  data = store.pop('bucket/train.jsonl')
  arguments = ['alignjax', 'export', '--workdir=gs://bucket/run', '--to=gs://bucket/again', f'--step={STEPS}']
  assert program.execute(main.PROGRAM, arguments) == 0
  store['bucket/train.jsonl'] = data
  for name in ('model.safetensors', 'tokenizer.json', 'config.json'):
    assert store[f'bucket/again/model/{name}'] == (whole / 'model' / name).read_bytes()


def test_a_live_owner_in_the_store_is_respected(resumed, store):
  store['bucket/run/owner.json'] = owner._content(owner.of_this_process())
  with pytest.raises(refusals.Refused, match='gs://bucket/run: this work directory belongs to a run that is alive'):
    training.train(resumed)
  del store['bucket/run/owner.json']


def test_the_later_of_two_claims_wins(store):
  mine, other = owner.of_this_process(), owner.of_this_process()
  path = paths.path('gs://bucket/claimed/owner.json')
  with pytest.MonkeyPatch.context() as patch:
    theirs = owner._content(other)
    patch.setattr(owner.time, 'sleep', lambda seconds: store.__setitem__('bucket/claimed/owner.json', theirs))
    with pytest.raises(owner.OwnerError, match='another run has just claimed'):
      owner.claim(path, mine)
  del store['bucket/claimed/owner.json']


@pytest.mark.slow  # compiles a sampler; the next test and tests/transfers_test.py cover the paths
def test_the_model_of_a_run_answers_prompts_from_the_store(resumed, store):
  flags = ['--prompt=the film', '--greedy', '--max_new_tokens=2', '--cluster=none', '--batch_size=1']
  arguments = ['alignjax', 'sample', '--model=gs://bucket/run/model', '--output=gs://bucket/said.jsonl', *flags]
  assert program.execute(main.PROGRAM, arguments) == 0
  assert json.loads(store['bucket/said.jsonl'])['prompt'] == [{'role': 'user', 'content': 'the film'}]


def test_an_output_in_the_store_is_not_overwritten(resumed, store, capsys):
  store['bucket/there.jsonl'] = b'precious'
  arguments = ['alignjax', 'sample', '--model=gs://bucket/run/model', '--output=gs://bucket/there.jsonl', '--prompt=a']
  assert program.execute(main.PROGRAM, arguments) == 1
  assert 'error: gs://bucket/there.jsonl: exists; delete it, or choose another path' in capsys.readouterr().err
  assert store['bucket/there.jsonl'] == b'precious'
