"""launch/local.sh, around a stand-in for Python that does what the test says."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'local.sh'

# Given `-u -m alignjax train ...` it runs the body of the test with $id; given `-c`, it invents a port.
STAND_IN = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 12345; exit 0; fi
id=0
for argument in "$@"; do if [[ $argument == --process_id=* ]]; then id=${{argument#*=}}; fi; done
{body}
"""

# Tests that run in the background of a script inherit an ignored SIGINT, which bash cannot trap.
INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def start(tmp_path):
  """A function that starts the launcher with a stand-in of the given body."""
  started = []

  def start(body: str, *arguments: str, **environment: str) -> subprocess.Popen:
    stand_in = tmp_path / 'python'
    stand_in.write_text(STAND_IN.format(body=body))
    stand_in.chmod(0o755)
    process = subprocess.Popen(
      [sys.executable, '-c', INTERRUPTIBLE, str(SCRIPT), *arguments],
      env=os.environ | {'PYTHON': str(stand_in)} | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)  # and what a launcher that fails its test leaves behind
    process.communicate()


def alive(pid: int) -> bool:
  status = pathlib.Path(f'/proc/{pid}/stat')
  return status.exists() and status.read_text().split()[2] != 'Z'


def test_passes_arguments_on_and_prefixes_the_output(start):
  process = start('printf "%s\\n" "$@"; echo oops >&2', '2', '--', '--config.seed=1', 'a b', DEVICES_PER_PROCESS='4')
  output, _ = process.communicate(timeout=20)
  assert process.returncode == 0
  for i in (0, 1):
    lines = [line.removeprefix(f'[{i}] ') for line in output.splitlines() if line.startswith(f'[{i}] ')]
    common = [
      '-u',
      '-m',
      'alignjax',
      'train',
      '--cluster=flags',
      '--local_devices=4',
      '--coordinator=localhost:12345',
      '--num_processes=2',
    ]
    assert lines == [*common, f'--process_id={i}', '--config.seed=1', 'a b', 'oops']


def test_one_process_needs_no_coordinator(start):
  output, _ = start('printf "%s\\n" "$@"', '1', '--', '--x').communicate(timeout=20)
  expected = ('-u', '-m', 'alignjax', 'train', '--cluster=flags', '--process_id=0', '--x')
  assert output.splitlines() == [f'[0] {x}' for x in expected]


@pytest.mark.parametrize(
  ('module', 'started'),
  [
    ('doctor', ['alignjax', 'doctor']),
    ('alignjax.commands.merge', ['alignjax', 'merge']),
    ('mine.study', ['mine.study']),
  ],
)
def test_other_programs_are_started_with_the_same_flags(start, module, started):
  output, _ = start('printf "%s\\n" "$@"', '1', f'--module={module}', '--', '--x').communicate(timeout=20)
  expected = ('-u', '-m', *started, '--cluster=flags', '--process_id=0', '--x')
  assert output.splitlines() == [f'[0] {x}' for x in expected]


def test_the_package_is_found_from_anywhere(start):
  output, _ = start('echo "$PYTHONPATH"', '1', PYTHONPATH='/elsewhere').communicate(timeout=20)
  assert output.strip() == f'[0] {SCRIPT.parents[1]}:/elsewhere'


def test_first_failure_ends_the_others_and_gives_the_exit_code(start, tmp_path):
  body = f'echo $$ > {tmp_path}/pid$id; if [[ $id == 1 ]]; then sleep 0.5; exit 7; fi; exec sleep 60'
  process = start(body, '3', '--')
  _, error = process.communicate(timeout=10)  # they are asked to leave, long before they would be killed
  assert process.returncode == 7
  assert 'process 1 has failed with exit code 7' in error
  for i in range(3):
    assert not alive(int((tmp_path / f'pid{i}').read_text()))


def wait_for(tmp_path: pathlib.Path, pattern: str, count: int) -> None:
  deadline = time.monotonic() + 20
  while len(list(tmp_path.glob(pattern))) < count and time.monotonic() < deadline:
    time.sleep(0.02)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signals_reach_every_process_and_42_means_saved(start, tmp_path, number, code):
  body = f"""
trap 'echo saving; touch {tmp_path}/saved$id; exit 42' TERM
touch {tmp_path}/ready$id
while true; do sleep 0.1; done"""
  process = start(body, '2', '--')
  wait_for(tmp_path, 'ready*', 2)
  process.send_signal(number)
  output, _ = process.communicate(timeout=20)
  assert process.returncode == code
  assert sorted(output.splitlines()) == ['[0] saving', '[1] saving']
  assert len(list(tmp_path.glob('saved*'))) == 2


def test_processes_that_do_not_stop_are_killed(start, tmp_path):
  """Process 0 stops as it should; process 1 hangs, and is deaf to SIGTERM."""
  body = f"""
if [[ $id == 0 ]]; then trap 'exit 42' TERM; else trap '' TERM; fi
echo $$ > {tmp_path}/pid$id
while true; do sleep 0.1; done"""
  process = start(body, '2', '--', GRACE_SECONDS='1')
  wait_for(tmp_path, 'pid*', 2)
  began = time.monotonic()
  process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=20)
  assert process.returncode == 137
  assert 0.5 < time.monotonic() - began < 8
  assert 'not stopped in time' in error
  assert not alive(int((tmp_path / 'pid1').read_text()))


def test_a_failure_counts_more_than_a_stop(start):
  process = start('if [[ $id == 0 ]]; then exit 42; fi; sleep 0.6; exit 3', '2', '--')
  process.communicate(timeout=20)
  assert process.returncode == 3


@pytest.mark.parametrize('arguments', [(), ('zero',), ('0',), ('--', '--config.seed=1')])
def test_explains_itself_when_misused(start, arguments):
  process = start('true', *arguments)
  _, error = process.communicate(timeout=20)
  assert process.returncode == 1
  assert 'launch/local.sh 2 -- --model=' in error


def test_restarts(start, tmp_path):
  body = f'echo x >> {tmp_path}/runs; exit $((134 * ($(wc -l < {tmp_path}/runs) < 3)))'
  process = start(body, '1', '--', RESTARTS='2', BACKOFF_SECONDS='0')
  _, error = process.communicate(timeout=20)
  assert process.returncode == 0
  assert error.count('starting again in 0 s') == 2
  (tmp_path / 'runs').unlink()
  process = start(body, '1', '--', RESTARTS='1', BACKOFF_SECONDS='0')
  _, error = process.communicate(timeout=20)
  assert process.returncode == 134
  assert 'giving up after 1 restarts without a new checkpoint' in error


def test_dry_run_prints_the_commands(start):
  process = start('exit 7', '2', '--dry-run', '--module=doctor', '--', '--x=a b')
  output, _ = process.communicate(timeout=20)
  assert process.returncode == 0
  cluster = '--cluster=flags --coordinator=localhost:12345 --num_processes=2'
  for i, line in enumerate(output.splitlines()):
    assert line.endswith(f'-u -m alignjax doctor {cluster} --process_id={i} --x=a\\ b')
