"""Flags of XLA are set only where they have been seen to work."""

import os
import subprocess

import pytest

from alignjax.run import xla_flags


@pytest.fixture(autouse=True)
def flags_of_this_process(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')


def _cpu(monkeypatch, features: set[str]) -> None:
  monkeypatch.setattr(xla_flags, '_cpu_features', lambda: features)


def test_a_cpu_without_bfloat16_instructions_is_left_alone(monkeypatch):
  _cpu(monkeypatch, {'avx2', 'avx512f'})
  monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: pytest.fail('nothing is to be tried'))
  assert not xla_flags.enable_fast_bfloat16()
  assert os.environ['XLA_FLAGS'] == '--xla_cpu_enable_fast_math=false'


def test_flags_that_this_xla_refuses_are_not_set(monkeypatch):
  _cpu(monkeypatch, {'amx_bf16'})
  monkeypatch.setattr(xla_flags, 'FLAGS', ('--xla_flag_that_no_version_knows=true',))
  assert not xla_flags.enable_fast_bfloat16()
  assert os.environ['XLA_FLAGS'] == '--xla_cpu_enable_fast_math=false'


def test_flags_that_work_are_added_to_those_of_the_user(monkeypatch):
  _cpu(monkeypatch, {'avx512_bf16'})
  tried = []

  def run(command, env, **options):
    tried.append(env['XLA_FLAGS'])
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(subprocess, 'run', run)
  assert xla_flags.enable_fast_bfloat16()
  assert os.environ['XLA_FLAGS'].split() == ['--xla_cpu_enable_fast_math=false', *xla_flags.FLAGS]
  assert tried == [os.environ['XLA_FLAGS']]


def test_features_are_read_from_cpuinfo(tmp_path):
  cpuinfo = tmp_path / 'cpuinfo'
  assert xla_flags._cpu_features(cpuinfo) == set()
  cpuinfo.write_text('processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx512_bf16 sse\n\nprocessor\t: 1\n')
  assert xla_flags._cpu_features(cpuinfo) == {'fpu', 'avx512_bf16', 'sse'}
  cpuinfo.write_text('processor\t: 0\nFeatures\t: neon\n')
  assert xla_flags._cpu_features(cpuinfo) == set()
