"""Finds the cluster that a process belongs to, from its flags or its environment.

  Open MPI       OMPI_COMM_WORLD_SIZE, set by mpirun
  Slurm          SLURM_STEP_NODELIST and four other variables, set by srun
  TPU            TPU_WORKER_HOSTNAMES on Kubernetes, the metadata server on TPU VMs
  indexed Job    COORDINATOR_ADDRESS, NUM_PROCESSES and JOB_COMPLETION_INDEX, on Kubernetes

JAX itself finds the coordinator in the first three. The variables of a Job are not standardised except the last one,
which Kubernetes sets; the manifest sets the other two.
"""

from collections.abc import Callable, Mapping
import importlib.util
import os
import pathlib
import re
from typing import Any, NamedTuple
import urllib.error
import urllib.request

_SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
_TPU = ('TPU_PROCESS_ADDRESSES_PATH', 'TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES')

Metadata = Callable[[str], str | None]


class Cluster(NamedTuple):
  """Several processes that run together."""

  name: str  # for messages: 'Slurm step 12.0'
  processes: int
  coordinator: str  # for messages: the address of process 0, or where it runs
  arguments: Mapping[str, Any]  # arguments of `jax.distributed.initialize`; JAX finds the others


def given(coordinator: str, num_processes: int, process_id: int) -> Cluster | None:
  """The cluster that flags describe; None for a single process.

  Args:
    coordinator: address of process 0, 'host:port'; the same for all processes.
    num_processes: number of processes in the run.
    process_id: index of this process, from 0.

  Raises:
    ValueError: the arguments contradict each other.
  """
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise ValueError(f'process_id={process_id} must be from 0 to num_processes - 1, with num_processes={num_processes}')
  if num_processes > 1 and not coordinator:
    raise ValueError(f'num_processes={num_processes} needs the address of process 0: coordinator=host:port')
  if num_processes == 1 and coordinator:
    raise ValueError(f'coordinator={coordinator} requires num_processes > 1, not {num_processes}: set num_processes')
  if num_processes == 1:
    return None
  _check_address('coordinator', coordinator)
  arguments = {'coordinator_address': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  return Cluster('the cluster of --coordinator', num_processes, coordinator, arguments)


def query_metadata(key: str) -> str | None:
  """An attribute of a TPU VM from its metadata server; None elsewhere, or if there is no such attribute."""
  # JAX sets TPU_SKIP_MDS_QUERY when it is imported on a machine without TPU chips.
  has_tpu = 'TPU_LIBRARY_PATH' in os.environ or importlib.util.find_spec('libtpu') is not None
  if not has_tpu or 'TPU_SKIP_MDS_QUERY' in os.environ:
    return None
  server = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
  url = f'http://{server}/computeMetadata/v1/instance/attributes/{key}'
  request = urllib.request.Request(url, headers={'Metadata-Flavor': 'Google'})
  for _ in range(3):
    try:
      with urllib.request.urlopen(request, timeout=5) as response:
        return response.read().decode()
    except urllib.error.HTTPError as error:
      if error.code == 404:
        return None
    except OSError:
      continue
  return None


def detect(environment: Mapping[str, str], metadata: Metadata = query_metadata) -> Cluster | None:
  """The cluster that the environment describes; None for a single process.

  Args:
    environment: environment variables.
    metadata: returns an attribute of a TPU VM, or None.

  Raises:
    ValueError: variables of a cluster are missing or malformed.
  """
  # The order in which JAX looks for clusters.
  found = (
    _open_mpi(environment) or _slurm(environment) or _tpu(environment, metadata) or _indexed_job(environment) or None
  )
  return found if found and found.processes > 1 else None


def refuse_separate_tasks(environment: Mapping[str, str]) -> None:
  """Raises a ValueError in a Slurm step of several tasks, which must not run as separate processes."""
  tasks = _slurm_tasks(environment)
  if tasks > 1:
    raise ValueError(
      f'this Slurm step has {tasks} tasks, and each of them would train on its own and write to the same folder: give '
      '--cluster=auto to join them; to start separate runs, give each its own step with srun --ntasks=1'
    )


def _open_mpi(environment: Mapping[str, str]) -> Cluster | None:
  size = _integer(environment, 'OMPI_COMM_WORLD_SIZE', 1)
  if size == 1:
    return None
  uri = environment.get('OMPI_MCA_orte_hnp_uri')  # absent from version 5 on
  version = environment.get('OMPI_VERSION', '').partition('.')[0]
  recent = int(version) >= 5 if version.isdigit() else uri is None
  if recent and importlib.util.find_spec('mpi4py') is None:
    raise ValueError(
      'Open MPI 5 passes no address of process 0: install mpi4py, or give --coordinator=host:port, --num_processes and '
      '--process_id'
    )
  address = re.search(r'tcp://([^,:]+)', uri or '')
  alone = environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'
  return Cluster('Open MPI', size, address[1] if address else 'the host of rank 0', _devices(alone))


def _slurm_tasks(environment: Mapping[str, str]) -> int:
  """The number of tasks in this Slurm step; 1 outside a step. SLURM_NTASKS alone may be that of the job."""
  name = 'SLURM_STEP_NUM_TASKS' if 'SLURM_STEP_NUM_TASKS' in environment else 'SLURM_NTASKS'
  in_step = name == 'SLURM_STEP_NUM_TASKS' or 'SLURM_STEP_NODELIST' in environment
  return _integer(environment, name, 1) if in_step else 1


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
  tasks = _slurm_tasks(environment)
  if tasks == 1:
    return None
  missing = [name for name in _SLURM if name not in environment]
  if missing:
    raise ValueError(
      f'this Slurm step has {tasks} tasks, but {", ".join(missing)} is not set: start the tasks with srun, or give '
      '--coordinator=host:port, --num_processes and --process_id'
    )
  name = f'Slurm step {environment["SLURM_JOB_ID"]}.{environment.get("SLURM_STEP_ID", "0")}'
  alone = re.fullmatch(r'1(\(x\d+\))?', environment.get('SLURM_STEP_TASKS_PER_NODE', '')) is not None
  return Cluster(name, tasks, f'the first host of {environment["SLURM_STEP_NODELIST"]}', _devices(alone))


def _devices(alone: bool) -> dict[str, Any]:
  """All devices of the host if the process is alone on it. Otherwise JAX gives each process one device."""
  return {'local_device_ids': []} if alone else {}


def _tpu(environment: Mapping[str, str], metadata: Metadata) -> Cluster | None:
  if environment.get('JAX_PLATFORMS') == 'cpu':
    return None
  hosts = next((environment[name] for name in _TPU if environment.get(name)), None)
  if environment.get(_TPU[0]):
    hosts = pathlib.Path(environment[_TPU[0]]).read_text(encoding='utf-8').strip()
  hosts = hosts or metadata('worker-network-endpoints')
  if not hosts:
    return None
  slices = environment.get('MEGASCALE_NUM_SLICES')
  if slices is None:
    described = re.search(r"MEGASCALE_NUM_SLICES:\s*'?(\d+)", metadata('tpu-env') or '')
    slices = described[1] if described else '1'
  workers = hosts.split(',')
  first = environment.get('MEGASCALE_COORDINATOR_ADDRESS') or workers[0].rpartition(':')[2]
  return Cluster('the TPU workers', len(workers) * int(slices), first, {})


def _indexed_job(environment: Mapping[str, str]) -> Cluster | None:
  coordinator = environment.get('COORDINATOR_ADDRESS')
  if not coordinator or 'JOB_COMPLETION_INDEX' not in environment:
    return None
  if 'NUM_PROCESSES' not in environment:
    raise ValueError(
      'COORDINATOR_ADDRESS and JOB_COMPLETION_INDEX are set, but NUM_PROCESSES is not: set it to the number of pods of '
      'the Job, or give --cluster=none to run this process alone'
    )
  count, index = (_integer(environment, name, 0) for name in ('NUM_PROCESSES', 'JOB_COMPLETION_INDEX'))
  if not 0 <= index < count:
    raise ValueError(f'JOB_COMPLETION_INDEX={index} must be from 0 to NUM_PROCESSES - 1, with NUM_PROCESSES={count}')
  _check_address('COORDINATOR_ADDRESS', coordinator)
  arguments = {'coordinator_address': coordinator, 'num_processes': count, 'process_id': index}
  return Cluster('the indexed Job', count, coordinator, {**arguments, 'cluster_detection_method': 'deactivate'})


def _integer(environment: Mapping[str, str], name: str, default: int) -> int:
  text = environment.get(name, str(default))
  if not text.isdecimal():
    raise ValueError(f'the environment variable {name}={text!r} must be a number')
  return int(text)


def _check_address(name: str, address: str) -> None:
  if not address.rpartition(':')[2].isdigit() or ':' not in address:
    raise ValueError(f'{name}={address!r} must be host:port')
