"""Processes that see a shared folder late agree on what it holds."""

import pathlib

import pytest

from alignjax.training import views
from tests.run.token_cache_test import Processes

FOLDER = pathlib.Path('run/checkpoints')


@pytest.fixture
def two(monkeypatch):
  monkeypatch.setattr(views, 'POLL', 0.001)
  return Processes(monkeypatch)


def looks(*answers):
  """What a process sees, look after look; the last answer stays."""
  left = list(answers)
  return lambda: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize('stale', [['2'], ['2', '4', '6'], []])
def test_a_process_waits_until_it_sees_what_the_first_sees(two, stale):
  mine = [looks(['2', '4']), looks(stale, stale, ['2', '4'])]
  assert two.run(lambda index: views.agreed(FOLDER, mine[index])) == [['2', '4']] * 2
  assert mine[1]() == ['2', '4']


def test_the_first_looks_once_because_its_view_counts(two):
  mine = [looks(['2'], ['2', '4']), looks(['2'])]
  assert two.run(lambda index: views.agreed(FOLDER, mine[index])) == [['2']] * 2


def test_a_folder_that_is_not_shared_is_an_error_on_all_processes(two, monkeypatch):
  monkeypatch.setattr(views, 'VISIBLE', 0.01)
  errors = two.run(lambda index: views.agreed(FOLDER, looks(['2', '4'] if index == 0 else [])))
  message = 'run/checkpoints: holds 2, 4 as process 0 sees it, but nothing as process 1 does. All processes must share'
  assert [str(error).startswith(message) for error in errors] == [True, True]


def test_an_error_of_the_first_process_reaches_the_others(two):
  def fail():
    raise PermissionError(13, 'Permission denied', str(FOLDER))

  first, second = two.run(lambda index: views.agreed(FOLDER, fail))
  assert isinstance(first, PermissionError)
  assert 'Permission denied' in str(second)
