"""Finding the cluster of a process: environments as launchers set them, and arguments that do not fit."""

import importlib.util

import pytest

from alignjax.parallel import clusters

NO_METADATA = {}.get
SLURM = {
  'SLURM_JOB_ID': '70001',
  'SLURM_STEP_ID': '3',
  'SLURM_STEP_NODELIST': 'node[007-008]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '1',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
}
OPEN_MPI = {
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '0',
  'OMPI_COMM_WORLD_LOCAL_RANK': '0',
  'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
}
ORTE = {'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911'}
JOB = {'COORDINATOR_ADDRESS': 'train-0.train:8476', 'NUM_PROCESSES': '4', 'JOB_COMPLETION_INDEX': '2'}
GKE = {'TPU_WORKER_HOSTNAMES': 'a-0.a,a-1.a', 'TPU_WORKER_ID': '1'}


@pytest.mark.parametrize(
  ('environment', 'processes', 'coordinator', 'arguments'),
  [
    (SLURM, 4, 'the first host of node[007-008]', {}),
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x4)'}, 4, 'the first host of node[007-008]', {'local_device_ids': []}),
    (OPEN_MPI | ORTE, 2, '10.96.0.1', {}),
    (OPEN_MPI | ORTE | {'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, 2, '10.96.0.1', {'local_device_ids': []}),
    (GKE, 2, 'a-0.a', {}),
    (GKE | {'MEGASCALE_NUM_SLICES': '3', 'MEGASCALE_COORDINATOR_ADDRESS': 'b-0.b:8080'}, 6, 'b-0.b:8080', {}),
    (
      JOB,
      4,
      'train-0.train:8476',
      {
        'coordinator_address': 'train-0.train:8476',
        'num_processes': 4,
        'process_id': 2,
        'cluster_detection_method': 'deactivate',
      },
    ),
    (JOB | GKE, 2, 'a-0.a', {}),  # the runtime of TPUs numbers the processes itself
  ],
)
def test_environments_of_several_processes(environment, processes, coordinator, arguments):
  found = clusters.detect(environment, NO_METADATA)
  assert (found.processes, found.coordinator, dict(found.arguments)) == (processes, coordinator, arguments)


@pytest.mark.parametrize(
  'environment',
  [
    {},
    {'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0'},  # the script of a job, outside any step
    SLURM | {'SLURM_NTASKS': '1'},
    OPEN_MPI | {'OMPI_COMM_WORLD_SIZE': '1'},
    {'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'},
    GKE | {'JAX_PLATFORMS': 'cpu'},
    {'JOB_COMPLETION_INDEX': '1'},  # Kubernetes sets it in Jobs of independent pods, too
    JOB | {'NUM_PROCESSES': '1', 'JOB_COMPLETION_INDEX': '0'},
  ],
)
def test_environments_of_one_process(environment):
  assert clusters.detect(environment, NO_METADATA) is None
  clusters.refuse_separate_tasks(environment)


@pytest.mark.parametrize(('number', 'processes'), [(None, 4), ('2', 8)])
def test_a_tpu_vm_is_known_to_its_metadata_server(number, processes):
  attributes = {'worker-network-endpoints': 'unknown:unknown:10.0.0.2,x:y:10.0.0.3,x:y:10.0.0.4,x:y:10.0.0.5'}
  if number:
    attributes['tpu-env'] = f"ZONE: 'us-central1-a'\nMEGASCALE_NUM_SLICES: '{number}'\n"
  found = clusters.detect({}, attributes.get)
  assert (found.processes, found.coordinator) == (processes, '10.0.0.2')


def test_there_are_no_metadata_without_a_tpu(monkeypatch):
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  monkeypatch.setattr('urllib.request.urlopen', pytest.fail)
  assert clusters.query_metadata('worker-network-endpoints') is None


@pytest.mark.parametrize(
  ('environment', 'message'),
  [
    ({name: SLURM[name] for name in SLURM if name != 'SLURM_LOCALID'}, 'has 4 tasks, but SLURM_LOCALID is not set'),
    (SLURM | {'SLURM_NTASKS': 'four'}, "SLURM_NTASKS='four' must be a number"),
    ({name: JOB[name] for name in JOB if name != 'NUM_PROCESSES'}, 'but NUM_PROCESSES is not: set it to the number'),
    (JOB | {'JOB_COMPLETION_INDEX': '4'}, 'JOB_COMPLETION_INDEX=4 must be from 0 to NUM_PROCESSES - 1'),
    (JOB | {'COORDINATOR_ADDRESS': 'train-0.train'}, "COORDINATOR_ADDRESS='train-0.train' must be host:port"),
  ],
)
def test_incomplete_environments(environment, message):
  with pytest.raises(ValueError, match=message):
    clusters.detect(environment, NO_METADATA)


@pytest.mark.parametrize('version', [{}, {'OMPI_VERSION': '5.0.3'} | ORTE])
def test_open_mpi_5_needs_mpi4py(version, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='install mpi4py'):
    clusters.detect(OPEN_MPI | version, NO_METADATA)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert clusters.detect(OPEN_MPI | version, NO_METADATA).processes == 2


def test_the_tasks_of_a_slurm_step_are_not_run_apart():
  with pytest.raises(ValueError, match=r'this Slurm step has 4 tasks.*--cluster=auto.*srun --ntasks=1'):
    clusters.refuse_separate_tasks(SLURM)


def test_flags_of_one_process():
  assert clusters.given('', 1, 0) is None


def test_flags_of_several_processes():
  found = clusters.given('10.0.0.1:1234', 2, 1)
  assert dict(found.arguments) == {'coordinator_address': '10.0.0.1:1234', 'num_processes': 2, 'process_id': 1}


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('', 0, 0), 'num_processes=0'),
    (('localhost:1', 2, 2), 'process_id=2 must be from 0 to'),
    (('', 1, -1), 'process_id=-1 must be from 0 to'),
    (('', 2, 0), 'needs the address of process 0: coordinator=host:port'),
    (('localhost:1', 1, 0), 'coordinator=localhost:1 requires num_processes > 1'),
    (('localhost', 2, 0), "coordinator='localhost' must be host:port"),
    (('localhost:http', 2, 0), "coordinator='localhost:http' must be host:port"),
  ],
)
def test_flags_that_do_not_fit(flags, message):
  with pytest.raises(ValueError, match=message):
    clusters.given(*flags)
