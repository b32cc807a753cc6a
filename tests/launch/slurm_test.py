"""launch/slurm.sbatch, around stand-ins for srun and scontrol."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import runs
from tests.launch import scripts

SCRIPT = scripts.LAUNCH / 'slurm.sbatch'


def start(tmp_path: pathlib.Path, *arguments: str, **variables: str) -> subprocess.Popen:
  """Starts the batch script as Slurm does: a copy of it, from another folder."""
  copy = tmp_path / 'slurm_script'
  copy.write_text(SCRIPT.read_text())
  copy.chmod(0o755)
  environment = scripts.environment('slurm', **variables) | {
    'HOME': str(tmp_path),
    'STAND_IN': str(tmp_path),
    'SLURM_JOB_ID': '4711',
    'SLURM_NTASKS': '2',
    'SLURM_SUBMIT_DIR': str(scripts.ROOT),
    'BACKOFF_SECONDS': '0',
  }
  environment['PATH'] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), environment['PATH']])
  return subprocess.Popen(
    [str(copy), *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def python(tmp_path: pathlib.Path, body: str) -> str:
  path = tmp_path / 'trainer'
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(0o755)
  return str(path)


def stop_tasks(tmp_path: pathlib.Path) -> None:
  """As Slurm does before the time limit."""
  for task in (tmp_path / 'tasks').read_text().split():
    os.kill(int(task), signal.SIGTERM)


def requeued(tmp_path: pathlib.Path) -> bool:
  calls = tmp_path / 'calls'
  return calls.exists() and calls.read_text() == 'scontrol requeue 4711\n'


def test_options():
  lines = re.findall(r'^#SBATCH (.*)$', SCRIPT.read_text(), flags=re.MULTILINE)
  assert {'--requeue', '--signal=TERM@120', '--ntasks-per-node=8', '--gpus-per-node=8'} <= set(lines)


def test_dry_run():
  result = scripts.run(SCRIPT, '--dry-run', '--model=a b')
  assert result.returncode == 0
  assert result.stdout == (
    'launch/babysit.sh srun --label --kill-on-bad-exit=1 launch/env.sh gpu .venv/bin/python -u -m alignjax train '
    '--cluster=auto --model=a\\ b\n'
  )


def test_every_task_gets_its_place_and_the_flags_of_its_chip(tmp_path):
  body = 'echo "$SLURM_PROCID of $SLURM_NTASKS: $XLA_FLAGS $*"'
  process = start(tmp_path, '--x=a b', PYTHON=python(tmp_path, body))
  output, _ = process.communicate(timeout=30)
  assert process.returncode == 0
  assert sorted(line for line in output.splitlines() if ' of ' in line) == [
    f'{i}: {i} of 2: --xla_gpu_enable_latency_hiding_scheduler=true -u -m alignjax train --cluster=auto --x=a b'
    for i in (0, 1)
  ]


@pytest.mark.parametrize(
  ('codes', 'code', 'again'), [('42', 42, True), ('3', 3, False), ('134 42', 42, True), ('134 0', 0, False)]
)
def test_goes_back_to_the_queue_after_42_and_restarts_in_place_after_a_crash(tmp_path, codes, code, again):
  (tmp_path / 'plan').write_text(codes.replace(' ', '\n') + '\n')
  body = f"""
if [[ $SLURM_PROCID == 1 ]]; then exit 0; fi
code=$(head -n 1 {tmp_path}/plan)
sed -i 1d {tmp_path}/plan
exit "$code"
"""
  process = start(tmp_path, '--x', PYTHON=python(tmp_path, body))
  process.communicate(timeout=30)
  assert process.returncode == code
  assert requeued(tmp_path) == again


def test_a_cancelled_job_is_not_requeued(tmp_path):
  body = f'trap "exit 42" TERM; touch {tmp_path}/ready$SLURM_PROCID; while true; do sleep 0.05; done'
  process = start(tmp_path, '--x', PYTHON=python(tmp_path, body))
  deadline = time.monotonic() + 20
  while len(list(tmp_path.glob('ready?'))) < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)  # Slurm signals the script, too
  stop_tasks(tmp_path)
  process.communicate(timeout=30)
  assert process.returncode == 42
  assert not requeued(tmp_path)


@pytest.mark.slow
def test_two_processes_train_are_stopped_and_end(tmp_path):
  """A real run of two processes: told to stop, requeued, resumed, done."""
  folder = runs.write_folder(tmp_path / 'files')
  arguments = [
    f'--model={folder / "model"}',
    f'--data={folder / "train.jsonl"}',
    f'--workdir={tmp_path / "run"}',
    '--steps=100000',
    '--batch_size=8',
    '--save_every=0',
    '--doctor=off',
    '--remat=none',
  ]
  variables = {
    'PYTHON': sys.executable,
    'PYTHONPATH': str(scripts.ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_COORDINATOR_PORT': '29471',
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
  }
  variables |= {
    name: value for name, value in os.environ.items() if name.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT'))
  }
  process = start(tmp_path, *arguments, **variables)
  seen = []
  for line in process.stdout:
    seen.append(line)
    if re.match(r'\d: .*\bstep +[1-9]', line):
      break
  stop_tasks(tmp_path)
  rest, _ = process.communicate(timeout=300)
  assert process.returncode == 42, ''.join(seen) + rest
  assert requeued(tmp_path)

  process = start(tmp_path, *arguments, '--steps=40', **variables)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert re.search(r'0: resuming from step \d+ in ', output)
  assert (tmp_path / 'run' / 'model' / 'model.safetensors').exists()
