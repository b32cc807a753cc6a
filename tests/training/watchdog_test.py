"""The watchdog, with limits of fractions of a second."""

import math
import subprocess
import sys
import threading
import time

import pytest

from alignjax import exit_codes
from alignjax.training import hooking, watchdog
from tests.training import loop_test


class Leave:
  """Stands in for the end of the process."""

  def __init__(self):
    self.codes: list[int] = []
    self.called = threading.Event()

  def __call__(self, code: int) -> None:
    self.codes.append(code)
    self.called.set()


def test_a_phase_without_progress_prints_all_stacks_and_leaves(capfd):
  leave = Leave()
  with watchdog.watching({'save': 0.2, 'compile': 60}, leave), watchdog.during('compile'), watchdog.during('save'):
    assert leave.called.wait(10)
  assert leave.codes == [exit_codes.CRASHED]
  error = capfd.readouterr().err
  assert 'phase: save, limit: 0 s' in error
  assert 'test_a_phase_without_progress_prints_all_stacks_and_leaves' in error
  assert error.count('hread 0x') >= 2  # this one, the watchdog's, and those of libraries


def test_progress_no_limit_and_the_end_of_a_phase_keep_it_quiet():
  leave = Leave()
  with watchdog.watching({'evaluation': 0.3, 'save': 0}, leave):
    with watchdog.during('evaluation'):
      for _ in range(10):
        time.sleep(0.06)
        watchdog.progress()
    with watchdog.during('save'):
      time.sleep(0.5)
    time.sleep(0.5)
  assert leave.codes == []


def test_a_suspended_process_is_not_taken_for_one_that_hangs(monkeypatch):
  leave, offset, monotonic = Leave(), 0.0, time.monotonic
  monkeypatch.setattr(time, 'monotonic', lambda: monotonic() + offset)
  with watchdog.watching({'save': 5}, leave), watchdog.during('save'):
    time.sleep(0.6)
    offset = 1e4
    time.sleep(0.6)
  assert leave.codes == []


def test_a_step_may_take_several_times_the_median(monkeypatch):
  now = 0.0
  monkeypatch.setattr(time, 'monotonic', lambda: now)
  watched = watchdog._Watchdog({'step': 120, 'compile': 3600}, Leave())
  with watched.during('step'):
    assert watched.limit() == 3600  # the first steps have no median
    for _ in range(10):
      now += 10
      watched.step()
    assert watched.limit() == 120
    for _ in range(20):
      now += 100
      watched.step()
    assert watched.limit() == 500
    with watched.during('compile'):
      now += 10**6
    watched.step()
    assert watched.limit() == 500
  assert watched.limit() == math.inf


@pytest.mark.parametrize('phase', ['step', 'evaluation'])
def test_the_loop_tells_the_watchdog_what_it_does(phase):
  leave, batches = Leave(), loop_test.make_source()
  advance = batches.next

  def slow(state):
    if state.step == 7:
      leave.called.wait(10)
    return advance(state)

  hooks = []
  if phase == 'step':
    batches.next = slow
  else:
    hooks = [hooking.at({6}, lambda done, state: leave.called.wait(10))]
  with watchdog.watching({phase: 0.5}, leave):
    loop_test.run(8, batches=batches, hooks=hooks)
  assert leave.codes == [exit_codes.CRASHED]


def test_a_real_process_ends_with_134():
  code = (
    'import threading; from alignjax.training import watchdog\n'
    'def hang_for_ever(): threading.Event().wait()\n'
    "with watchdog.watching({'step': 0.2, 'compile': 0.2}), watchdog.during('step'): hang_for_ever()"
  )
  process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False)
  assert process.returncode == exit_codes.CRASHED
  assert 'no progress for' in process.stderr
  assert 'in hang_for_ever' in process.stderr
