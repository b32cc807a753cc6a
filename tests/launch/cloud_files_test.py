"""launch/skypilot.yaml, launch/Dockerfile, and the locked requirements that they install."""

import json
import re
import subprocess

import pytest
import yaml

from tests.launch import scripts

LOCKS = {
  chip: scripts.ROOT / name
  for chip, name in {'cpu': 'requirements.lock', 'gpu': 'requirements-gpu.lock', 'tpu': 'requirements-tpu.lock'}.items()
}


def pins(chip: str) -> dict[str, str]:
  return dict(re.findall(r'^([A-Za-z0-9_.-]+)==([^ ;\\]+)', LOCKS[chip].read_text(), flags=re.MULTILINE))


def test_locks_agree():
  """All machines run the versions that the tests run, above all the same JAX."""
  cpu = pins('cpu')
  setup = (scripts.ROOT / 'setup.py').read_text()
  for chip, extra in {'gpu': 'jax[cuda13]', 'tpu': 'jax[tpu]'}.items():
    found = pins(chip)
    assert found['jax'] == cpu['jax']
    assert f"'{chip}': ['{extra}=={cpu['jax']}']" in setup, (
      f'run make lock after changing the pin of {extra} in setup.py'
    )
    assert {name: version for name, version in found.items() if name in cpu and cpu[name] != version} == {}
  assert 'libtpu' in pins('tpu')
  assert pins('gpu')['jax-cuda13-plugin'] == cpu['jax']


@pytest.mark.parametrize('chip', LOCKS)
def test_locks_are_hashed_and_name_no_index(chip):
  text = LOCKS[chip].read_text()
  entries = re.split(r'\n(?=\S)', text.strip())
  assert len(entries) > 50
  for entry in entries:
    assert re.match(r'[A-Za-z0-9_.-]+==\S+( ; .*)? \\\n( +--hash=sha256:[0-9a-f]{64}( \\\n|$))+$', entry), entry[:80]
  assert not re.search(r'https?://|--index|--extra-index|--find-links', text)


@pytest.fixture(scope='module')
def task():
  return yaml.safe_load((scripts.LAUNCH / 'skypilot.yaml').read_text())


def test_skypilot_fields(task):
  """The fields of SkyPilot 0.14's schemas of a task and its resources that are in use."""
  assert set(task) == {'name', 'resources', 'num_nodes', 'workdir', 'envs', 'setup', 'run'}
  assert task['resources'] == {
    'accelerators': 'H100:8',
    'use_spot': True,
    'job_recovery': {'recover_on_exit_codes': [42, 134, 137]},
  }
  assert task['num_nodes'] == 2
  assert task['workdir'] == '.'
  assert task['envs'] == {'ARGUMENTS': None}  # SkyPilot asks for it


@pytest.mark.parametrize(
  ('nodes', 'cluster'),
  [
    ('1', ['--cluster=flags']),
    ('2', ['--cluster=flags', '--coordinator=10.0.0.1:8476', '--num_processes=2', '--process_id=1']),
  ],
)
def test_skypilot_run(task, tmp_path, nodes, cluster):
  (tmp_path / 'launch').symlink_to(scripts.LAUNCH)
  python = tmp_path / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$NCCL_DEBUG" "$@"\nexit 42\n')
  python.chmod(0o755)
  variables = {
    'SKYPILOT_NUM_NODES': nodes,
    'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2',
    'SKYPILOT_NODE_RANK': '1',
    'ARGUMENTS': "--model=m --objective='ra_dpo(risk=cvar(0.97), beta=0.1)'",
    'HOME': str(tmp_path),
  }
  result = subprocess.run(
    ['bash', '-c', task['run']],
    cwd=tmp_path,
    env=scripts.environment(**variables),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 42, result.stderr
  arguments = ['--model=m', '--objective=ra_dpo(risk=cvar(0.97), beta=0.1)']
  assert result.stdout.splitlines() == ['WARN', '-u', '-m', 'alignjax', 'train', *cluster, *arguments]


def test_skypilot_setup(task, tmp_path):
  (tmp_path / 'Makefile').symlink_to(scripts.ROOT / 'Makefile')
  for name in ('pip', 'uv'):
    (tmp_path / name).write_text(f'#!/usr/bin/env bash\necho "{name} $@"\n')
    (tmp_path / name).chmod(0o755)
  path = f'{tmp_path}:{scripts.environment()["PATH"]}'
  result = subprocess.run(
    ['bash', '-c', task['setup']], cwd=tmp_path, env={'PATH': path}, capture_output=True, text=True, check=True
  )
  pip, venv, packages, package = result.stdout.splitlines()
  assert re.fullmatch(r'pip install --quiet uv==\d+\.\d+\.\d+', pip)
  assert venv.startswith('uv venv ')
  assert packages.endswith('--require-hashes --no-deps -r requirements-gpu.lock')
  assert package.endswith('--no-deps --editable .')


def instructions() -> list[tuple[str, str]]:
  text = re.sub(r'\\\n', ' ', (scripts.LAUNCH / 'Dockerfile').read_text())
  return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith('#')]


def test_dockerfile():
  found = instructions()
  names = [name for name, _ in found]
  assert set(names) <= {'FROM', 'ARG', 'RUN', 'WORKDIR', 'COPY', 'ENV', 'USER', 'ENTRYPOINT'}
  (base,) = (value for name, value in found if name == 'FROM')
  assert re.fullmatch(r'python:3\.12-slim-\w+', base)  # a fixed tag, never latest
  assert names.index('USER') < names.index('ENTRYPOINT') == len(names) - 1
  assert dict(found)['USER'].isdigit()  # Kubernetes can check that it is not root
  assert json.loads(dict(found)['ENTRYPOINT']) == ['python', '-m', 'alignjax']  # the exec form: SIGTERM reaches Python
  (pip,) = (value for name, value in found if name == 'RUN' and value.startswith('pip '))
  options = set(pip.split()[2:])
  assert options == {'--no-cache-dir', '--require-hashes', '--no-deps', '--requirement=requirements-${CHIP}.lock'}
  assert ('ARG', 'CHIP=gpu') in found


def test_dockerfile_copies_what_exists_and_is_sent():
  sent = [line[1:] for line in (scripts.LAUNCH / 'Dockerfile.dockerignore').read_text().splitlines() if line[0] == '!']
  for name, value in instructions():
    if name == 'COPY':
      for chip in ('gpu', 'tpu'):
        source = value.split()[0].replace('${CHIP}', chip)
        assert (scripts.ROOT / source).exists()
        assert source in sent or source.startswith('requirements-')
  assert 'requirements-*.lock' in sent
