"""Rules for all launchers."""

import pathlib
import re
import subprocess
import sys

import pytest

from alignjax import exit_codes
from tests.launch import scripts

PARTS = ('common.sh', 'tpu.sh')  # sourced, never run
PROGRAMS = [script for script in scripts.SCRIPTS if script.name not in PARTS]
FILES = sorted(path for path in scripts.LAUNCH.iterdir() if path.is_file())


def test_shellcheck():
  stand_ins = [path for path in scripts.STAND_INS.glob('*/*') if path.read_text().startswith('#!/usr/bin/env bash')]
  shellcheck = pathlib.Path(sys.executable).with_name('shellcheck')
  checked = [*scripts.SCRIPTS, scripts.ROOT / '.ci' / 'run', *stand_ins]
  result = subprocess.run([shellcheck, '-x', *checked], cwd=scripts.ROOT, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize('script', PROGRAMS, ids=lambda path: path.name)
def test_is_strict_executable_and_explains_itself(script):
  assert 'set -euo pipefail' in script.read_text()
  nonsense = () if script.suffix == '.sbatch' else ('--nonsense',)  # a batch script passes all arguments on
  result = scripts.run(script, *nonsense)
  assert result.returncode == 1
  assert f'launch/{script.name}' in result.stderr
  assert 'set -euo' not in result.stderr


def test_parts_are_not_programs():
  for name in PARTS:
    text = (scripts.LAUNCH / name).read_text()
    assert text.startswith('# shellcheck shell=bash\n')
    assert (scripts.LAUNCH / name).stat().st_mode & 0o111 == 0


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_names_no_project_zone_or_bucket(path):
  text = path.read_text()
  assert not re.search(r'--(project|zone|region)\b|\b(gs|s3)://\w|\b(us|europe|asia)-[a-z]+\d-[a-f]\b|\bgcr\.io/', text)


def test_restarts_follow_the_exit_codes_of_the_programs():
  yes = [code for code, (_, restart) in exit_codes.MEANINGS.items() if restart.startswith('yes')]
  assert yes == [42, 134, 137]
  assert 'RESTART_ON=${RESTART_ON:-42 134 137}' in (scripts.LAUNCH / 'babysit.sh').read_text()
  assert 'recover_on_exit_codes: [42, 134, 137]' in (scripts.LAUNCH / 'skypilot.yaml').read_text()
  common = (scripts.LAUNCH / 'common.sh').read_text()
  for name in ('PREEMPTED', 'INTERRUPTED', 'CRASHED'):
    assert f'\n{name}={getattr(exit_codes, name)}\n' in common


@pytest.mark.parametrize(
  ('codes', 'code'),
  [
    ('0 0', 0),
    ('42 42', 42),
    ('42 130', 130),
    ('0 42', 42),
    ('134 1 134', 1),
    ('42 3 134', 3),
    ('134 43', 43),
    ('42 137', 137),
    ('255 134', 255),
    ('', 134),
  ],
)
def test_exit_code_of_a_run(codes, code):
  command = f'source launch/common.sh; exit_code_of {codes}'
  output = subprocess.run(['bash', '-c', command], cwd=scripts.ROOT, capture_output=True, text=True, check=True).stdout
  assert int(output) == code
