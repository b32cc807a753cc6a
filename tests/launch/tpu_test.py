"""launch/tpu_queued.sh and launch/tpu_vm.sh, around a stand-in for gcloud whose workers are folders of this machine."""

import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from tests import quick
from tests.launch import scripts

QUEUED = ('job', '--accelerator=v5litepod-16', '--runtime=v2-alpha-tpuv5-lite')
VM = ('job', '--accelerator=v6e-8', '--runtime=v2-alpha-tpuv6e')

# A worker's python -m alignjax train: appends its arguments to `runs`, and does what the test's file `trainer` says.
TRAINER = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$HOME/runs"
echo "flags: $LIBTPU_INIT_ARGS"
source "$STAND_IN/trainer"
"""


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A repository with what the workers need, as it is in the working tree."""
  folder = tmp_path_factory.mktemp('checkout')
  shutil.copytree(scripts.LAUNCH, folder / 'launch')
  for name in ('Makefile', 'requirements-tpu.lock'):
    shutil.copy(scripts.ROOT / name, folder)
  author = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false']
  for command in (['init', '-q'], ['add', '.'], [*author, 'commit', '-q', '-m', 'x']):
    subprocess.run(['git', *command], cwd=folder, check=True)
  return folder


@pytest.fixture
def cloud(tmp_path):
  """The folder of the stand-in."""
  (tmp_path / 'python').write_text(TRAINER)
  (tmp_path / 'python').chmod(0o755)
  return tmp_path


def variables(cloud: pathlib.Path, **more: str) -> dict[str, str]:
  return {
    'STAND_IN': str(cloud),
    'SOURCE': str(cloud / 'here'),
    'PYTHON': str(cloud / 'python'),
    'POLL_SECONDS': '0',
    'GRACE_SECONDS': '5',
    'BACKOFF_SECONDS': '0',
  } | more


def launch(
  checkout, cloud, script, *arguments, states='ACTIVE', trainer='exit 0', **more
) -> subprocess.CompletedProcess:
  (cloud / 'states').write_text('\n'.join(states.split()) + '\n')
  (cloud / 'trainer').write_text(trainer)
  (cloud / 'here').mkdir(exist_ok=True)
  script = checkout / 'launch' / script
  return scripts.run(script, *arguments, stand_ins=['tpu'], cwd=cloud / 'here', **variables(cloud, **more))


def calls(cloud: pathlib.Path) -> list[str]:
  """The commands without `compute tpus`, with a fixed commit and a fixed time, each described state once."""
  text = (cloud / 'calls').read_text().replace('compute tpus ', '')
  text = re.sub(r'alignjax-[0-9a-f]{12}', 'CODE', text)
  lines = re.sub(r'\d{8}T\d{6}', 'TIME', text).splitlines()
  return [line for i, line in enumerate(lines) if i == 0 or line != lines[i - 1]]


def test_queued_slice_from_creation_to_deletion(checkout, cloud):
  states = 'NONE WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING ACTIVE'
  trainer = 'echo "worker $WORKER"; exit 0'
  arguments = (*QUEUED, '--spot', '--delete', '--', '--model=a b', '--workdir=/mnt/x')
  result = launch(checkout, cloud, 'tpu_queued.sh', *arguments, states=states, trainer=trainer)
  assert result.returncode == 0, result.stderr
  assert 'worker 0' in result.stdout  # its log is shown
  assert 'worker 1' not in result.stdout
  states = [line for line in result.stderr.splitlines() if 'exit code' not in line]
  assert states == [
    'job: there is none',
    'job: WAITING_FOR_RESOURCES',
    'job: PROVISIONING',
    'job: ACTIVE',
  ]
  assert calls(cloud) == [
    'queued-resources describe job --format=value\\(state.state\\)',
    'queued-resources create job --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=job '
    '--spot --quiet',
    'queued-resources describe job --format=value\\(state.state\\)',
    'tpu-vm scp runs/launch/job/CODE.tar.gz job: --worker=all --quiet',
    'tpu-vm ssh job --worker=all --command=tar\\ --skip-old-files\\ -xzf\\ CODE.tar.gz\\ \\&\\&\\ bash\\ '
    'CODE/launch/tpu_worker.sh\\ install --quiet',
    'tpu-vm ssh job --worker=all --command=bash\\ CODE/launch/tpu_worker.sh\\ start\\ 1\\ v5litepod-16\\ '
    '--model=a\\\\\\ b\\ --workdir=/mnt/x --quiet',
    'tpu-vm ssh job --worker=0 --command=bash\\ CODE/launch/tpu_worker.sh\\ follow\\ +1 --quiet',
    'tpu-vm ssh job --worker=all --command=bash\\ CODE/launch/tpu_worker.sh\\ log '
    '--quiet --output-directory=runs/launch/job/TIME/job',
    'queued-resources delete job --force --quiet',
  ]
  for line in (cloud / 'calls').read_text().splitlines():
    scripts.check_gcloud(line)
  for worker in (0, 1):
    home = cloud / 'job' / str(worker)
    assert (home / 'runs').read_text() == '-u -m alignjax train --model=a\\ b --workdir=/mnt/x '
    venv, packages, package = (home / 'uv_calls').read_text().splitlines()
    assert venv.startswith('venv ')
    assert packages.endswith('--require-hashes --no-deps -r requirements-tpu.lock')
    assert package.endswith('--no-deps --editable .')
    (log,) = (cloud / 'here' / 'runs' / 'launch' / 'job').glob(f'*/job/{worker}.log')
    assert log.read_text().splitlines() == ['flags: ', f'worker {worker}', 'exit code 0']


def test_tpu_vm(checkout, cloud):
  arguments = (*VM, '--reserved', '--delete', '--', '--model=m')
  result = launch(checkout, cloud, 'tpu_vm.sh', *arguments, states='NONE CREATING READY', trainer='exit 3', WORKERS='1')
  assert result.returncode == 3, result.stderr
  assert 'flags: --xla_tpu_scoped_vmem_limit_kib=98304' in result.stdout
  found = calls(cloud)
  assert found[0] == 'tpu-vm describe job --format=value\\(state\\)'
  assert found[1] == 'tpu-vm create job --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e --reserved --quiet'
  assert found[-1] == 'tpu-vm delete job --quiet'
  for line in (cloud / 'calls').read_text().splitlines():
    scripts.check_gcloud(line)


def test_several_slices(checkout, cloud):
  arguments = (*QUEUED, '--slices=2', '--', '--model=m')
  trainer = 'echo "$SLICES slices"; if [[ $HOME == */job-1/1 ]]; then exit 1; fi; exit 134'
  result = launch(checkout, cloud, 'tpu_queued.sh', *arguments, states='NONE ACTIVE', trainer=trainer)
  assert result.returncode == 1  # the cause, not the crashes that follow
  assert '--xla_tpu_enable_data_parallel_all_reduce_opt=true' in result.stdout
  assert '2 slices' in result.stdout
  create = next(line for line in calls(cloud) if ' create ' in line)
  assert '--node-count=2 --node-prefix=job' in create
  assert len(list((cloud / 'here').glob('runs/launch/job/*/job-?/?.log'))) == 4
  for line in (cloud / 'calls').read_text().splitlines():
    scripts.check_gcloud(line)


@pytest.mark.parametrize('state', quick.first(1, ['SUSPENDED', 'FAILED']))
def test_slices_that_are_lost_are_created_again(checkout, cloud, state):
  states = f'{state} {state} NONE PROVISIONING ACTIVE'
  result = launch(checkout, cloud, 'tpu_queued.sh', *QUEUED, '--', '--m', states=states)
  assert result.returncode == 0, result.stderr
  found = [line.split()[1] for line in calls(cloud) if line.startswith('queued-resources')]
  assert found == ['describe', 'delete', 'describe', 'delete', 'describe', 'create', 'describe']


def test_new_slices_that_fail_allow_a_restart(checkout, cloud):
  result = launch(checkout, cloud, 'tpu_queued.sh', *QUEUED, '--', '--m', states='NONE PROVISIONING FAILED')
  assert result.returncode == 134
  assert 'job: the new slices are FAILED' in result.stderr
  (cloud / 'refuse').touch()
  result = launch(checkout, cloud, 'tpu_queued.sh', *QUEUED, '--', '--m', states='NONE')
  assert result.returncode == 134
  assert 'job: cannot create the slices' in result.stderr


def test_an_unknown_state_is_no_reason_to_create(checkout, cloud):
  (cloud / 'here').mkdir()
  (cloud / 'states').write_text('ERROR: (gcloud) UNAUTHENTICATED: log in\n')
  result = scripts.run(
    checkout / 'launch' / 'tpu_queued.sh',
    *QUEUED,
    '--',
    '--m',
    stand_ins=['tpu'],
    cwd=cloud / 'here',
    **variables(cloud),
  )
  assert result.returncode == 134
  assert 'UNAUTHENTICATED: log in' in result.stderr
  assert not [line for line in calls(cloud) if 'describe' not in line]


@pytest.mark.parametrize(
  ('unreachable', 'states', 'message'),
  [
    ('follow', 'ACTIVE SUSPENDED', 'job: the slices are SUSPENDED'),
    ('follow', 'ACTIVE NONE', 'job: the slices are gone'),
    ('follow', 'ACTIVE', 'job: cannot reach the first worker'),
    quick.slow(('install', 'ACTIVE', 'job: cannot install alignjax')),
    ('start', 'ACTIVE', 'job: cannot start the run'),
    quick.slow(('log', 'ACTIVE', 'job: cannot fetch the logs')),
  ],
)
def test_a_lost_connection_allows_a_restart(checkout, cloud, unreachable, states, message):
  (cloud / 'unreachable').write_text(f'tpu_worker.sh {unreachable}')
  result = launch(checkout, cloud, 'tpu_queued.sh', *QUEUED, '--', '--m', states=states, WORKERS='1')
  assert result.returncode == 134
  assert result.stderr.splitlines()[-1] == message


def test_babysit_brings_a_preempted_run_to_its_end(checkout, cloud):
  """It stops with 42 three times: its slices are still there, then suspended, then gone."""
  states = 'NONE ACTIVE  ACTIVE  SUSPENDED NONE ACTIVE  NONE ACTIVE'
  trainer = """
echo >> "$HOME/starts"
n=$(wc -l < "$HOME/starts")
if ((n > 1)); then echo "resuming from step $((n * 8)) in x"; fi
exit $((n < 4 ? 42 : 0))
"""
  command = (str(checkout / 'launch' / 'tpu_queued.sh'), *QUEUED, '--spot', '--', '--m')
  result = launch(checkout, cloud, 'babysit.sh', *command, states=states, trainer=trainer, WORKERS='1', RESTARTS='1')
  assert result.returncode == 0, result.stderr
  assert [line for line in result.stdout.splitlines() if 'resuming' in line] == [
    f'resuming from step {step} in x' for step in (16, 24, 32)
  ]
  verbs = [line.split()[1] for line in calls(cloud)]
  assert [verb for verb in verbs if verb in ('create', 'delete')] == ['create', 'delete', 'create', 'create']


def test_a_stop_reaches_all_workers(checkout, cloud):
  (cloud / 'states').write_text('ACTIVE\n')
  (cloud / 'trainer').write_text('trap "exit 42" TERM; touch "$HOME/ready"; while true; do sleep 0.05; done')
  (cloud / 'here').mkdir()
  with subprocess.Popen(
    [str(checkout / 'launch' / 'tpu_queued.sh'), *QUEUED, '--delete', '--', '--m'],
    cwd=cloud / 'here',
    env=scripts.environment('tpu', **variables(cloud)),
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    deadline = time.monotonic() + 20
    while len(list(cloud.glob('job/*/ready'))) < 2 and time.monotonic() < deadline:
      time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
  assert process.returncode == 42, error
  assert not [line for line in calls(cloud) if 'delete' in line]  # it is to be resumed


@pytest.mark.parametrize('code', quick.first(1, ['43', '130', '134']))
def test_slices_that_are_still_needed_are_kept(checkout, cloud, code):
  arguments = (*QUEUED, '--delete', '--', '--m')
  result = launch(checkout, cloud, 'tpu_queued.sh', *arguments, trainer=f'exit {code}', WORKERS='1')
  assert result.returncode == int(code)
  assert not [line for line in calls(cloud) if 'delete' in line]


def test_delete_alone(checkout, cloud):
  assert launch(checkout, cloud, 'tpu_queued.sh', 'job', '--delete').returncode == 0
  assert calls(cloud) == ['queued-resources delete job --force --quiet']


@pytest.mark.parametrize('script', ['tpu_queued.sh', 'tpu_vm.sh'])
def test_dry_run_changes_nothing(checkout, cloud, script):
  result = launch(checkout, cloud, script, *QUEUED, '--delete', '--dry-run', '--', '--model=m')
  assert result.returncode == 0, result.stderr
  assert not (cloud / 'calls').exists()
  assert not list((cloud / 'here').iterdir())
  printed = [line for line in result.stdout.splitlines() if line.startswith('gcloud ')]
  verbs = [shlex.split(line)[4] for line in printed]
  assert verbs == ['create', 'describe', 'scp', 'ssh', 'ssh', 'ssh', 'ssh', 'delete']
  for line in printed:
    scripts.check_gcloud(line.removeprefix('gcloud '))


@pytest.mark.parametrize(
  'arguments',
  [
    (),
    ('Job',),
    QUEUED,
    ('job', '--', '--m'),
    (*QUEUED, '--nonsense', '--', '--m'),
    (*QUEUED, '--slices=0', '--', '--m'),
  ],
)
def test_explains_itself_when_misused(checkout, cloud, arguments):
  result = launch(checkout, cloud, 'tpu_queued.sh', *arguments)
  assert result.returncode == 1
  assert 'launch/tpu_queued.sh NAME --accelerator=' in result.stderr


def test_tpu_vm_refuses_what_only_queued_resources_have(checkout, cloud):
  for option in ('--slices=2', '--guaranteed'):
    result = launch(checkout, cloud, 'tpu_vm.sh', *VM, option, '--dry-run', '--', '--m')
    assert result.returncode == 1
