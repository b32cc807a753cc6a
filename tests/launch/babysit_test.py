"""launch/babysit.sh, around a script that ends as the test says."""

import signal
import subprocess
import time

import pytest

from tests.launch import scripts

SCRIPT = scripts.LAUNCH / 'babysit.sh'

# Each run takes the next line of the file `plan`: an exit code, and the step that it resumes from.
TRAINER = """#!/usr/bin/env bash
cd "$(dirname "$0")"
read -r code step < plan
sed -i 1d plan
echo "$@" >> runs
if [[ -n $step ]]; then echo "0: resuming from step $step in /runs/x"; fi
exit "$code"
"""


@pytest.fixture
def trainer(tmp_path):
  """A function that writes the plan, and returns the trainer."""

  def write(*plan: str) -> str:
    (tmp_path / 'plan').write_text('\n'.join(plan) + '\n')
    (tmp_path / 'trainer').write_text(TRAINER)
    (tmp_path / 'trainer').chmod(0o755)
    return str(tmp_path / 'trainer')

  return write


def babysit(trainer: str, **variables: str) -> subprocess.CompletedProcess:
  return scripts.run(SCRIPT, trainer, 'a b', **{'BACKOFF_SECONDS': '0'} | variables)


@pytest.mark.parametrize('code', [0, 1, 3, 43, 130, 7])
def test_stops_where_a_restart_does_not_help(trainer, tmp_path, code):
  result = babysit(trainer('42', f'{code} 10', '0'))
  assert result.returncode == code
  assert (tmp_path / 'runs').read_text().splitlines() == ['a b'] * 2


def test_restarts_while_there_are_new_checkpoints(trainer):
  result = babysit(trainer('42', '134 10', '137 20', '42 30', '134 40', '0 50'), RESTARTS='1')
  assert result.returncode == 0
  assert result.stdout.splitlines() == [f'0: resuming from step {step} in /runs/x' for step in (10, 20, 30, 40, 50)]
  assert result.stderr.count('starting again in 0 s') == 5


def test_gives_up_without_progress(trainer, tmp_path):
  result = babysit(trainer('42', '134 20', '134 20', '134 20', '134 20', '0'), RESTARTS='2')
  assert result.returncode == 134
  assert (
    'giving up after 2 restarts without a new checkpoint (the newest is of step 20); exit code 134' in result.stderr
  )
  assert len((tmp_path / 'runs').read_text().splitlines()) == 4


def test_gives_up_without_a_first_checkpoint(trainer):
  result = babysit(trainer('134', '134', '134'), RESTARTS='1')
  assert result.returncode == 134
  assert 'giving up after 1 restarts without a new checkpoint (there is none)' in result.stderr


def test_backs_off(trainer, tmp_path):
  (tmp_path / 'sleep').write_text('#!/bin/sh\n')
  (tmp_path / 'sleep').chmod(0o755)
  path = f'{tmp_path}:{scripts.environment()["PATH"]}'
  plan = ['134'] * 8 + ['134 5', '134 5', '0']
  result = babysit(trainer(*plan), RESTARTS='9', BACKOFF_SECONDS='10', PATH=path)
  delays = [int(line.split()[-2]) for line in result.stderr.splitlines()]
  assert delays == [10, 20, 40, 80, 160, 320, 600, 600, 10, 20]


def test_which_codes_restart_can_be_set(trainer):
  assert babysit(trainer('134', '42'), RESTART_ON='134 137').returncode == 42


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_passes_a_stop_on_and_does_not_restart(tmp_path, number, code):
  trainer = tmp_path / 'trainer'
  trainer.write_text(f"""#!/usr/bin/env bash
trap 'echo saving; exit 42' TERM
echo x >> {tmp_path}/runs
while true; do sleep 0.05; done
""")
  trainer.chmod(0o755)
  with subprocess.Popen(
    [
      'python3',
      '-c',
      'import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])',
      str(SCRIPT),
      str(trainer),
    ],
    stdout=subprocess.PIPE,
    env=scripts.environment(BACKOFF_SECONDS='0'),
    text=True,
  ) as process:
    deadline = time.monotonic() + 20
    while not (tmp_path / 'runs').exists() and time.monotonic() < deadline:
      time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
  assert process.returncode == code
  assert output == 'saving\n'
  assert (tmp_path / 'runs').read_text() == 'x\n'


def test_a_stop_ends_the_wait_for_a_restart(trainer):
  with subprocess.Popen(
    [str(SCRIPT), trainer('134')], stderr=subprocess.PIPE, env=scripts.environment(BACKOFF_SECONDS='30'), text=True
  ) as process:
    assert 'starting again in 30 s' in process.stderr.readline()
    process.terminate()
    assert process.wait(timeout=10) == 134


def test_dry_run():
  result = scripts.run(SCRIPT, '--dry-run', 'launch/local.sh', '2', '--', 'a b')
  assert result.stdout == 'launch/local.sh 2 -- a\\ b\n'
  assert result.returncode == 0


def test_programs_print_what_the_loop_looks_for():
  text = (scripts.ROOT / 'alignjax' / 'run' / 'training.py').read_text()
  assert "announce(f'resuming from step {restored.step} in {workdir}')" in text
