"""launch/jobset.yaml and launch/jobset.sh, around a stand-in for kubectl."""

import copy

import jsonschema
import pytest
import yaml

from alignjax import exit_codes
from tests.launch import jobset_schema, scripts

SCRIPT = scripts.LAUNCH / 'jobset.sh'
SLICE = ('run', '--tpu=v5e', '--topology=4x4', '--image=registry/alignjax:tpu')


def manifest(*arguments: str) -> dict:
  result = scripts.run(SCRIPT, *arguments)
  assert result.returncode == 0, result.stderr
  return yaml.safe_load(result.stdout)


def job_of(document: dict) -> dict:
  return document['spec']['replicatedJobs'][0]['template']['spec']


def pod_of(document: dict) -> dict:
  return job_of(document)['template']['spec']


@pytest.fixture(scope='module')
def document():
  return manifest(
    *SLICE, '--slices=3', '--restarts=7', '--queue=team', '--claim=disk', '--dry-run', '--', '--model=m', '--workdir=/w'
  )


def test_follows_the_schema(document):
  jsonschema.Draft202012Validator.check_schema(jobset_schema.JOBSET)
  jsonschema.validate(document, jobset_schema.JOBSET)


def spoil(document: dict, path: str, value) -> dict:
  document = copy.deepcopy(document)
  *parents, last = [int(key) if key.isdigit() else key for key in path.split('/')]
  place = document
  for key in parents:
    place = place[key]
  if value is None:
    del place[last]
  else:
    place[last] = value
  return document


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    ('spec/failurePolicy/rules/0/name', None),  # required since v0.6
    ('spec/failurePolicy/rules/0/action', 'Fail'),
    ('spec/failurePolicy/maxRestart', 3),
    ('spec/replicatedJobs/0/parallelism', 4),
    ('spec/replicatedJobs/0/template/spec/template/spec/grace', 300),
    ('spec/replicatedJobs/0/template/spec/template/spec/containers/0/image', None),
    ('apiVersion', 'jobset.x-k8s.io/v1alpha1'),
  ],
)
def test_the_schema_refuses_mistakes(document, path, value):
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(spoil(document, path, value), jobset_schema.JOBSET)


def test_slices_hosts_and_restarts(document):
  assert document['metadata'] == {
    'name': 'run',
    'labels': {'kueue.x-k8s.io/queue-name': 'team'},
    'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
  }
  assert document['spec']['failurePolicy']['maxRestarts'] == 7
  assert document['spec']['replicatedJobs'][0]['replicas'] == 3
  job, pod = job_of(document), pod_of(document)
  assert (job['parallelism'], job['completions'], job['backoffLimit']) == (4, 4, 0)
  assert pod['restartPolicy'] == 'Never'
  assert pod['hostNetwork'] is True
  assert pod['dnsPolicy'] == 'ClusterFirstWithHostNet'
  assert pod['terminationGracePeriodSeconds'] == 300
  (container,) = pod['containers']
  assert container['command'] == ['launch/env.sh', 'v5e', 'python', '-u', '-m', 'alignjax', 'train']
  assert container['args'] == ['--model=m', '--workdir=/w']
  assert container['env'] == [{'name': 'SLICES', 'value': '3'}]
  assert container['volumeMounts'][1] == {'name': 'files', 'mountPath': '/mnt'}
  assert pod['volumes'][1] == {'name': 'files', 'persistentVolumeClaim': {'claimName': 'disk'}}
  assert container['resources'] == {'limits': {'google.com/tpu': 4}}


def test_exit_codes(document):
  """The codes that fail the Job for good are those that forbid a restart. 130 cannot come from a pod's own Ctrl-C."""
  (rule,) = job_of(document)['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['operator'] == 'NotIn'
  restarted = rule['onExitCodes']['values']
  assert restarted == [42, *range(127, 256)]  # as xpk
  for code, (_, restart) in exit_codes.MEANINGS.items():
    if code not in (exit_codes.DONE, exit_codes.INTERRUPTED):
      assert (code in restarted) == restart.startswith('yes')
  assert document['spec']['failurePolicy']['rules'] == [
    {'name': 'doNotRestart', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
  ]


@pytest.mark.parametrize(
  ('tpu', 'topology', 'accelerator', 'hosts', 'chips'),
  [
    ('v5e', '1x1', 'tpu-v5-lite-podslice', 1, 1),
    ('v5e', '2x4', 'tpu-v5-lite-podslice', 1, 8),
    ('v5e', '16x16', 'tpu-v5-lite-podslice', 64, 4),
    ('v6e', '8x8', 'tpu-v6e-slice', 16, 4),
    ('v5p', '2x2x2', 'tpu-v5p-slice', 2, 4),
    ('v4', '2x2x1', 'tpu-v4-podslice', 1, 4),
    ('v7x', '4x4x4', 'tpu7x', 16, 4),
  ],
)
def test_topologies(tpu, topology, accelerator, hosts, chips):
  document = manifest('run', f'--tpu={tpu}', f'--topology={topology}', '--image=i', '--dry-run', '--', '--m')
  jsonschema.validate(document, jobset_schema.JOBSET)
  assert job_of(document)['completions'] == hosts
  pod = pod_of(document)
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology,
  }
  assert pod['containers'][0]['resources'] == {'limits': {'google.com/tpu': chips}}
  assert len(pod['volumes']) == len(pod['containers'][0]['volumeMounts']) == 1  # without a claim


def test_arguments_arrive_as_they_are():
  arguments = [
    '--objective=ra_dpo(risk=cvar(0.97)) + 0.1 * sft()',
    '--a="b" \\n',
    '--c=${NAME}',
    "--d='",
    '--e=: #',
    '--f=ü',
  ]
  assert pod_of(manifest(*SLICE, '--dry-run', '--', *arguments))['containers'][0]['args'] == arguments
  result = scripts.run(SCRIPT, *SLICE, '--dry-run', '--', 'a\nb')
  assert result.returncode == 1
  assert 'control character' in result.stderr


@pytest.mark.parametrize(
  'arguments',
  [
    (),
    ('Run', *SLICE[1:], '--', '--m'),
    (*SLICE,),
    (*SLICE, '--tpu=v9', '--', '--m'),
    (*SLICE, '--topology=4', '--', '--m'),
    (*SLICE, '--topology=3x2', '--', '--m'),
    (*SLICE, '--slices=0', '--', '--m'),
    ('run', '--tpu=v5e', '--topology=4x4', '--', '--m'),
    (*SLICE, '--nonsense', '--', '--m'),
  ],
)
def test_explains_itself_when_misused(arguments):
  result = scripts.run(SCRIPT, *arguments, stand_ins=['kubernetes'])
  assert result.returncode == 1
  assert 'launch/jobset.sh NAME --tpu=v5e' in result.stderr


def launch(tmp_path, states: str, pods: str = '') -> tuple[int, str, list[str]]:
  (tmp_path / 'states').write_text(states)
  (tmp_path / 'pods').write_text(pods)
  result = scripts.run(
    SCRIPT,
    *SLICE,
    '--',
    '--m',
    stand_ins=['kubernetes'],
    STAND_IN=str(tmp_path),
    POLL_SECONDS='0',
    LOGS=str(tmp_path / 'logs'),
  )
  return result.returncode, result.stderr, [line.split()[0] for line in (tmp_path / 'calls').read_text().splitlines()]


def test_follows_a_run_to_its_end(tmp_path):
  code, error, calls = launch(tmp_path, '\n\n\nCompleted\n', 'run-slice-0-0-a 0\nrun-slice-0-1-b 0\n')
  assert code == 0, error
  assert calls == [
    'get',
    'apply',
    *('get', 'get', 'logs'),
    *('get', 'get'),
    'get',
    'get',
    'logs',
    'logs',
  ]  # its log once
  jsonschema.validate(yaml.safe_load((tmp_path / 'applied').read_text()), jobset_schema.JOBSET)
  assert sorted(path.name for path in (tmp_path / 'logs').iterdir()) == ['run-slice-0-0-a.log', 'run-slice-0-1-b.log']


def test_ends_with_the_code_of_the_run(tmp_path):
  code, error, _ = launch(tmp_path, '\nFailed\n', 'run-slice-0-0-a 134\nrun-slice-0-1-b 3\nrun-slice-0-2-c\n')
  assert code == 3
  assert 'failed, exit code 3' in error


def test_a_run_that_has_ended_is_replaced(tmp_path):
  code, _, calls = launch(tmp_path, 'Failed\nCompleted\n', 'p 0\n')
  assert code == 0
  assert calls[:4] == ['get', 'delete', 'apply', 'get']


def test_delete(tmp_path):
  arguments = ('run', '--delete')
  assert scripts.run(SCRIPT, *arguments, '--dry-run').stdout == 'kubectl delete jobset run --ignore-not-found\n'
  assert scripts.run(SCRIPT, *arguments, stand_ins=['kubernetes'], STAND_IN=str(tmp_path)).returncode == 0
  assert (tmp_path / 'calls').read_text() == 'delete jobset run --ignore-not-found\n'
