"""The program with which weights leave the devices of a slice, compiled for one, needs little memory there."""

import jax
import jax.numpy as jnp
import pytest

from alignjax.models import pieces
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from tests.pods import topologies

pytestmark = pytest.mark.slow

UP = (80, 8192, 28672)  # Llama 3 70B: layers, width, feed-forward width
GIB = 2**30


@pytest.mark.parametrize('shape', [(1, 64, 1), (1, 16, 4)])
def test_exporting_the_up_kernels_of_70b_takes_little_memory_on_a_chip(shape):
  mesh = parallel_mesh.make_mesh(*shape, devices=topologies.devices('v5e:8x8'))
  spec = rules.partition_spec('layers/up/kernel', UP, mesh)
  sharding = jax.sharding.NamedSharding(mesh, spec)
  block = (1, UP[1], pieces.PIECE // (4 * UP[1]))  # rows of the stored tensor, which is transposed
  kernels = jax.ShapeDtypeStruct(UP, jnp.float32, sharding=sharding)
  start = jax.ShapeDtypeStruct((3,), jnp.int32, sharding=rules.replicated(mesh))
  memory = pieces._gather_program(sharding, 3, block).lower(kernels, start).compile().memory_analysis()
  assert memory.argument_size_in_bytes >= 80 * 8192 * 28672 * 4 // 64  # the chip's own part, which is there anyway
  assert memory.peak_memory_in_bytes - memory.argument_size_in_bytes <= 0.6 * GIB
