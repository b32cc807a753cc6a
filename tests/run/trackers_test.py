"""Trackers, with stand-ins for their packages, which are optional."""

import importlib.util
import types

import pytest

from alignjax.run import trackers


class Service:
  """Stands in for a tracker's package: records the arguments of `init`, and what is logged."""

  def __init__(self, fails_from=None):
    self.starts, self.logged, self.finished, self.fails_from = [], [], 0, fails_from

  def module(self):
    return types.SimpleNamespace(init=self.init, Settings=dict)

  def init(self, **arguments):
    self.starts.append(arguments)
    return self

  def define_metric(self, name, step_metric):
    assert (name, step_metric) == ('*', 'step')

  def log(self, values, step=None):
    if self.fails_from is not None and len(self.logged) >= self.fails_from:
      raise RuntimeError('the network is down')
    self.logged.append((values, step))

  def finish(self):
    self.finished += 1


def services(monkeypatch, **given):
  monkeypatch.setattr(trackers.importlib, 'import_module', lambda name: given[name].module())


def write(tmp_path, names, steps, resumed_at=None):
  run = trackers.Run('project', 'first', {'seed': 0})
  for writer in trackers.writers(names, run, tmp_path, resumed_at):
    for step in steps:
      writer.write(step, {'loss': 0.5, 'eval/loss': float('nan'), 'time/seconds': 1.0, 'batch_hash': 7})
    writer.close()


def test_records_are_grouped_and_have_the_step_of_the_run(tmp_path, monkeypatch):
  wandb, trackio = Service(), Service()
  services(monkeypatch, wandb=wandb, trackio=trackio)
  write(tmp_path, ['wandb', 'trackio'], [1, 2])
  values = {'train/loss': 0.5, 'time/seconds': 1.0}
  assert wandb.logged == [(values | {'step': step}, None) for step in (1, 2)]
  assert trackio.logged == [(values, step) for step in (1, 2)]
  assert wandb.finished == trackio.finished == 1
  assert wandb.starts[0]['project'] == 'project'
  assert wandb.starts[0]['config'] == {'seed': 0}


def test_a_resumed_run_continues_its_curves_and_a_new_one_starts_others(tmp_path, monkeypatch):
  wandb, trackio = Service(), Service()
  services(monkeypatch, wandb=wandb, trackio=trackio)
  for resumed_at in (None, 1, None):
    write(tmp_path, ['wandb', 'trackio'], [2], resumed_at)
  first, resumed, other = [start['id'] for start in wandb.starts]
  assert first == resumed != other
  first, resumed, other = [start['name'] for start in trackio.starts]
  assert first == resumed != other


def test_a_tracker_that_fails_is_off_with_one_warning_and_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
  service = Service(fails_from=1)
  services(monkeypatch, wandb=service)
  write(tmp_path, ['wandb'], range(1, 5))
  assert len(service.logged) == 1
  assert [text.partition('. ')[0] for text in caplog.messages] == [
    'wandb cannot be reached: RuntimeError: the network is down'
  ]
  assert 'off from step 2 on' in caplog.text


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (['tensorboard'], "'tensorboard' is unknown; choose from trackio, wandb"),
    (['wandb'], r"wandb is not installed: pip install 'alignjax\[wandb\]'"),
    (['wandb', 'wandb'], "'wandb' is given twice"),
  ],
)
def test_trackers_are_checked_before_the_run(names, message, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=message):
    trackers.check(names)
