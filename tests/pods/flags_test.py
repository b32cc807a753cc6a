"""Every TPU flag of `launch/env.sh` is one that the pinned libtpu knows."""

import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import pytest

from tests.pods import topologies

pytestmark = pytest.mark.slow

ENV = pathlib.Path(__file__).parents[2] / 'launch' / 'env.sh'
SLICES = {'v4': 'v4:2x2x1', 'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2', 'v7x': 'tpu7x:2x2x1'}


def flags_of(chip):
  """The compiler flags of a chip in a run of several slices, as options of a compilation."""
  clean = {name: value for name, value in os.environ.items() if name != 'LIBTPU_INIT_ARGS'} | {'SLICES': '2'}
  lines = subprocess.run([ENV, '--print', chip], env=clean, capture_output=True, text=True, check=True).stdout
  flags = next(line for line in lines.splitlines() if line.startswith('LIBTPU_INIT_ARGS=')).split('=', 1)[1].split()
  return dict(flag.removeprefix('--').split('=') for flag in flags)


def compile_for(name, options):
  sharding = jax.sharding.SingleDeviceSharding(topologies.devices(name)[0])
  array = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding)
  return jax.jit(lambda x: x + 1).lower(array).compile(compiler_options=options)


@pytest.mark.parametrize('chip', SLICES)
def test_the_flags_of_a_chip_are_known(chip):
  flags = flags_of(chip)
  assert len(flags) >= 2
  compile_for(SLICES[chip], {name: {'true': True, 'false': False}.get(value, value) for name, value in flags.items()})


def test_an_unknown_flag_is_refused():
  with pytest.raises(jax.errors.JaxRuntimeError, match='xla_tpu_no_such_flag'):
    compile_for('v5e:2x2', {'xla_tpu_no_such_flag': True})
