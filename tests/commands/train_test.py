"""The trainer as people run it: killed, told to stop, misconfigured, and on several processes."""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax import exit_codes
from alignjax.commands import main, program, train
from alignjax.run import command_line, settings, training
from alignjax.training import metrics
from tests import assets, runs

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 32


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return runs.write_folder(tmp_path_factory.mktemp('train'))


def make_config(folder: pathlib.Path, workdir: str, **overrides) -> settings.Config:
  return runs.make_config(folder, folder / workdir, **overrides)


def arguments(config: settings.Config) -> list[str]:
  """The command line that says the same as a config."""
  flat, default = settings.flat(config), settings.flat(settings.Config())
  return [f'--config.{name}={value}' for name, value in flat.items() if value != default[name]]


@pytest.fixture(scope='module')
def environment() -> dict[str, str]:
  """The environment of a process that compiles as this one does, but sets its virtual devices by its own flag.

  It shares the compilation cache of the tests.
  """
  xla_flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  return os.environ | {
    'PYTHON': sys.executable,
    'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    'XLA_FLAGS': ' '.join(xla_flags),
  }


class Run:
  """A training process, whose output goes to a file so that it never waits for a reader."""

  def __init__(self, command: list[str], environment: dict[str, str], output: pathlib.Path):
    self._output = output
    with output.open('w') as stream:
      self.process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
      )

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
    with contextlib.suppress(ProcessLookupError):
      os.killpg(run.process.pid, signal.SIGKILL)  # and what a launcher that fails its test leaves behind
    run.process.wait()


def attempt(config: settings.Config) -> int:
  """The program with a configuration, in this process."""
  return program.attempt(train.PROGRAM, command_line.Invocation(config))


def single(config: settings.Config) -> list[str]:
  return [sys.executable, '-m', 'alignjax', 'train', '--local_devices=8', *arguments(config)]


def deterministic(workdir: str | pathlib.Path) -> list[dict]:
  records = metrics.read_jsonl(pathlib.Path(workdir) / 'metrics.jsonl')
  return [{k: v for k, v in record.items() if not k.startswith(metrics.TIME_PREFIX)} for record in records]


def weights(workdir: str | pathlib.Path) -> dict[str, np.ndarray]:
  return safetensors_numpy.load_file(pathlib.Path(workdir) / 'model' / 'model.safetensors')


@pytest.fixture(scope='module')
def whole(folder) -> settings.Config:
  """A run that nothing interrupts, in this process: 1 process x 8 devices."""
  config = make_config(folder, 'whole')
  result = training.train(config)
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
  assert settings.from_dict(json.loads((workdir / 'config.json').read_text())) == whole
  assert sorted(weights(workdir)) == sorted(
    safetensors_numpy.load_file(pathlib.Path(whole.model) / 'model.safetensors')
  )
  assert (workdir / 'model' / 'tokenizer.json').exists()
  assert training.train(whole).step == STEPS
  assert 'this run is finished: it has done 32 of 32 steps' in capsys.readouterr().out
  assert deterministic(workdir) == records


def kill(config: settings.Config, environment: dict[str, str], log: pathlib.Path) -> None:
  """Starts a run as a program and kills it after its first checkpoint."""
  workdir = pathlib.Path(config.workdir)
  with started(single(config), environment, log) as run:
    run.wait_for_records(workdir, 9, checkpoint=5)
    run.process.kill()
    run.leave(-signal.SIGKILL)
  assert not (workdir / 'model').exists()


def assert_same(config: settings.Config, whole: settings.Config) -> None:
  """Both runs have the same records, except for times, and the same bits in their models."""
  assert deterministic(config.workdir) == deterministic(whole.workdir)
  found, expected = ((pathlib.Path(x.workdir) / 'model' / 'model.safetensors').read_bytes() for x in (config, whole))
  assert found == expected


# The test of two processes stops real ones; object_store_test.py kills a run in this process.
@pytest.mark.slow
def test_killed_it_resumes_bit_identically(folder, whole, environment, tmp_path, capsys):
  config = make_config(folder, 'killed')
  kill(config, environment, tmp_path / 'log')
  training.train(config)
  assert 'resuming from step' in capsys.readouterr().out
  assert_same(config, whole)


@pytest.mark.slow  # stopping is tested below with two processes, and in loop_test.py
def test_killed_and_told_to_stop_it_resumes_bit_identically(folder, whole, environment, tmp_path, capsys):
  config = make_config(folder, 'interrupted')
  workdir = pathlib.Path(config.workdir)
  kill(config, environment, tmp_path / 'log')
  with started(single(config), environment, tmp_path / 'log') as run:
    run.wait_for_records(workdir, 17)
    run.process.terminate()
    output = run.leave(exit_codes.PREEMPTED)
  assert 'resuming from step' in output
  assert 'stopped on request: saved at step' in output
  assert 'Traceback' not in output
  # It was saved where it stopped, which need not be a multiple of save_every.
  training.train(config)
  assert int(capsys.readouterr().out.split('resuming from step ')[1].split()[0]) >= 16
  assert_same(config, whole)


@pytest.mark.slow  # tests/run/adapters_test.py resumes a run of the same objective
def test_an_objective_that_remembers_batches_resumes_with_its_memory(folder, capsys):
  config = make_config(
    folder,
    'remembers',
    objective="alpha_dpo(normaliser='ema')",
    steps=6,
    save_every=3,
    eval_every=3,
    optimizer='adamw(1e-2)',
  )
  training.train(config)
  source, workdir = pathlib.Path(config.workdir), folder / 'remembers_again'
  shutil.copytree(source / 'checkpoints' / '3', workdir / 'checkpoints' / '3')
  first = (source / 'metrics.jsonl').read_text(encoding='utf-8').splitlines(keepends=True)[:4]
  (workdir / 'metrics.jsonl').write_text(''.join(first), encoding='utf-8')
  training.train(dataclasses.replace(config, workdir=str(workdir)))
  assert 'resuming from step 3' in capsys.readouterr().out
  records = deterministic(workdir)
  assert records == deterministic(source)
  targets = [record['target_margin'] for record in records if 'target_margin' in record]
  assert targets[0] == pytest.approx(1.5, rel=1e-6)  # the policy is the reference: gamma alone
  assert len(set(targets[1:])) == len(targets) - 1  # with a memory the mean target is not gamma
  resumed, expected = ({name: w.tobytes() for name, w in weights(path).items()} for path in (workdir, source))
  assert resumed == expected


@pytest.fixture(scope='module')
def interleaved(environment, tmp_path_factory) -> dict[str, str]:
  """An environment in which launch/local.sh starts tests/interleaved.py instead of alignjax."""
  python = tmp_path_factory.mktemp('interleaved') / 'python'
  python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "${{@/#alignjax/tests.interleaved}}"\n')
  python.chmod(0o755)
  return environment | {'PYTHON': str(python)}


INTERLEAVED = 'devices of the processes [0, 1, 0, 1, 0, 1, 0, 1]'


def two_processes(config: settings.Config) -> list[str]:
  return [str(ROOT / 'launch' / 'local.sh'), '2', '--', '--local_devices=4', *arguments(config)]


def test_two_processes_do_what_one_does(folder, whole, interleaved, tmp_path):
  """2 processes x 4 devices, in the order of a torus, take over from 1 x 8, are told to stop, and hand the run back."""
  config = make_config(folder, 'processes')
  workdir, source = pathlib.Path(config.workdir), pathlib.Path(whole.workdir)
  shutil.copytree(source / 'checkpoints' / '5', workdir / 'checkpoints' / '5')
  first = (source / 'metrics.jsonl').read_text(encoding='utf-8').splitlines(keepends=True)[:6]
  (workdir / 'metrics.jsonl').write_text(''.join(first), encoding='utf-8')
  with started(two_processes(config), interleaved, tmp_path / 'log') as run:
    run.wait_for_records(workdir, 7)
    run.process.terminate()  # it takes them a second or two to agree on a step
    output = run.leave(exit_codes.PREEMPTED)
  assert INTERLEAVED in output
  assert '[0] resuming from step 5' in output
  stopped = int(output.split('stopped on request: saved at step ')[1].split()[0])
  assert len(deterministic(workdir)) == stopped + 1
  assert training.train(config).step == STEPS
  records, expected = deterministic(workdir), deterministic(source)
  assert [r['step'] for r in records] == [r['step'] for r in expected]
  assert [r.get('batch_hash') for r in records] == [r.get('batch_hash') for r in expected]
  for name in ('loss', 'eval/loss', 'gradient_norm', 'logp_chosen'):
    values, wanted = ([record[name] for record in run if name in record] for run in (records, expected))
    np.testing.assert_allclose(values, wanted, rtol=1e-6 if 'loss' in name else 1e-5, err_msg=name)


@pytest.mark.slow  # the test above compares the interleaved order with one process, up to rounding
def test_the_order_of_devices_changes_no_bit(folder, environment, interleaved, tmp_path):
  """Of losses, evaluation, the reference cache, checkpoints and the model, examined by the doctor first."""

  def run(name: str, environment: dict[str, str]) -> settings.Config:
    cache = str(folder / f'{name}_cache')
    config = make_config(
      folder,
      name,
      reference_cache=cache,
      token_cache=str(folder / 'tokens'),
      doctor='warn',
      steps=6,
      save_every=4,
      eval_every=3,
      mesh=mesh,
    )
    with started(two_processes(config), environment, tmp_path / name) as processes:
      assert (INTERLEAVED in processes.leave(exit_codes.DONE)) == (environment is interleaved)
    return config

  def caches(config: settings.Config) -> dict[tuple[str, int], int]:
    """A checksum of each example of each cache. Each of the two processes has written a shard of every cache."""
    values = {}
    for cache in pathlib.Path(config.reference_cache).iterdir():
      shards = list(cache.glob('*/reference_logp.npy'))
      held = [np.load(shard.with_name('ids.npy')) for shard in shards]
      assert len(shards) == 2
      assert sorted(np.concatenate(held)) == list(range(sum(map(len, held))))
      values |= {
        (cache.name, int(index)): checksum
        for shard, ids in zip(shards, held, strict=True)
        for index, checksum in zip(ids, np.load(shard.with_name('checksums.npy')), strict=True)
      }
    return values

  mesh = settings.MeshConfig(data=2)
  plain, torus = run('plain', environment), run('torus', interleaved)
  assert [record['step'] for record in deterministic(torus.workdir) if 'eval/loss' in record] == [0, 3, 6]
  assert_same(torus, plain)
  assert caches(torus) == caches(plain)
  assert len(list((folder / 'tokens').glob('*/manifest.json'))) == 2  # training and evaluation, made once
  # One process takes over from either checkpoint and does the same.
  for config in (plain, torus):
    shutil.rmtree(pathlib.Path(config.workdir) / 'checkpoints' / '6')
    shutil.rmtree(pathlib.Path(config.workdir) / 'model')
    training.train(config)
  assert_same(torus, plain)
  batch_hashes = [record['batch_hash'] for record in deterministic(torus.workdir) if 'batch_hash' in record]
  alone = dataclasses.replace(torus, workdir=str(folder / 'alone'))
  training.train(alone)
  assert [record['batch_hash'] for record in deterministic(alone.workdir) if 'batch_hash' in record] == batch_hashes


@pytest.mark.parametrize(
  ('overrides', 'says'),
  [
    ({'objective': 'dop()'}, ["unknown name 'dop'; did you mean dpop(", '  dop()\n  ^^^', 'sft']),
    (
      {'optimizer': 'chain(adamw(1e-6))', 'base_model': 'b'},
      ["config.base_model = 'b' is set, but nothing", 'online_dare'],
    ),
    ({'optimizer': 'chain(sgd(1), online_ties(0.1, 0.1))'}, ['merges with model - base_model', '--base_model=']),
    ({'optimizer': 'chain(sgd(1), lion(1))'}, ['a chain has one learning rate', '^^^', 'Known links of a chain']),
    ({'data': ()}, ['config.data is missing: give --data=...']),
    ({'data': ('nowhere.jsonl',)}, ['nowhere.jsonl']),
    ({'model': 'nowhere'}, ['nowhere']),
    ({'microbatches': 3}, ['3 microbatches']),
    ({'mesh': settings.MeshConfig(fsdp=3)}, ['a mesh of data=1, fsdp=3, tensor=1 does not fit 8 devices']),
    ({'mesh': settings.MeshConfig(slices=2)}, ['mesh.slices=2, but the number of processes']),
    ({'batch_size': 12}, ['config.batch_size = 12: must be a multiple of 8, because']),
    ({'buckets': ((4, 4),)}, ['train.jsonl:1', 'no bucket']),
  ],
)
def test_errors_of_the_user_are_one_message_and_exit_code_1(folder, capsys, overrides, says):
  code = attempt(make_config(folder, 'refused', **overrides))
  error = capsys.readouterr().err
  assert code == exit_codes.REFUSED
  assert 'Traceback' not in error
  for text in says:
    assert text in error


def test_a_bad_row_is_named_by_file_line_and_field(folder, tmp_path):
  bad = tmp_path / 'bad.jsonl'
  bad.write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n{"prompt": "a", "chosen": 3, "rejected": " c"}\n')
  with pytest.raises(ValueError, match=f"{bad}:2: field 'chosen'"):
    training.train(make_config(folder, 'refused', data=(str(bad),)))


@pytest.mark.parametrize(
  ('overrides', 'says'),
  [
    ({'seed': 1}, 'seed: was 0, is now 1'),
    ({'objective': 'ipo()'}, "objective: was 'dpo(beta=0.1)', is now 'ipo()'"),
    # Its memory and the other optimizer change the saved state, too.
    ({'objective': "alpha_dpo(normaliser='ema')", 'optimizer': 'sgd(0.1)'}, "objective: was 'dpo(beta=0.1)', is now"),
    ({'batch_size': 16}, 'batch_size: was 8, is now 16'),
    ({'buckets': ((16, 32),)}, 'buckets: was [[16, 24]], is now [[16, 32]]'),
  ],
)
def test_another_run_in_the_same_folder_is_refused(whole, overrides, says):
  config = dataclasses.replace(whole, **overrides)
  with pytest.raises(ValueError, match='belongs to another run') as caught:
    training.train(config)
  assert says in str(caught.value)
  assert 'optimizer' not in str(caught.value)


def command(*arguments: str) -> int:
  return program.execute(main.PROGRAM, ['alignjax', 'train', *arguments])


def test_the_work_directory_alone_resumes_a_run_with_its_settings(whole, capsys):
  workdir = pathlib.Path(whole.workdir)
  before = (workdir / 'config.json').read_bytes()
  assert command(f'--workdir={workdir}') == exit_codes.DONE
  assert 'this run is finished: it has done 32 of 32 steps' in capsys.readouterr().out
  assert command(f'--workdir={workdir}', '--objective=ipo()') == exit_codes.REFUSED
  out, err = capsys.readouterr()
  assert f"flags override {workdir}/config.json: objective='ipo()' (not 'dpo(beta=0.1)')" in out
  assert "objective: was 'dpo(beta=0.1)', is now 'ipo()'" in err
  assert err.count('error: ') == 1
  assert (workdir / 'config.json').read_bytes() == before


def test_other_data_or_models_in_the_same_folder_are_refused(folder, whole):
  runs.write_pairs(folder / 'other.jsonl', 61, seed=5)
  with pytest.raises(ValueError, match='data_fingerprint: was'):
    training.train(dataclasses.replace(whole, data=(str(folder / 'other.jsonl'),)))
  assets.write_tiny_model(folder / 'other', seed=1, layers=1)
  with pytest.raises(ValueError, match='reference_fingerprint: was'):
    training.train(dataclasses.replace(whole, reference=str(folder / 'other')))


def test_harmless_changes_go_on_and_questionable_ones_are_reported(whole, caplog):
  with caplog.at_level('WARNING', 'absl'):
    training.train(dataclasses.replace(whole, log_every=3, optimizer='chain(adamw(2e-3))'))
  assert "config.optimizer was 'adamw(5e-4)' and is now 'chain(adamw(2e-3))'" in caplog.text
  assert 'log_every' not in caplog.text
  training.train(whole)  # gives the folder its configuration back


@pytest.mark.slow  # loop_test.py stops at an infinite loss, exit_codes_test.py has its code
def test_an_infinite_loss_ends_the_run_with_exit_code_3(folder, capsys):
  config = make_config(folder, 'diverged', optimizer='adamw(1e38)', gradient_clip=0.0, eval_data=(), save_every=1)
  assert attempt(config) == exit_codes.NOT_FINITE
  assert 'error: step ' in capsys.readouterr().err
  assert not (folder / 'diverged' / 'model').exists()
