"""Runs the launchers, around stand-ins for the programs that they call."""

import json
import os
import pathlib
import shlex
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
STAND_INS = pathlib.Path(__file__).parent / 'stand_ins'
GCLOUD_FLAGS = json.loads((pathlib.Path(__file__).parent / 'gcloud_flags.json').read_text())
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])


def environment(*stand_ins: str, **variables: str) -> dict[str, str]:
  """The environment of a script: no variables of this machine, and stand-ins before the programs of the system."""
  folders = [*(str(STAND_INS / name) for name in stand_ins), '/usr/local/bin', '/usr/bin', '/bin']
  return {'PATH': os.pathsep.join(folders), 'HOME': '/nonexistent', 'LC_ALL': 'C.UTF-8'} | variables


def run(script: pathlib.Path, *arguments: str, stand_ins=(), cwd=ROOT, **variables: str) -> subprocess.CompletedProcess:
  """Runs a script to its end."""
  return subprocess.run(
    [str(script), *arguments],
    env=environment(*stand_ins, **variables),
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def check_gcloud(line: str) -> None:
  """Checks the flags of a command line, without the word gcloud, against the reference of gcloud."""
  words = shlex.split(line)
  known = f'{GCLOUD_FLAGS[" ".join(words[:4])]} {GCLOUD_FLAGS["every command"]}'.split()
  unknown = [word for word in words if word.startswith('--') and word.partition('=')[0] not in known]
  assert not unknown, f'{line}: {unknown}'
