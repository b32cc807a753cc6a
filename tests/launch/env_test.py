"""launch/env.sh: flags of each chip, and how they reach a program."""

import os
import stat
import subprocess
import sys

import pytest

from tests.launch import scripts

SCRIPT = scripts.LAUNCH / 'env.sh'
TPU = ('v4', 'v5e', 'v5p', 'v6e', 'v7x')


def printed(chip: str, **variables: str) -> dict[str, str]:
  result = scripts.run(SCRIPT, '--print', chip, **{'HOME': '/home/me'} | variables)
  assert result.returncode == 0, result.stderr
  return dict(line.split('=', 1) for line in result.stdout.splitlines())


@pytest.mark.parametrize('chip', TPU)
def test_tpu(chip):
  values = printed(chip)
  assert set(values) == {'JAX_COMPILATION_CACHE_DIR', 'LIBTPU_INIT_ARGS'}
  flags = values['LIBTPU_INIT_ARGS'].split()
  expected = {'v5p': 65472, 'v6e': 98304, 'v7x': 65536}
  assert flags == ([f'--xla_tpu_scoped_vmem_limit_kib={expected[chip]}'] if chip in expected else [])
  several = printed(chip, SLICES='2')['LIBTPU_INIT_ARGS'].split()
  assert several[: len(flags)] == flags
  assert [flag.partition('=')[0] for flag in several[len(flags) :]] == [
    '--xla_tpu_enable_data_parallel_all_reduce_opt',
    '--xla_tpu_data_parallel_opt_different_sized_ops',
  ]


def test_gpu():
  assert printed('gpu') == {
    'JAX_COMPILATION_CACHE_DIR': '/home/me/.cache/alignjax/xla',
    'XLA_FLAGS': '--xla_gpu_enable_latency_hiding_scheduler=true ',
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.9',
    'NCCL_DEBUG': 'WARN',
  }
  assert set(printed('cpu')) == {'JAX_COMPILATION_CACHE_DIR'}


def test_your_own_settings_win():
  mine = {'XLA_FLAGS': '--mine=1 --xla_gpu_enable_latency_hiding_scheduler=false', 'NCCL_DEBUG': 'INFO'}
  values = printed('gpu', **mine, XLA_PYTHON_CLIENT_MEM_FRACTION='0.5', JAX_COMPILATION_CACHE_DIR='/c')
  assert values['XLA_FLAGS'].endswith(mine['XLA_FLAGS'])  # the last one counts
  assert values['NCCL_DEBUG'] == 'INFO'
  assert values['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.5'
  assert values['JAX_COMPILATION_CACHE_DIR'] == '/c'
  assert printed('v6e', LIBTPU_INIT_ARGS='--mine=1')['LIBTPU_INIT_ARGS'].endswith('kib=98304 --mine=1')


@pytest.mark.parametrize(
  ('name', 'chip'), [('v5litepod-16', 'v5e'), ('v6e-8', 'v6e'), ('v5p-128', 'v5p'), ('v4-8', 'v4'), ('tpu7x', 'v7x')]
)
def test_accelerator_types(name, chip):
  assert printed(name) == printed(chip)


def test_jax_knows_the_flags_for_gpus():
  """XLA aborts a process that sets unknown flags, and names all of them."""
  flags = printed('gpu', DETERMINISTIC='1')['XLA_FLAGS']
  assert '--xla_gpu_deterministic_ops=true' in flags
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{flags} --xla_gpu_nonsense=1'}
  program = 'from jaxlib import xla_client; xla_client.make_cpu_client()'
  result = subprocess.run(
    [sys.executable, '-c', program], env=environment, capture_output=True, text=True, timeout=60, check=False
  )
  assert result.stderr.strip().endswith('Unknown flag in XLA_FLAGS: --xla_gpu_nonsense=1')


def test_runs_a_command_in_its_place(tmp_path):
  result = scripts.run(
    SCRIPT, 'v6e', 'bash', '-c', 'echo "$LIBTPU_INIT_ARGS"; echo "$@"; exit 7', 'x', 'a b', HOME=str(tmp_path)
  )
  assert result.returncode == 7
  assert result.stdout.splitlines() == ['--xla_tpu_scoped_vmem_limit_kib=98304', 'a b']
  assert stat.S_IMODE((tmp_path / '.cache' / 'alignjax' / 'xla').stat().st_mode) == 0o700


def test_is_sourced(tmp_path):
  text = 'source launch/env.sh gpu; echo "$NCCL_DEBUG"; source launch/env.sh h200 || echo "code $?"; echo alive'
  result = subprocess.run(
    ['bash', '-c', text],
    cwd=scripts.ROOT,
    env=scripts.environment(HOME=str(tmp_path)),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout.split('\n') == ['WARN', 'code 1', 'alive', '']
  assert "unknown chip 'h200'" in result.stderr
