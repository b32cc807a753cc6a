"""Products with kernels that devices share out: values, gradients, and what travels."""

import types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from alignjax.models import transformer
from alignjax.parallel import kernels, rules
from alignjax.parallel import mesh as mesh_lib

ROWS = rules.batch_sharding


def chips(*places):
  return np.array([types.SimpleNamespace(coords=place) for place in places])


@pytest.mark.parametrize(
  ('places', 'sizes'),
  [
    ([(x, y, 0) for x in range(2) for y in range(4)], [2, 4]),
    ([(x, y, z) for x in range(2) for y in range(2) for z in range(3)], [2, 2, 3]),
    ([(x, 0, 0) for x in range(4)], [4]),
    ([(x, y, 0) for y in range(4) for x in range(2)], [8]),  # another order: its parts would be those of other devices
    ([(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 2, 0)], [4]),  # no rectangle
  ],
)
def test_a_row_of_chips_is_split_by_the_dimensions_of_its_torus(places, sizes):
  assert kernels._torus(chips(*places)) == sizes


def test_devices_without_places_are_one_dimension():
  parts = kernels.Parts.of(mesh_lib.make_mesh(2, 2, 2))
  assert (parts.size, parts.replicas, parts.axes) == (2, 2, ('fsdp0',))


def two_dimensions(mesh, monkeypatch):
  """The parts of a mesh whose fsdp axis runs through a torus of 2 x 2."""
  monkeypatch.setattr(kernels, '_torus', lambda devices: [2, 2])
  return kernels.Parts.of(mesh)


@pytest.mark.parametrize('spec', [('fsdp', 'tensor'), ('tensor', 'fsdp')])
def test_a_product_and_its_gradients_are_those_of_the_whole_kernel(spec, monkeypatch):
  mesh = mesh_lib.make_mesh(1, 4, 2)
  parts = two_dimensions(mesh, monkeypatch)
  rng = np.random.default_rng(0)
  x, kernel, weight = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((8, 3, 16), (16, 8), (8, 3, 8)))
  placed = jax.device_put(x, ROWS(mesh)), jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*spec)))

  def value(x, kernel):
    return jnp.sum(weight * jnp.sin(x @ kernels.SplitKernel(kernel, kernels.Split(parts, spec))))

  program = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(*placed).compile()
  found, (d_x, d_kernel) = program(*placed)
  expected, wanted = jax.value_and_grad(lambda x, k: jnp.sum(weight * jnp.sin(x @ k)), argnums=(0, 1))(x, kernel)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(d_x, wanted[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(d_kernel, wanted[1], rtol=1e-5, atol=1e-5)
  assert d_kernel.sharding.shard_shape(d_kernel.shape) == placed[1].sharding.shard_shape(kernel.shape)
  assert program.as_text().count(' reduce-scatter(') == 2  # one for each dimension of the torus


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize('spec', [('fsdp', 'tensor'), ('tensor', 'fsdp')])
def test_products_of_bfloat16_compile_on_every_mesh(shape, spec):
  mesh = mesh_lib.make_mesh(*shape)
  x, kernel = jnp.full((8, 3, 16), 0.5, jnp.bfloat16), jnp.full((16, 8), 0.25)
  placed = jax.device_put(x, ROWS(mesh)), jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*spec)))
  split = kernels.Split(kernels.Parts.of(mesh), spec)

  def value(x, kernel):
    return jnp.sum((x @ kernels.SplitKernel(kernel, split)).astype(jnp.float32))

  found, (d_x, d_kernel) = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(*placed)
  assert (found, d_x.dtype) == (8 * 3 * 8 * 2.0, jnp.bfloat16)
  np.testing.assert_array_equal(d_x, jnp.full(x.shape, 2.0))
  np.testing.assert_array_equal(d_kernel, jnp.full(kernel.shape, 12.0))


def test_rows_that_do_not_divide_are_multiplied_by_the_whole_kernel():
  mesh = mesh_lib.make_mesh(1, 8, 1)
  x, kernel = jnp.ones((3, 4)), jnp.arange(32.0).reshape(4, 8)
  np.testing.assert_array_equal(
    x @ kernels.SplitKernel(kernel, kernels.Split(kernels.Parts.of(mesh), (None, 'fsdp'))), x @ kernel
  )


def test_terms_of_shards_are_summed_into_parts(monkeypatch):
  mesh = mesh_lib.make_mesh(2, 4, 1)
  two_dimensions(mesh, monkeypatch)
  terms = np.random.default_rng(0).standard_normal((8, 16, 3)).astype(np.float32)
  program = jax.jit(lambda x: kernels.total(x, mesh)).lower(jax.device_put(terms, ROWS(mesh))).compile()
  found = program(jax.device_put(terms, ROWS(mesh)))
  np.testing.assert_allclose(found, terms.sum(axis=0), rtol=1e-5, atol=1e-6)
  assert found.sharding.shard_shape(found.shape) == (4, 3)
  assert program.as_text().count(' reduce-scatter(') == 2
  for whole, where in ((terms, None), (terms[:, :5], mesh), (terms[:, 0, 0], mesh)):  # does not divide, and metrics
    np.testing.assert_allclose(kernels.total(whole, where), whole.sum(axis=0), rtol=1e-5, atol=1e-6)


def rounded_away(mesh):
  """[8, 1, 1] numbers in bfloat16, one on each device: their sum is 1 + 7/512 in float32, and 1 if it is rounded."""
  values = jnp.asarray([1.0, *[2.0**-9] * 7], jnp.bfloat16)[:, None, None]
  return jax.device_put(values, ROWS(mesh))


def test_devices_sum_the_gradient_of_a_kernel_in_float32():
  mesh = mesh_lib.make_mesh(1, 8, 1)
  kernel = jax.device_put(jnp.ones((8, 1)), NamedSharding(mesh, PartitionSpec('fsdp')))

  def total(kernel, x):
    return jnp.sum(jnp.tile(x, 8) @ kernels.SplitKernel(kernel, kernels.Split(kernels.Parts.of(mesh), ('fsdp', None))))

  gradient = jax.jit(jax.grad(total))(kernel, rounded_away(mesh))
  np.testing.assert_array_equal(gradient, np.full((8, 1), 1 + 7 / 512, np.float32))


def test_devices_sum_the_gradient_of_states_in_float32():
  mesh = mesh_lib.make_mesh(1, 8, 1)
  states = jax.device_put(jnp.ones((8, 1, 1), jnp.bfloat16), ROWS(mesh))
  # Parts of the vocabulary add 1.0078125, which bfloat16 holds, from eight numbers that it would round one by one.
  kernel = jax.device_put(
    jnp.asarray([[1.0, *[2.0**-9] * 4, 0.0, 0.0, 0.0]]), NamedSharding(mesh, PartitionSpec(None, 'fsdp'))
  )

  def total(states):
    return jnp.sum(states @ kernels.SplitHead(kernel, kernels.Parts.of(mesh)))

  gradient = jax.jit(jax.grad(total))(states)
  np.testing.assert_array_equal(np.float32(gradient), np.full((8, 1, 1), 1 + 2.0**-7))


@pytest.mark.parametrize('shape', [(1, 8, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_no_device_holds_an_embedding_or_its_gradient(shape):
  mesh = mesh_lib.make_mesh(*shape)
  constrain = rules.constraint(mesh)
  place = NamedSharding(mesh, rules.partition_spec('embed/embedding', (48, 16), mesh))
  table = jax.device_put(jnp.asarray(np.random.default_rng(0).standard_normal((48, 16)), jnp.float32), place)
  tokens = jax.device_put(np.arange(40, dtype=np.int32).reshape(8, 5) % 7, ROWS(mesh))
  module = types.SimpleNamespace(embedding=table)

  def total(table, tokens):
    module.embedding = table
    return jnp.sum(jnp.square(transformer.Embedding.__call__(module, tokens, constrain)))

  program = jax.jit(jax.value_and_grad(total), out_shardings=(None, place)).lower(table, tokens).compile()
  value, gradient = program(table, tokens)
  expected, wanted = jax.value_and_grad(lambda table: jnp.sum(jnp.square(table[tokens])))(np.asarray(table))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, wanted, rtol=1e-6)
  assert 'f32[48,16]' not in program.as_text()
