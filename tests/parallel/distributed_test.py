"""Joining a run: processes that do not come, and environments that JAX does not know."""

import re
import threading

import jax
import pytest

from alignjax.parallel import clusters, distributed

CLUSTER = clusters.given('localhost:1', 2, 1)
FAILURE = r'cannot join .* \(2 processes, coordinator localhost:1\) within 1 s \(--join_timeout\): check that all 2'


class GaveUpError(Exception):
  pass


def give_up(message: str):
  raise GaveUpError(message)


def test_one_process_has_nothing_to_join():
  distributed.initialize(None, distributed.Timeouts(), pytest.fail)
  assert not jax.distributed.is_initialized()
  assert jax.process_count() == 1


def test_a_negative_number_of_devices():
  with pytest.raises(ValueError, match='local_devices=-1 must be the number'):
    distributed.use_virtual_devices(-1)


def test_arguments_reach_jax(monkeypatch):
  seen = {}
  monkeypatch.setattr('jax.distributed.initialize', lambda **given: seen.update(given))
  distributed.initialize(CLUSTER, distributed.Timeouts(join=5, heartbeat=7), pytest.fail)
  assert seen == dict(CLUSTER.arguments) | {'initialization_timeout': 65, 'heartbeat_timeout_seconds': 7}


def test_others_that_do_not_come_end_the_process_in_time(monkeypatch):
  """While JAX waits: its own timeout aborts with a stack trace."""
  gave_up, messages = threading.Event(), []

  def note(message: str):
    messages.append(message)
    gave_up.set()

  monkeypatch.setattr('jax.distributed.initialize', lambda **given: gave_up.wait(30))
  distributed.initialize(CLUSTER, distributed.Timeouts(join=1), note)
  (message,) = messages
  assert re.search(FAILURE, message)


@pytest.mark.parametrize(
  ('raised', 'expected', 'message'),
  [
    (RuntimeError('address\nin use'), GaveUpError, FAILURE + '.* RuntimeError: address in use'),
    (ValueError('no coordinator'), ValueError, r'JAX does not recognise this cluster \(no coordinator\)'),
  ],
)
def test_errors_of_jax_are_one_message(monkeypatch, raised, expected, message):
  def fail(**given):
    raise raised

  monkeypatch.setattr('jax.distributed.initialize', fail)
  with pytest.raises(expected, match=message):
    distributed.initialize(CLUSTER, distributed.Timeouts(join=1), give_up)
