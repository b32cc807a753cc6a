"""Every command of launch/README.md runs, dry, around stand-ins that write down how they are called."""

import pathlib
import re
import shlex
import subprocess

import pytest

from tests.launch import scripts

README = (scripts.LAUNCH / 'README.md').read_text()

# Options of the programs that the page uses, from their own help. Those of gcloud are in gcloud_flags.json.
OPTIONS = {
  'docker': {'--file', '--build-arg', '--tag'},  # docker build
  'kubectl': {'--selector', '--prefix'},  # kubectl logs
  'sbatch': {'--nodes', '--time'},
  'scancel': {'--name'},
  'sky': {'--env', '--name'},  # sky jobs launch, sky jobs cancel
}


def commands() -> list[str]:
  blocks = re.findall(r'```sh\n(.*?)```', README, flags=re.DOTALL)
  return [line for block in blocks for line in re.sub(r'\\\n\s*', '', block).splitlines()]


def test_is_one_page_and_names_every_file():
  lines = README.splitlines()
  assert len(lines) <= 120
  (table,) = re.findall(r'\| file \|.*?\n\n', README, flags=re.DOTALL)
  files = {path.name for path in scripts.LAUNCH.iterdir() if path.is_file()}
  inside = {'README.md', 'common.sh', 'tpu.sh', 'tpu_worker.sh', 'Dockerfile.dockerignore'}
  assert set(re.findall(r'`([\w.]+)`', table)) == files - inside
  used = {word for line in commands() for word in re.findall(r'launch/([\w.]+)', line)}
  assert used == files - inside - {'jobset.yaml'}


@pytest.mark.parametrize('command', commands())
def test_command(command, tmp_path):
  for name in ('gcloud', *OPTIONS):
    recorder = tmp_path / name
    recorder.write_text(f'#!/usr/bin/env bash\nprintf "%q " {name} "$@" >> {tmp_path}/calls\n')
    recorder.chmod(0o755)
  environment = scripts.environment(DRY_RUN='1', HOME=str(tmp_path), LOGS=str(tmp_path / 'logs'))
  environment['PATH'] = f'{tmp_path}:{environment["PATH"]}'
  result = subprocess.run(
    ['bash', '-c', command], cwd=scripts.ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
  )
  assert result.returncode == 0, result.stderr
  calls = tmp_path / 'calls'
  called = shlex.split(calls.read_text()) if calls.exists() else []
  if command.startswith(('gcloud', *OPTIONS)):
    check(called)
  else:  # a script of ours: it only prints
    assert not called
    assert result.stdout
    for line in result.stdout.splitlines():
      if line.startswith('gcloud '):
        scripts.check_gcloud(line.removeprefix('gcloud '))


def check(called: list[str]) -> None:
  program, *arguments = called
  if program == 'gcloud':
    return scripts.check_gcloud(shlex.join(arguments))
  scripts_named = [word for word in arguments if word.startswith('launch/')]
  assert all((scripts.ROOT / word).exists() for word in scripts_named)
  own = arguments
  if program == 'sbatch':
    own = arguments[: arguments.index('launch/slurm.sbatch')]
    passed = arguments[len(own) + 1 :]
    assert (
      scripts.run(scripts.LAUNCH / 'slurm.sbatch', '--dry-run', *passed).stdout.strip().endswith(shlex.join(passed))
    )
  options = {word.partition('=')[0] for word in own if word.startswith('--')}
  assert options <= OPTIONS[program]
  for word in own:
    if word.startswith('--file='):
      assert pathlib.Path(scripts.ROOT, word.removeprefix('--file=')).exists()
  return None
