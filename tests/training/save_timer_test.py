"""Saves by time: often enough, at the same steps on all processes, and with few meetings between them."""

import math

from hypothesis import given, strategies
import jax
import pytest

from alignjax.training import loop, processes, save_timer
from tests.training import loop_test

MINUTES = 10.0


class Cluster:
  """Two processes of which only the first has a clock that counts."""

  def __init__(self, patch, minutes=MINUTES):
    self.now, self.meetings, self.told = 0.0, [], None
    patch.setattr(jax, 'process_count', lambda: 2)
    patch.setattr(processes, 'gather', self.gather)
    self.timers = [
      save_timer.SaveTimer(minutes, 0, lambda: self.now),
      save_timer.SaveTimer(minutes, 0, lambda: -7 * self.now),
    ]

  def gather(self, value):
    if self.told is None:
      self.told = value
    return [self.told, value]

  def step(self, done, seconds):
    """Whether the processes save after a step that takes so long."""
    self.now += seconds
    self.told = None
    first = self.timers[0].due(done)
    if self.told is not None:
      self.meetings.append(done)
    elif first:
      raise AssertionError('a process has decided alone')
    assert self.timers[1].due(done) == first
    if first:
      for timer in self.timers:
        timer.restart(done)
    return first


SECONDS = strategies.integers(1, 3200).map(lambda n: n / 64)  # sums of these are exact


@given(strategies.lists(SECONDS, min_size=1, max_size=30), strategies.integers(1, 60))
def test_all_processes_save_alike_soon_after_the_time(paces, repeats):
  """The pace changes every `repeats` steps. A save is at most as late as the pace has fallen meanwhile."""
  with pytest.MonkeyPatch.context() as patch:
    cluster, done, last = Cluster(patch), 0, 0.0
    for pace in paces:
      for _ in range(repeats):
        done += 1
        if cluster.step(done, pace):
          assert cluster.now - last >= 60 * MINUTES
          last = cluster.now
        else:
          slower = max(paces) / min(paces)
          assert cluster.now - last < 60 * MINUTES * (1 + slower) + 2 * max(paces)


def test_a_steady_run_saves_in_time_with_few_meetings(monkeypatch):
  cluster, pace = Cluster(monkeypatch), 0.25
  saves = [done for done in range(1, 10_001) if cluster.step(done, pace)]
  expected = 60 * MINUTES / pace
  gaps = [after - before for before, after in zip([0, *saves], saves, strict=False)]
  assert len(saves) == 4
  assert all(expected <= gap <= expected + 2 for gap in gaps)
  assert len(cluster.meetings) < (len(saves) + 1) * (2 * math.log2(expected) + 2)


def test_a_first_step_that_returns_at_once_does_not_postpone_the_save(monkeypatch):
  """Steps are dispatched without waiting, so the first ones may seem to take no time."""
  cluster = Cluster(monkeypatch)
  paces = [0.0, 1e-6] + [20.0] * 60
  assert [done for done, pace in enumerate(paces, 1) if cluster.step(done, pace)] == [32, 62]


def test_no_time_no_meeting(monkeypatch):
  cluster = Cluster(monkeypatch, minutes=0)
  assert not any(cluster.step(done, 1e6) for done in range(1, 50))
  assert not cluster.meetings


def test_a_run_saves_by_time_and_by_steps_and_gives_the_same_bits(monkeypatch, tmp_path):
  now = [0.0]
  monkeypatch.setattr(save_timer.SaveTimer.__init__, '__defaults__', (lambda: now[0],))

  def tick(step):
    now[0] += 60.0

  saved = []
  with loop_test.open_checkpoints(tmp_path / 'c') as checkpoints:
    save = checkpoints.save
    monkeypatch.setattr(checkpoints, 'save', lambda step, *state: saved.append(step) or save(step, *state))
    saving = loop.Saving(checkpoints, 5, minutes=2.0)
    result, _ = loop_test.run(9, recorder=loop_test.Recorder(tick), saving=saving)
    # The metrics of a step are written while the next one runs. The save of step 5 restarts the clock.
    assert saved == [3, 5, 8, 9]
  assert loop_test.params_of(result.state) == loop_test.params_of(loop_test.run(9)[0].state)
