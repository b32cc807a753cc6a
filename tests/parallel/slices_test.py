"""Which process feeds which rows, and which axis crosses slices, for device orders of real slices and random ones."""

import math

import hypothesis
from hypothesis import strategies as st
from jax.experimental import mesh_utils
import numpy as np
import pytest

from alignjax.data.batches import batching
from alignjax.parallel import kernels, rules
from alignjax.parallel import mesh as parallel_mesh
from tests import devices

AXES = [(1, -1, 1), (1, -1, 4), (1, -1, 8), (2, -1, 1), (4, -1, 1)]  # (data, fsdp, tensor)

# Recorded with libtpu: whether each host holds one contiguous, aligned part of a batch; - for an impossible mesh.
CONTIGUOUS = {
  'v5e:2x2': 'yes yes - yes yes',
  'v5e:2x4': 'no yes yes yes yes',
  'v5e:4x4': 'no yes yes yes no',
  'v5e:4x8': 'no yes yes no no',
  'v5e:8x8': 'no yes yes no yes',
  'v5e:16x16': 'no yes yes no no',
  'v6e:2x2': 'yes yes - yes yes',
  'v6e:2x4': 'no yes yes yes yes',
  'v6e:4x4': 'no yes yes yes no',
  'v6e:4x8': 'no yes yes no no',
  'v6e:8x8': 'no yes yes no yes',
  'v6e:16x16': 'no yes yes no no',
  'v5p:2x2x1': 'yes yes - yes yes',
  'v5p:2x2x2': 'no yes yes yes yes',
  'v5p:2x2x4': 'no yes yes no yes',
  'v5p:2x4x4': 'no no yes no no',
  'v5p:4x4x4': 'no no yes no no',
  'v5p:4x4x8': 'no no no no no',
}


def make_mesh(chips, axes, **options):
  return parallel_mesh.make_mesh(*axes, devices=chips, **options)


def processes_of(mesh):
  return sorted({device.process_index for device in mesh.devices.flat})


def assert_rows_are_fed_where_they_are_held(mesh, per_shard=2):
  """Against the sharding of JAX."""
  rows = per_shard * parallel_mesh.batch_shards(mesh)
  held = {process: set() for process in processes_of(mesh)}
  for device, (index,) in rules.batch_sharding(mesh).devices_indices_map((rows,)).items():
    held[device.process_index] |= set(range(*index.indices(rows)))
  for process, expected in held.items():
    fed = batching.Share(*parallel_mesh.batch_shards_of(mesh, process)).rows(rows)
    assert fed.tolist() == sorted(expected)


@pytest.mark.parametrize('name', CONTIGUOUS)
def test_rows_of_one_slice(name):
  chips = devices.tpu_slices(name)
  for axes, expected in zip(AXES, CONTIGUOUS[name].split(), strict=True):
    if expected == '-':
      continue
    mesh = make_mesh(chips, axes)
    assert_rows_are_fed_where_they_are_held(mesh)
    shards = [parallel_mesh.batch_shards_of(mesh, process)[0] for process in processes_of(mesh)]
    parts = all(own == tuple(range(own[0], own[0] + len(own))) and own[0] % len(own) == 0 for own in shards)
    assert parts == (expected == 'yes'), axes  # so the stand-ins have the order of real devices


def test_a_host_of_a_torus_holds_rows_that_are_not_neighbours():
  assert parallel_mesh.batch_shards_of(make_mesh(devices.tpu_slices('v5e:8x8'), AXES[0]), 0) == ((0, 1, 8, 9), 64)


@pytest.mark.parametrize('name', CONTIGUOUS)
def test_rows_and_axes_of_two_slices(name):
  chips = devices.tpu_slices(name, 2)
  for axes in AXES:
    data, _, tensor = axes
    if tensor > len(chips) // 2:
      continue
    if data == 1:
      with pytest.raises(ValueError, match=f'fsdp={len(chips) // tensor} would cross slices'):
        make_mesh(chips, axes)
    mesh = make_mesh(chips, axes, allow_dcn_fsdp=data == 1)
    assert_rows_are_fed_where_they_are_held(mesh)
    outermost = mesh.devices.reshape(2, -1)  # the halves of `data`, or of `fsdp` where data = 1
    assert [{chip.slice_index for chip in half} for half in outermost] == [{0}, {1}]


def test_slices_are_arranged_like_jax_arranges_them():
  chips = devices.tpu_slices('v5e:4x4', 4)
  mesh = make_mesh(chips, (2, -1, 2), allow_dcn_fsdp=True)
  expected = mesh_utils.create_hybrid_device_mesh((1, 8, 2), (2, 2, 1), chips, allow_split_physical_axes=True)
  for found, wanted in zip(mesh.devices, expected, strict=True):
    assert {tuple(chip.id for chip in pair) for pair in found} == {tuple(chip.id for chip in pair) for pair in wanted}


@pytest.mark.parametrize('name', ['v5e:2x4', 'v5e:4x4', 'v5e:8x8', 'v5p:2x2x4', 'v5p:4x4x4'])
def test_an_fsdp_axis_over_a_slice_is_in_the_order_of_its_torus(name):
  """JAX arranges 16 chips as a ring, in which no reduce-scatter can go along one dimension after the other."""
  for slices in (1, 2):
    mesh = make_mesh(devices.tpu_slices(name, slices), (slices, -1, 1))
    sizes = [int(size) for size in name.split(':')[1].split('x')]
    assert [mesh.shape['fsdp'], *kernels.Parts.of(mesh).mesh.devices.shape[1:-1]] == [math.prod(sizes), *sizes]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  axes=st.tuples(*[st.integers(1, 4)] * 3), per_shard=st.integers(1, 3), seed=st.randoms(use_true_random=False)
)
def test_rows_of_random_processes(axes, per_shard, seed):
  count = math.prod(axes)
  owners = [seed.randrange(1 + count // 2) for _ in range(count)]
  mesh = make_mesh([devices.Processor(i, owner) for i, owner in enumerate(owners)], axes)
  assert_rows_are_fed_where_they_are_held(mesh, per_shard)
  rows = per_shard * parallel_mesh.batch_shards(mesh)
  fed = [batching.Share(*parallel_mesh.batch_shards_of(mesh, process)).rows(rows) for process in processes_of(mesh)]
  assert set(np.concatenate(fed)) == set(range(rows))


def test_a_process_without_a_device_has_no_rows():
  mesh = make_mesh([devices.Processor(i, 0) for i in range(2)], AXES[0])
  with pytest.raises(ValueError, match='process 1 has no device in the mesh of 2 devices'):
    parallel_mesh.batch_shards_of(mesh, 1)


def gpus(nodes, each=4, *, by='slice'):
  """Nodes whose ids alternate, as they may when processes connect in any order."""
  if by == 'slice':
    return [devices.Gpu(i, i, slice_index=i % nodes) for i in range(nodes * each)]  # a process for each GPU
  return [devices.Processor(i, i % nodes, 'gpu') for i in range(nodes * each)]


@pytest.mark.parametrize('by', ['slice', 'process'])
def test_nodes_of_gpus_stay_together_where_their_number_divides_data(by):
  place = {'slice': lambda gpu: gpu.slice_index, 'process': lambda gpu: gpu.process_index}[by]

  def nodes(*axes, **options):
    mesh = make_mesh(gpus(2, by=by), axes, **options)
    return [sorted({place(gpu) for gpu in replica.flat}) for replica in mesh.devices]

  assert nodes(2, 4, 1) == [[0], [1]]
  assert nodes(4, 2, 1) == [[0], [0], [1], [1]]
  assert nodes(1, 8, 1) == [[0, 1]]  # allowed: the network between nodes is fast enough
  assert nodes(2, 4, 1, slices=1) == [[0, 1]] * 2
  with pytest.raises(ValueError, match='fsdp=8 would cross slices'):
    nodes(1, 8, 1, slices=2)


def test_nodes_of_different_sizes_are_not_kept_together():
  uneven = [devices.Processor(i, int(i > 4), 'gpu') for i in range(8)]
  assert make_mesh(uneven, (2, 4, 1)).devices.ravel().tolist() == uneven


def test_hosts_of_cpus_are_slices_only_on_request():
  cpus = [devices.Gpu(i, i % 2, 'cpu', slice_index=i % 2) for i in range(8)]  # as `jax.distributed` describes hosts
  for axes in ((1, 8, 1), (2, 4, 1)):
    assert make_mesh(cpus, axes).devices.ravel().tolist() == cpus
  assert [{cpu.slice_index for cpu in half.flat} for half in make_mesh(cpus, (2, 4, 1), slices=2).devices] == [{0}, {1}]


def test_processes_serve_as_slices_on_request():
  cpus = [devices.Processor(i, i % 2) for i in range(8)]
  assert make_mesh(cpus, (2, 2, 2)).devices.ravel().tolist() == cpus
  mesh = make_mesh(cpus, (2, 2, 2), slices=2)
  assert [{cpu.process_index for cpu in half.flat} for half in mesh.devices] == [{0}, {1}]


@pytest.mark.parametrize(
  ('chips', 'options', 'message'),
  [
    (
      devices.tpu_slices('v5e:4x4', 2),
      {},
      'a mesh of data=1, fsdp=32, tensor=1 over 2 slices of 16 devices: fsdp=32 would cross slices.*multiple of 2, '
      'such as mesh.data=2 and mesh.fsdp=16, or accept the slow network with mesh.allow_dcn_fsdp=true',
    ),
    (devices.tpu_slices('v5e:4x4', 3), {'data': 2}, 'over 3 slices of 16 devices: fsdp=24 would cross.*mesh.data=3'),
    (
      devices.tpu_slices('v5e:2x2', 2),
      {'tensor': 8, 'allow_dcn_fsdp': True},
      'tensor=8 would cross.*multiple of 2 and mesh.tensor a divisor of 4$',
    ),
    (
      devices.tpu_slices('v5e:2x2', 2),
      {'slices': 1},
      'mesh.slices=1, but the number of slices is 2: set mesh.slices=2',
    ),
    (devices.tpu_slices('v5e:2x2'), {'slices': 2}, 'mesh.slices=2, but the number of slices is 1: set mesh.slices=1'),
    (devices.tpu_slices('v5e:2x2'), {'slices': -1}, 'mesh.slices=-1'),
    (
      [devices.Processor(i, 0) for i in range(4)],
      {'slices': 2},
      'the number of processes, which serve as slices here, is 1: set',
    ),
    (devices.tpu_slices('v5e:2x4', 2)[:12], {'data': 2}, r'the slices have \[4, 8\] devices: use slices of one size'),
    (
      devices.tpu_slices('v5e:4x4')[:6],
      {},
      "6 devices of kind 'TPU v5 lite' cannot be arranged as a mesh of data=1, fsdp",
    ),
    (
      [devices.Chip(i, 0, (i // 2 % 2, i // 4, 0), 0, 'TPU v4', core_on_chip=i % 2) for i in range(8)],
      {},
      "8 devices of kind 'TPU v4' cannot be arranged.*one device per chip",
    ),
    ([], {}, 'does not fit 0 devices'),
  ],
)
def test_impossible_meshes_are_refused_with_numbers_and_settings(chips, options, message):
  with pytest.raises(ValueError, match=message):
    parallel_mesh.make_mesh(devices=chips, **options)
