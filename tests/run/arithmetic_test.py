"""The type of activations that suits a machine."""

import os
import time

import jax
import pytest

from alignjax.run import arithmetic


@pytest.mark.parametrize(
  ('environment', 'plugins', 'flags'),
  [
    ({}, (), f'--xla_a=1 {arithmetic.FLAG}'),
    ({}, ('cuda13',), '--xla_a=1'),
    ({'JAX_PLATFORMS': 'cpu'}, ('cuda13',), f'--xla_a=1 {arithmetic.FLAG}'),
  ],
)
def test_the_flag_is_added_once_to_those_of_the_user_unless_there_may_be_an_accelerator(
  monkeypatch, environment, plugins, flags
):
  monkeypatch.delenv('JAX_PLATFORMS')
  for name, value in (environment | {'XLA_FLAGS': '--xla_a=1'}).items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(arithmetic.importlib.metadata, 'entry_points', lambda group: plugins)
  monkeypatch.setattr(arithmetic.importlib.util, 'find_spec', lambda name: None)
  arithmetic.prepare()
  arithmetic.prepare()
  assert os.environ['XLA_FLAGS'] == flags


@pytest.mark.parametrize(
  ('backend', 'features', 'slower', 'expected'),
  [
    ('gpu', set(), 'float32', 'bfloat16'),
    ('cpu', {'avx2', 'avx512f'}, 'float32', 'float32'),  # it would emulate bfloat16
    ('cpu', {'avx512_bf16'}, 'float32', 'bfloat16'),
    ('cpu', {'amx_bf16'}, 'bfloat16', 'float32'),
  ],
)
def test_auto_is_the_faster_type(monkeypatch, backend, features, slower, expected):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(arithmetic, 'cpu_features', lambda: features)
  monkeypatch.setattr(arithmetic, '_product', lambda dtype: lambda: time.sleep(0.02 if dtype == slower else 0.001))
  assert arithmetic.resolve('auto') == expected
  assert [arithmetic.resolve(dtype) for dtype in ('float32', 'bfloat16')] == ['float32', 'bfloat16']


def test_the_products_that_are_timed_have_the_two_types():
  assert [arithmetic._product(dtype)().dtype for dtype in ('float32', 'bfloat16')] == ['float32', 'bfloat16']


def test_features_are_read_from_cpuinfo(tmp_path):
  cpuinfo = tmp_path / 'cpuinfo'
  assert arithmetic.cpu_features(cpuinfo) == set()
  cpuinfo.write_text('processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx512_bf16 sse\n\nprocessor\t: 1\n')
  assert arithmetic.cpu_features(cpuinfo) == {'fpu', 'avx512_bf16', 'sse'}
  cpuinfo.write_text('processor\t: 0\nFeatures\t: neon\n')
  assert arithmetic.cpu_features(cpuinfo) == set()
