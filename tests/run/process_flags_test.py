"""How the processes of a run find each other, and how they end."""

import os

import jax
import pytest

from alignjax.commands import program
from alignjax.run import process_flags
from tests.parallel import clusters_test

JOINED = {'coordinator': 'localhost:1', 'num_processes': 2, 'process_id': 1}


@pytest.fixture
def slurm(monkeypatch):
  for name, value in clusters_test.SLURM.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize('cluster', ['auto', 'flags'])
def test_flags_come_first(slurm, cluster):
  assert process_flags.Processes(cluster, **JOINED).find_cluster().coordinator == 'localhost:1'


def test_without_flags_the_environment_counts(slurm):
  assert process_flags.Processes().find_cluster().processes == 4


@pytest.mark.parametrize('cluster', ['none', 'flags'])
def test_the_tasks_of_a_slurm_step_are_not_run_apart(slurm, cluster):
  with pytest.raises(ValueError, match='this Slurm step has 4 tasks'):
    process_flags.Processes(cluster).join()


@pytest.mark.parametrize('cluster', ['auto', 'none', 'flags'])
def test_a_process_alone(cluster):
  assert process_flags.Processes(cluster).find_cluster() is None


def test_flags_that_contradict_each_other():
  with pytest.raises(ValueError, match='--cluster=none and --num_processes=2 differ'):
    process_flags.Processes('none', **JOINED).find_cluster()
  with pytest.raises(ValueError, match='--heartbeat = 0: must be at least 2'):
    process_flags.Processes(heartbeat=0).join()


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('train', []),
    ('doctor', []),
    ('sample', ['--model=m']),
    ('evaluate', ['--models=m', '--reference=m', '--prompts=p', '--reward=r', '--out=o']),
    ('merge', ['--method=linear()', '--models=a,b', '--out=c']),
  ],
)
def test_every_program_that_uses_devices_takes_the_flags(name, flags, capsys):
  chosen = program.lazy(name)
  assert program.execute(chosen, [name, *flags, '--cluster=flags', '--num_processes=2', '--process_id=1']) == 1
  assert 'num_processes=2 needs the address of process 0' in capsys.readouterr().err
  assert program.execute(chosen, [name, *flags, '--heartbeat=0']) == 1
  assert '--heartbeat = 0: must be at least 2' in capsys.readouterr().err


def test_virtual_devices_hide_tpus(monkeypatch):
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a,b')
  monkeypatch.delenv('JAX_PLATFORMS')
  assert process_flags.Processes().find_cluster().processes == 2
  assert process_flags.Processes(local_devices=4).find_cluster() is None


def test_a_cluster_that_cannot_be_joined_is_one_message_and_exit_code_134(monkeypatch, capsys):
  def leave(code):
    raise SystemExit(code)

  def fail(**given):
    raise RuntimeError('DEADLINE_EXCEEDED')

  monkeypatch.setattr(os, '_exit', leave)
  monkeypatch.setattr('jax.distributed.initialize', fail)
  with pytest.raises(SystemExit) as caught:
    process_flags.Processes(**JOINED, join_timeout=3).join()
  assert caught.value.code == 134
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: this process cannot join')
  assert 'coordinator localhost:1) within 3 s' in line


@pytest.mark.parametrize(
  ('joined', 'failed', 'how'), [(True, True, '_exit'), (True, False, 'exit'), (False, True, 'exit')]
)
def test_a_failed_process_does_not_wait_for_the_others(monkeypatch, joined, failed, how):
  """Whether or not flags have joined it."""

  def leave(code):
    raise SystemExit(f'_exit {code}')

  monkeypatch.setattr(os, '_exit', leave)
  monkeypatch.setattr(process_flags, '_OTHERS_LEAVE', 0)
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: joined)
  with pytest.raises(SystemExit) as caught:
    process_flags.Processes().leave(7, failed)
  assert caught.value.code == ('_exit 7' if how == '_exit' else 7)
