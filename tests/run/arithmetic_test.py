"""The flag for bfloat16, and whether a CPU has instructions for it."""

import os

import pytest

from alignjax.run import xla_flags


@pytest.mark.parametrize(
  ('features', 'fast'), [({'avx2', 'avx512f'}, False), ({'avx512_bf16'}, True), ({'amx_bf16'}, True)]
)
def test_the_flag_is_added_to_those_of_the_user(monkeypatch, features, fast):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  monkeypatch.setattr(xla_flags, 'cpu_features', lambda: features)
  assert xla_flags.enable_bfloat16() == fast
  assert os.environ['XLA_FLAGS'].split() == ['--xla_cpu_enable_fast_math=false', xla_flags.FLAG]


def test_features_are_read_from_cpuinfo(tmp_path):
  cpuinfo = tmp_path / 'cpuinfo'
  assert xla_flags.cpu_features(cpuinfo) == set()
  cpuinfo.write_text('processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx512_bf16 sse\n\nprocessor\t: 1\n')
  assert xla_flags.cpu_features(cpuinfo) == {'fpu', 'avx512_bf16', 'sse'}
  cpuinfo.write_text('processor\t: 0\nFeatures\t: neon\n')
  assert xla_flags.cpu_features(cpuinfo) == set()
