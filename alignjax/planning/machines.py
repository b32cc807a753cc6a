"""Meshes of machines that are not here: abstract ones for estimates, and those of libtpu for compilation."""

import importlib.util
import os

import jax

from alignjax.parallel import mesh as parallel_mesh
from alignjax.planning import hardware
from alignjax.run import settings


def abstract(config: settings.MeshConfig, machine: hardware.Machine) -> jax.sharding.AbstractMesh:
  """The mesh of a run on a machine, without devices.

  Raises:
    ValueError: the mesh does not fit the machine.
  """
  slices = machine.slices if machine.topology else 1
  if config.slices not in (0, slices):
    raise ValueError(f'mesh.slices={config.slices}, but {machine} has {slices}: set mesh.slices={slices}')
  sizes = config.data, config.fsdp, config.tensor
  return parallel_mesh.abstract_mesh(sizes, machine.devices, slices, config.allow_dcn_fsdp)


def compilable(config: settings.MeshConfig, machine: hardware.Machine) -> jax.sharding.Mesh:
  """The mesh of a run on TPU slices that libtpu describes and compiles for. No TPU is needed.

  Raises:
    ValueError: the machine is no TPU slice, or libtpu is not installed.
  """
  if not machine.topology:
    raise ValueError(f'--compile needs a TPU topology, such as --topology=v5e:4x4, and got {machine}')
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      "--compile needs libtpu, which compiles for TPUs on any Linux machine: pip install 'alignjax[tpu]'"
    )
  # Otherwise libtpu looks for a TPU, and for the metadata server of a TPU VM.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-16')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  from jax.experimental import topologies  # it loads libtpu

  options = {} if machine.slices == 1 else {'num_slices': machine.slices}
  name = f'{machine.chip.name}:{machine.topology}'
  try:
    devices = topologies.get_topology_desc(platform='tpu', topology_name=name, **options).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'libtpu cannot describe {name}: {error}') from error
  if len(devices) != machine.devices:
    raise ValueError(
      f'libtpu describes {name} with {len(devices)} devices, and JAX uses {machine.devices} there: leave out --compile'
    )
  sizes = config.data, config.fsdp, config.tensor
  return parallel_mesh.make_mesh(*sizes, devices=devices, slices=config.slices, allow_dcn_fsdp=config.allow_dcn_fsdp)
