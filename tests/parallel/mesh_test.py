"""The mesh, and which array lives where on it."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import pytest

from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules


def test_axes_are_named_and_automatic_and_one_size_takes_what_is_left():
  mesh = mesh_lib.make_mesh(data=2, fsdp=-1, tensor=2)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert mesh_lib.batch_shards(mesh) == 4


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ((3, 1, 1), 'data=3, fsdp=1, tensor=1 does not fit 8 devices'),
    ((3, -1, 1), 'data=3, fsdp=-1, tensor=1 does not fit 8 devices'),
    ((-1, -1, 1), 'except that one may be -1'),
    ((0, -1, 1), 'must be positive'),
  ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(sizes, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.make_mesh(*sizes)


@pytest.mark.parametrize(
  ('path', 'shape', 'spec'),
  [
    ('embed/embedding', (24, 16), PartitionSpec('tensor', 'fsdp')),
    ('unembed/kernel', (16, 24), PartitionSpec('fsdp', 'tensor')),
    ('layers/attention/query/kernel', (3, 16, 8), PartitionSpec(None, 'fsdp', 'tensor')),
    ('layers/attention/output/kernel', (3, 8, 16), PartitionSpec(None, 'tensor', 'fsdp')),
    ('layers/mlp/down/kernel', (3, 8, 18), PartitionSpec(None, 'tensor', None)),  # 4 does not divide 18
    ('layers/mlp_norm/scale', (3, 16), PartitionSpec(None, None)),
    ('layers/attention/key/bias', (3, 8), PartitionSpec(None, 'tensor')),
    ('layers/attention/key_norm/scale', (3, 8), PartitionSpec(None, None)),
  ],
)
def test_parameters_are_split_by_rule_where_the_mesh_divides_them(path, shape, spec):
  assert rules.partition_spec(path, shape, mesh_lib.make_mesh(1, 4, 2)) == spec


def test_a_parameter_without_a_rule_is_named():
  with pytest.raises(ValueError, match="no sharding rule matches the parameter 'layers/router/weights'"):
    rules.partition_spec('layers/router/weights', (4, 4), mesh_lib.make_mesh())


@pytest.mark.parametrize(
  ('axes', 'shape', 'shard'),
  [
    (('batch', None, None), (8, 3, 4), (2, 3, 4)),
    (('batch', None, None), (6, 3, 4), (6, 3, 4)),  # 4 shards do not divide 6 rows
    (('vocab', 'width'), (10, 4), (5, 2)),
    (('replica', None, 'width'), (8, 3, 4), (4, 3, 2)),  # columns of all prompts of a replica
    (('replica', None, 'width'), (8, 3, 5), (2, 3, 5)),  # nobody has columns of their own: prompts stay where they are
  ],
)
def test_activations_are_pinned_by_logical_axis(axes, shape, shard):
  constrain = rules.constraint(mesh_lib.make_mesh(2, 2, 2))
  placed = jax.jit(lambda x: constrain(x, axes))(jnp.zeros(shape))
  assert placed.sharding.shard_shape(shape) == shard


@pytest.mark.parametrize(
  ('shape', 'microbatches', 'expected'),
  [
    ((2, 4, 1), 3, 'into 3 microbatches and each of them over 8 shards (mesh.data=2 x mesh.fsdp=4)'),
    ((1, 8, 1), 1, 'over 8 shards (mesh.data=1 x mesh.fsdp=8)'),
    ((1, 1, 8), 2, 'into 2 microbatches'),
  ],
)
def test_what_divides_a_batch_is_named_without_what_does_not(shape, microbatches, expected):
  found = mesh_lib.describe_division(mesh_lib.make_mesh(*shape), microbatches)
  assert found == f'the batch is divided {expected}'
