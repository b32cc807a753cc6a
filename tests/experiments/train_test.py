"""The trainer as people run it: killed, told to stop, misconfigured, and on several processes."""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from absl import flags
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax.training import loop, metrics
from experiments import config as config_lib
from experiments import train
from tests import assets

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 32
WORDS = ('film', 'story', 'warm', 'dull', 'bright', 'the', 'a', 'of', 'and', 'people', 'never', 'always', 'good', 'bad')


def write_pairs(path: pathlib.Path, count: int, seed: int) -> None:
  generator = random.Random(seed)

  def text(words: int) -> str:
    return ' '.join(generator.choice(WORDS) for _ in range(words))

  with path.open('w', encoding='utf-8') as stream:
    for _ in range(count):
      row = {
        'prompt': text(4),
        'chosen': ' ' + text(3) + ' good',
        'rejected': ' ' + text(generator.randint(2, 4)) + ' bad',
      }
      stream.write(json.dumps(row) + '\n')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('train')
  assets.write_tiny_model(path / 'model', layers=1, vocab_size=384)
  write_pairs(path / 'train.jsonl', 61, seed=0)
  write_pairs(path / 'eval.jsonl', 11, seed=1)
  return path


@pytest.fixture(autouse=True)
def parsed_flags() -> None:
  flags.FLAGS.mark_as_parsed()


def make_config(folder: pathlib.Path, workdir: str, **overrides) -> config_lib.Config:
  values = {
    'model': str(folder / 'model'),
    'data': (str(folder / 'train.jsonl'),),
    'eval_data': (str(folder / 'eval.jsonl'),),
    'steps': STEPS,
    'batch_size': 8,
    'buckets': ((16, 24),),
    'learning_rate': 1e-3,
    'schedule': 'constant',
    'remat': 'none',
    'eval_every': 8,
    'save_every': 5,
    'workdir': str(folder / workdir),
  }
  return config_lib.Config(**values | overrides)


def arguments(config: config_lib.Config) -> list[str]:
  """The command line that says the same as a config."""
  flat, default = config_lib.flat(config), config_lib.flat(config_lib.from_dict(default_values()))
  return [f'--config.{name}={value}' for name, value in flat.items() if value != default[name]]


def default_values() -> dict:
  from experiments.configs import dpo

  return dpo.get_config().to_dict()


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> dict[str, str]:
  """Of a process whose virtual devices are given by a flag, not by what this test process itself was started with.

  Compiled programs are shared by the processes of this module, to save time.
  """
  inherited = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  cache = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('programs'))}
  return inherited | cache | {'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable}


class Run:
  """A training process, whose output goes to a file so that it never waits for a reader."""

  def __init__(self, command: list[str], environment: dict[str, str], output: pathlib.Path):
    self._output = output
    with output.open('w') as stream:
      self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)

  def wait_for_records(self, workdir: pathlib.Path, count: int, checkpoint: int | None = None) -> None:
    """Until so many records are written and, if given, the checkpoint of that step is committed."""
    file = workdir / 'metrics.jsonl'
    committed = workdir / 'checkpoints' / ('' if checkpoint is None else str(checkpoint))
    deadline = time.monotonic() + 180
    while not (committed.exists() and file.exists() and file.read_text(encoding='utf-8').count('\n') >= count):
      assert self.process.poll() is None, f'ended before record {count}: {self._output.read_text()}'
      assert time.monotonic() < deadline, self._output.read_text()
      time.sleep(0.01)

  def leave(self, code: int) -> str:
    """Waits for the end, which must have this exit code, and returns the output."""
    self.process.wait(timeout=180)
    output = self._output.read_text(encoding='utf-8')
    assert self.process.returncode == code, output
    return output


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str], output: pathlib.Path) -> Iterator[Run]:
  run = Run(command, environment, output)
  try:
    yield run
  finally:
    run.process.kill()
    run.process.wait()


def single(config: config_lib.Config) -> list[str]:
  return [sys.executable, '-m', 'experiments.train', '--local_devices=8', *arguments(config)]


def deterministic(workdir: str | pathlib.Path) -> list[dict]:
  records = metrics.read_jsonl(pathlib.Path(workdir) / 'metrics.jsonl')
  return [{k: v for k, v in record.items() if not k.startswith(metrics.TIME_PREFIX)} for record in records]


def weights(workdir: str | pathlib.Path) -> dict[str, np.ndarray]:
  return safetensors_numpy.load_file(pathlib.Path(workdir) / 'model' / 'model.safetensors')


@pytest.fixture(scope='module')
def whole(folder) -> config_lib.Config:
  """A run that nothing interrupts, in this process: 1 process x 8 devices."""
  config = make_config(folder, 'whole')
  result = train.run(config)
  assert (result.step, result.preempted, result.compilations) == (STEPS, False, 1)
  return config


def test_a_whole_run(whole, capsys):
  workdir = pathlib.Path(whole.workdir)
  records = deterministic(workdir)
  assert [record['step'] for record in records] == list(range(STEPS + 1))
  assert records[1]['loss'] == pytest.approx(np.log(2), rel=1e-6)
  assert records[1]['reward_margin'] == 0
  assert [r['step'] for r in records if 'eval/loss' in r] == [0, 8, 16, 24, 32]
  assert records[0]['eval/loss'] == pytest.approx(np.log(2), rel=1e-6)
  assert records[-1]['eval/reward_accuracy'] > 0.9  # a chosen response ends well, a rejected one badly
  assert config_lib.from_dict(json.loads((workdir / 'config.json').read_text())) == whole
  assert sorted(weights(workdir)) == sorted(
    safetensors_numpy.load_file(pathlib.Path(whole.model) / 'model.safetensors')
  )
  assert (workdir / 'model' / 'tokenizer.json').exists()
  assert train.run(whole).step == STEPS
  assert 'this run is finished: 32 of 32 steps are done' in capsys.readouterr().out
  assert deterministic(workdir) == records


def test_killed_and_told_to_stop_it_resumes_bit_identically(folder, whole, environment, tmp_path, capsys):
  config = make_config(folder, 'interrupted')
  workdir = pathlib.Path(config.workdir)
  with started(single(config), environment, tmp_path / 'log') as run:
    run.wait_for_records(workdir, 9, checkpoint=5)
    run.process.kill()
    run.leave(-signal.SIGKILL)
  assert not (workdir / 'model').exists()
  with started(single(config), environment, tmp_path / 'log') as run:
    run.wait_for_records(workdir, 17)
    run.process.terminate()
    output = run.leave(train.PREEMPTED)
  assert 'resuming from step' in output
  assert 'told to stop: saved at step' in output
  assert 'Traceback' not in output
  # It was saved where it stopped, which need not be a multiple of save_every.
  train.run(config)
  assert int(capsys.readouterr().out.split('resuming from step ')[1].split()[0]) >= 16
  assert deterministic(workdir) == deterministic(whole.workdir)
  resumed, expected = ({name: w.tobytes() for name, w in weights(path).items()} for path in (workdir, whole.workdir))
  assert resumed == expected


def test_two_processes_do_what_one_does(folder, whole, environment, tmp_path):
  """2 processes x 4 devices against 1 x 8, with a stop and a resumption in between; shorter, for gloo is slow."""
  config = make_config(folder, 'processes', steps=12)
  command = [str(ROOT / 'launch' / 'local.sh'), '2', '--', '--local_devices=4', *arguments(config)]
  with started(command, environment, tmp_path / 'log') as run:
    run.wait_for_records(pathlib.Path(config.workdir), 5)
    run.process.terminate()
    run.leave(train.PREEMPTED)
  with started(command, environment, tmp_path / 'log') as run:
    output = run.leave(train.DONE)
  assert '[0] resuming from step' in output
  records, expected = deterministic(config.workdir), deterministic(whole.workdir)[:13]
  assert [r['step'] for r in records] == list(range(13))
  assert [r.get('batch_hash') for r in records] == [r.get('batch_hash') for r in expected]
  for name in ('loss', 'eval/loss', 'gradient_norm', 'logp_chosen'):
    steps = [
      i for i, (record, other) in enumerate(zip(records, expected, strict=True)) if name in record and name in other
    ]
    assert len(steps) == (2 if name == 'eval/loss' else 12)
    values, wanted = ([run[i][name] for i in steps] for run in (records, expected))
    np.testing.assert_allclose(values, wanted, rtol=1e-6 if 'loss' in name else 1e-5, err_msg=name)


@pytest.mark.parametrize(
  ('overrides', 'says'),
  [
    ({'objective': 'dop()'}, ["unknown name 'dop'; did you mean 'dpo'?", '  dop()\n  ^^^', '  sft()']),
    ({'data': ()}, ['config.data is missing: give --data=...']),
    ({'data': ('nowhere.jsonl',)}, ['nowhere.jsonl']),
    ({'model': 'nowhere'}, ['nowhere']),
    ({'microbatches': 3}, ['3 microbatches']),
    ({'mesh': config_lib.MeshConfig(fsdp=3)}, ['a mesh of data=1, fsdp=3, tensor=1 does not fit 8 devices']),
    ({'buckets': ((4, 4),)}, ['train.jsonl:1', 'no bucket']),
  ],
)
def test_errors_of_the_user_are_one_message_and_exit_code_1(folder, monkeypatch, capsys, overrides, says):
  monkeypatch.setattr(train, 'resolve', lambda: make_config(folder, 'refused', **overrides))
  with pytest.raises(SystemExit) as caught:
    train.main(['train'])
  error = capsys.readouterr().err
  assert caught.value.code == train.REFUSED
  assert 'Traceback' not in error
  for text in says:
    assert text in error


def test_a_bad_row_is_named_by_file_line_and_field(folder, tmp_path, monkeypatch, capsys):
  bad = tmp_path / 'bad.jsonl'
  bad.write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n{"prompt": "a", "chosen": 3, "rejected": " c"}\n')
  monkeypatch.setattr(train, 'resolve', lambda: make_config(folder, 'refused', data=(str(bad),)))
  with pytest.raises(SystemExit) as caught:
    train.main(['train'])
  assert caught.value.code == train.REFUSED
  assert f"{bad}:2: field 'chosen'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('overrides', 'says'),
  [
    ({'seed': 1}, 'seed: was 0, is now 1'),
    ({'objective': 'ipo()'}, "objective: was 'dpo(beta=0.1)', is now 'ipo()'"),
    ({'batch_size': 16}, 'batch_size: was 8, is now 16'),
    ({'buckets': ((16, 32),)}, 'buckets: was [[16, 24]], is now [[16, 32]]'),
  ],
)
def test_another_run_in_the_same_folder_is_refused(whole, overrides, says):
  config = dataclasses.replace(whole, **overrides)
  with pytest.raises(ValueError, match='belongs to another run') as caught:
    train.run(config)
  assert says in str(caught.value)


def test_other_data_or_models_in_the_same_folder_are_refused(folder, whole):
  write_pairs(folder / 'other.jsonl', 61, seed=5)
  with pytest.raises(ValueError, match='data_fingerprint: was'):
    train.run(dataclasses.replace(whole, data=(str(folder / 'other.jsonl'),)))
  assets.write_tiny_model(folder / 'other', seed=1, layers=1)
  with pytest.raises(ValueError, match='reference_fingerprint: was'):
    train.run(dataclasses.replace(whole, reference=str(folder / 'other')))


def test_harmless_changes_go_on_and_questionable_ones_are_reported(whole, caplog):
  with caplog.at_level('WARNING', 'absl'):
    train.run(dataclasses.replace(whole, log_every=3, learning_rate=2e-3))
  assert 'config.learning_rate was 0.001 and is now 0.002' in caplog.text
  assert 'log_every' not in caplog.text
  train.run(whole)  # gives the folder its configuration back


def test_an_infinite_loss_ends_the_run_with_exit_code_1(folder, monkeypatch, capsys):
  config = make_config(folder, 'diverged', learning_rate=1e38, gradient_clip=0.0, eval_data=(), save_every=1)
  monkeypatch.setattr(train, 'resolve', lambda: config)
  with pytest.raises(SystemExit) as caught:
    train.main(['train'])
  assert caught.value.code == train.REFUSED
  error = capsys.readouterr().err
  assert 'error: step ' in error
  assert not (folder / 'diverged' / 'model').exists()


@pytest.mark.parametrize(
  ('outcome', 'code'),
  [
    (loop.Result(None, 3, True, 1), train.PREEMPTED),
    (loop.Result(None, 3, False, 1), train.DONE),
    (ValueError('why'), train.REFUSED),
    (loop.NonFiniteError('why'), train.REFUSED),
    (RuntimeError('why'), train.CRASHED),
  ],
)
def test_exit_codes(monkeypatch, capsys, outcome, code):
  def run(config):
    del config
    if isinstance(outcome, Exception):
      raise outcome
    return outcome

  monkeypatch.setattr(train, 'resolve', config_lib.Config)
  monkeypatch.setattr(train, 'run', run)
  with pytest.raises(SystemExit) as caught:
    train.main(['train'])
  assert caught.value.code == code
  assert ('Traceback' in capsys.readouterr().err) == (code == train.CRASHED)


def test_unknown_flags_are_refused_and_help_explains(environment):
  command = [sys.executable, '-m', 'experiments.train']
  unknown = subprocess.Popen(
    [*command, '--config.batchsize=4'], cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True
  )
  shown = subprocess.run([*command, '--help'], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  _, error = unknown.communicate()
  assert unknown.returncode == train.REFUSED
  assert 'Did you mean "batch_size" instead of "batchsize"?' in error
  assert 'Traceback' not in error
  for text in ('Exit codes: 0 done', '--config.learning_rate', '--config.mesh.tensor', 'simpo(beta=2.0) + 0.1 * sft()'):
    assert text in shown.stdout
