"""Profiles of some updates: when they start and stop, and the settings that ask for them."""

import contextlib
import dataclasses

import jax
import pytest

from alignjax import paths
from alignjax.run import profiling, settings, training
from tests import runs


@pytest.fixture(name='calls')
def record_calls(monkeypatch):
  calls = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: calls.append(f'start {folder}'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  return calls


def go(profiler, steps, calls):
  """The loop, as far as hooks see it."""
  with profiler:
    for done in range(1, steps + 1):
      calls.append(done)
      for hook in profiler.hooks:
        if hook.due(done):
          hook.call(done, None)


@pytest.mark.parametrize(
  ('steps', 'expected'),
  [
    (6, [1, 2, 'start', 3, 4, 'stop', 5, 6]),
    (3, [1, 2, 'start', 3, 'stop']),  # the run ends within the span
    (1, [1]),
  ],
)
def test_the_updates_of_the_span_are_traced(steps, expected, calls, tmp_path):
  said = []
  go(profiling.Profiler(profiling.parse('3:4'), tmp_path, said.append), steps, calls)
  assert calls == [f'start {tmp_path / "profile"}' if call == 'start' else call for call in expected]
  assert said == [f'wrote a trace of updates 3 to 4 to {tmp_path / "profile"}'] * expected.count('stop')


def test_a_run_that_fails_ends_its_trace(calls, tmp_path):
  profiler = profiling.Profiler(profiling.Span(2, 9), tmp_path, print)
  with contextlib.suppress(ZeroDivisionError), profiler:
    profiler.hooks[0].call(1, None)
    raise ZeroDivisionError
  assert calls[-1] == 'stop'


def test_nothing_is_traced_by_default(calls, tmp_path):
  go(profiling.Profiler(profiling.parse(''), tmp_path, print), 3, calls)
  assert calls == [1, 2, 3]


@pytest.mark.parametrize('text', ['3', '3:2', '1:2', '0:4', '-2:4', 'a:b', '2:3:4', ' 2:3'])
def test_a_span_that_is_none_is_refused(text):
  with pytest.raises(ValueError, match=r'config\.profile_steps: .* must be first:last with 2 <= first <= last'):
    settings.Config(profile_steps=text)


def test_a_trace_needs_a_disk(monkeypatch):
  check = paths.check  # which needs the module of the store for all but this
  monkeypatch.setattr(paths, 'check', lambda text, use: check(text, use) if use == paths.DISK else None)
  settings.Config(workdir='gs://bucket/run')
  with pytest.raises(ValueError, match=r'config\.profile_steps: gs://bucket/run: this setting needs a folder'):
    settings.Config(profile_steps='2:3', workdir='gs://bucket/run')


@pytest.mark.slow  # a real trace
def test_a_run_writes_a_trace(tiny_run, tmp_path):
  config = runs.make_config(tiny_run, tmp_path / 'run', steps=5, eval_data=(), profile_steps='3:4')
  training.train(config)
  (trace,) = (tmp_path / 'run' / 'profile').rglob('*.xplane.pb')
  assert trace.stat().st_size > 1000
  plain = runs.make_config(tiny_run, tmp_path / 'plain', steps=5, eval_data=())
  assert dataclasses.replace(config, profile_steps='', workdir=plain.workdir) == plain
