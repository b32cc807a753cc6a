"""Joining a run: arguments that do not fit are refused before anything waits for anybody."""

import jax
import pytest

from alignjax.parallel import distributed


def test_one_process_has_nothing_to_join():
  distributed.initialize()
  assert not jax.distributed.is_initialized()
  assert jax.process_count() == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'num_processes': 0}, 'num_processes=0'),
    ({'num_processes': 2, 'process_id': 2, 'coordinator': 'localhost:1'}, 'process_id=2 must be from 0 to'),
    ({'process_id': -1}, 'process_id=-1 must be from 0 to'),
    ({'num_processes': 2}, 'needs the address of process 0: coordinator=host:port'),
    ({'coordinator': 'localhost:1'}, 'coordinator=localhost:1 requires num_processes > 1'),
    ({'num_processes': 2, 'coordinator': 'localhost'}, "coordinator='localhost' must be host:port"),
    ({'num_processes': 2, 'coordinator': 'localhost:http'}, "coordinator='localhost:http' must be host:port"),
    ({'local_devices': -1}, 'local_devices=-1 must be the number'),
  ],
)
def test_arguments_that_do_not_fit(arguments, message):
  with pytest.raises(ValueError, match=message):
    distributed.initialize(**arguments)


def test_others_that_do_not_come_are_an_error(monkeypatch):
  def give_up(*args, **kwargs):
    del args, kwargs
    raise RuntimeError('DEADLINE_EXCEEDED')

  monkeypatch.setattr('jax.distributed.initialize', give_up)
  with pytest.raises(
    RuntimeError, match=r'process 1 of 2 could not connect to localhost:1 within 5 s.*DEADLINE_EXCEEDED'
  ):
    distributed.initialize('localhost:1', 2, 1, timeout_seconds=5)
