"""Runs of two processes that find each other by their environment, and of two that were started differently."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from alignjax import exit_codes
from alignjax.commands import program, train
from alignjax.run import command_line, settings, training
from alignjax.training import metrics, owner
from tests import runs

ROOT = pathlib.Path(__file__).parents[2]


def free_port(candidates: range) -> int:
  for port in candidates:
    with socket.socket() as probe:
      if probe.connect_ex(('localhost', port)):
        return port
  raise AssertionError('no port is free')


def start(config: settings.Config, output: pathlib.Path, **environment: str) -> subprocess.Popen:
  """A training process with two virtual devices and no flags about its cluster."""
  flat, default = settings.flat(config), settings.flat(settings.Config())
  flags = [f'--{name}={value}' for name, value in flat.items() if value != default[name]]
  xla_flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  with output.open('w') as stream:
    return subprocess.Popen(
      [sys.executable, '-m', 'alignjax', 'train', '--local_devices=2', *flags],
      cwd=ROOT,
      env=os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ' '.join(xla_flags)} | environment,
      stdout=stream,
      stderr=subprocess.STDOUT,
    )


def finish(processes: list[subprocess.Popen]) -> list[int]:
  try:
    return [process.wait(timeout=240) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()


@pytest.mark.slow  # clusters_test.py reads the variables, and train_test.py joins two processes
def test_the_variables_of_slurm_make_one_run_which_keeps_its_folder(tiny_run, tmp_path, capsys):
  job = free_port(range(61440, 65535)) - 61440  # JAX derives the port from the id of the job
  config = runs.make_config(tiny_run, tmp_path / 'run', steps=2, eval_data=(), save_every=0)
  processes = [
    start(
      config,
      tmp_path / f'log{i}',
      SLURM_JOB_ID=str(job),
      SLURM_STEP_NODELIST='localhost',
      SLURM_NTASKS='2',
      SLURM_PROCID=str(i),
      SLURM_LOCALID=str(i),
    )
    for i in (0, 1)
  ]
  while not (tmp_path / 'run' / owner.FILE).exists() and all(process.poll() is None for process in processes):
    time.sleep(0.02)
  begin = time.monotonic()
  assert program.attempt(train.PROGRAM, command_line.Invocation(config)) == exit_codes.REFUSED
  assert time.monotonic() - begin < 5
  assert f'belongs to a run that is alive (process {processes[0].pid} on' in capsys.readouterr().err
  codes = finish(processes)
  log = (tmp_path / 'log0').read_text()
  assert codes == [0, 0], log + (tmp_path / 'log1').read_text()
  assert 'processes 2' in log
  assert [record['step'] for record in metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')] == [1, 2]
  assert (tmp_path / 'run' / 'model' / 'config.json').exists()
  assert not (tmp_path / 'run' / owner.FILE).exists()


# agreement_test.py compares the statements, clusters_test.py reads the variables, train_test.py joins two processes.
@pytest.mark.slow
def test_processes_that_were_started_differently_name_every_difference(tiny_run, tmp_path):
  """As pods of an indexed Job, with work directories of their own."""
  address = f'localhost:{free_port(range(45000, 46000))}'
  runs.write_pairs(tmp_path / 'other.jsonl', 61, seed=5)
  first = runs.make_config(tiny_run, tmp_path / 'run', steps=2, eval_data=())
  other = {'seed': 1, 'objective': 'ipo()', 'data': (str(tmp_path / 'other.jsonl'),)}
  second = runs.make_config(tiny_run, tmp_path / 'local', steps=2, eval_data=(), **other)
  processes = [
    start(config, tmp_path / f'log{i}', COORDINATOR_ADDRESS=address, NUM_PROCESSES='2', JOB_COMPLETION_INDEX=str(i))
    for i, config in enumerate((first, second))
  ]
  codes = finish(processes)
  logs = [(tmp_path / f'log{i}').read_text() for i in (0, 1)]
  assert codes == [exit_codes.REFUSED] * 2, logs
  for log in logs:
    assert 'Traceback' not in log
    lines = log.partition('error: the processes of this run differ:\n')[2].splitlines()
    assert lines[:2] == [
      '  config.seed: 0 on process 0, 1 on process 1',
      "  config.objective: 'dpo(beta=0.1)' on process 0, 'ipo()' on process 1",
    ]
    assert [line.split(':')[0] for line in lines[2:4]] == ['  data_fingerprint', '  workdir id']
    assert lines[3].endswith('none on process 1')
    assert lines[4].startswith('Start all of them with the same command')
  assert not (tmp_path / 'run').exists()
  assert not (tmp_path / 'local').exists()


def test_a_run_that_has_lost_its_folder_ends_with_one_message_and_exit_code_1(tiny_run, tmp_path, monkeypatch, capsys):
  def lose(config):
    raise owner.OwnerError('another run has taken over')

  monkeypatch.setattr(training, 'train', lose)
  config = runs.make_config(tiny_run, tmp_path / 'run')
  assert program.attempt(train.PROGRAM, command_line.Invocation(config)) == exit_codes.REFUSED
  assert capsys.readouterr().err.startswith('error: another run has taken over\n')
