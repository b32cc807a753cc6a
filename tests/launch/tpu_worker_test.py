"""launch/tpu_worker.sh: real processes, with a stand-in for Python."""

import pathlib
import subprocess
import time

import pytest

from tests.launch import scripts

SCRIPT = scripts.LAUNCH / 'tpu_worker.sh'


@pytest.fixture
def worker(tmp_path):
  """A function that runs a command of the worker, whose trainer has the given body."""

  def run(*arguments: str, body: str | None = None, **variables: str) -> subprocess.CompletedProcess:
    python = tmp_path / 'python'
    if body is not None:
      python.write_text(f'#!/usr/bin/env bash\n{body}\n')
      python.chmod(0o755)
    return scripts.run(SCRIPT, *arguments, HOME=str(tmp_path), PYTHON=str(python), **variables)

  yield run
  run('stop')


def wait_for(path: pathlib.Path) -> None:
  deadline = time.monotonic() + 20
  while not path.exists() and time.monotonic() < deadline:
    time.sleep(0.02)


def test_start_follow_and_log(worker):
  assert worker('start', '1', 'cpu', '--x=a b', body='printf "%s\\n" "$@"; sleep 0.3; echo end; exit 3').returncode == 0
  lines = ['-u', '-m', 'alignjax', 'train', '--x=a b', 'end']
  assert worker('follow', '+1').stdout.splitlines() == lines
  assert worker('log').stdout.splitlines() == [*lines, 'exit code 3']
  assert worker('follow', '1').stdout == 'end\n'  # nothing runs any more


def test_a_second_start_joins_the_first(worker, tmp_path):
  body = f'echo $$ >> {tmp_path}/started; trap "exit 42" TERM; while true; do sleep 0.05; done'
  worker('start', '1', 'cpu', body=body)
  wait_for(tmp_path / 'started')
  assert 'joining' in worker('start', '1', 'cpu').stdout
  worker('stop')
  assert worker('log').stdout == 'exit code 42\n'
  assert len((tmp_path / 'started').read_text().splitlines()) == 1
  worker('start', '1', 'cpu', body='exit 0')
  assert worker('log').stdout == 'exit code 0\n'


def test_a_run_that_does_not_end_is_killed(worker, tmp_path):
  worker('start', '1', 'cpu', body=f'trap "" TERM; touch {tmp_path}/started; while true; do sleep 0.05; done')
  wait_for(tmp_path / 'started')
  assert worker('log', GRACE_SECONDS='0').stdout == 'exit code 137\n'


def test_a_number_that_another_process_has_got_is_no_run(worker, tmp_path):
  (tmp_path / 'alignjax-run').mkdir()
  (tmp_path / 'alignjax-run' / 'log').write_text('lost\n')
  with subprocess.Popen(['sleep', '60'], start_new_session=True) as other:
    for number in (str(other.pid), '', 'nonsense'):
      (tmp_path / 'alignjax-run' / 'pid').write_text(f'{number}\n')
      assert worker('stop').returncode == 0
      assert worker('log').stdout == 'lost\nexit code 134\n'
    assert other.poll() is None
    other.kill()
