"""SIGTERM in each phase of a run: the exit code, what is saved, and that the same command goes on from there."""

from collections.abc import Callable
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from alignjax import exit_codes, stopping
from alignjax.commands import program, train
from alignjax.data.batches import reference_cache
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io
from alignjax.run import command_line, examination, settings, training
from alignjax.training import checkpoint, metrics, programs
from tests import runs

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 4


def configure(folder: pathlib.Path, workdir: pathlib.Path) -> settings.Config:
  schedule = {'steps': STEPS, 'save_every': 2, 'eval_every': 3}
  return runs.make_config(folder, workdir, **schedule, doctor='warn', reference_cache=str(workdir / 'cache'))


def attempt(config: settings.Config) -> int:
  with stopping.listening():
    return program.attempt(train.PROGRAM, command_line.Invocation(config))


def saved(workdir: pathlib.Path) -> list[int]:
  return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('[0-9]*') if path.name.isdigit())


def evaluated(workdir: pathlib.Path) -> dict[int, float]:
  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  return {record['step']: record['eval/loss'] for record in records if 'eval/loss' in record}


def weights(workdir: pathlib.Path) -> bytes:
  return (workdir / 'model' / 'model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def whole(tiny_run, tmp_path_factory) -> pathlib.Path:
  """The work directory of a run that nothing stops."""
  workdir = tmp_path_factory.mktemp('whole')
  training.train(configure(tiny_run, workdir))
  return workdir


def send(number: int, times: int) -> None:
  """Sends a signal; repeats it while the first one is on its way up."""
  try:
    os.kill(os.getpid(), number)
  finally:
    for _ in range(times - 1):
      os.kill(os.getpid(), number)


def before(patch: pytest.MonkeyPatch, owner: object, name: str, act: Callable, when: Callable = lambda *args: True):
  """Calls `act` before a function, the first time that `when` is true of its arguments."""
  original, done = getattr(owner, name), []

  def hooked(*args, **options):
    if not done and when(*args):
      done.append(True)
      act()
    return original(*args, **options)

  patch.setattr(owner, name, hooked)


def nth(count: int, when: Callable = lambda *args: True) -> Callable:
  """True at the n-th call of which `when` is true."""
  calls = []

  def check(*args) -> bool:
    if when(*args):
      calls.append(args)
      return len(calls) == count
    return False

  return check


def evaluations(run, *args) -> bool:
  return run._name == 'evaluation'


# phase: (where it is told, when, what is saved then)
PHASES = {
  'tokenising': ((tokenization.Tokenizer, 'encode_all'), nth(1), []),
  'loading': ((checkpoint_io, 'load_params'), nth(1), []),
  'doctor': ((examination, 'examine'), nth(1), []),
  'cache': ((reference_cache.Writer, 'write'), nth(3), []),
  'first evaluation': ((programs.Programs, '__call__'), nth(1, evaluations), []),
  'compile': ((programs.Programs, '_compile'), nth(1, lambda run, args: run._name == 'training step'), [1]),
  'step': ((metrics.JsonlWriter, 'write'), nth(1, lambda writer, step, values: step == 1), [2]),
  'evaluation': ((programs.Programs, '__call__'), nth(3, evaluations), [2, 3]),
  'last evaluation': ((programs.Programs, '__call__'), nth(5, evaluations), [2, 4]),
  'save': ((checkpoint.Checkpoints, 'save'), nth(1), [2]),
  'last save': ((checkpoint.Checkpoints, 'close'), nth(1), [2, 4]),
  'export': ((checkpoint_io, 'save'), nth(1), [2, 4]),
}


@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize('phase', PHASES)
def test_sigterm_ends_every_phase_with_42_and_nothing_is_lost(phase, times, tiny_run, whole, tmp_path, monkeypatch):
  (owner, name), when, expected = PHASES[phase]
  config = configure(tiny_run, tmp_path)
  with monkeypatch.context() as patch:
    before(patch, owner, name, lambda: send(signal.SIGTERM, times), when)
    assert attempt(config) == exit_codes.PREEMPTED
  assert saved(tmp_path) == expected
  assert not (tmp_path / 'model').exists()
  assert not list(tmp_path.rglob('*.partial'))
  assert not list(tmp_path.rglob('*tmp*'))
  if times == 2:  # the same command goes on
    assert attempt(config) == exit_codes.DONE
    assert evaluated(tmp_path) == evaluated(whole)
    assert weights(tmp_path) == weights(whole)


def test_the_first_ctrl_c_saves_and_ends_with_130(tiny_run, tmp_path, monkeypatch, capfd):
  (owner, name), when, _ = PHASES['compile']
  before(monkeypatch, owner, name, lambda: os.kill(os.getpid(), signal.SIGINT), when)
  monkeypatch.setattr(signal, 'default_int_handler', pytest.fail)
  seen = []
  before(monkeypatch, checkpoint.Checkpoints, 'save', lambda: seen.append(signal.getsignal(signal.SIGINT)))
  assert attempt(configure(tiny_run, tmp_path)) == exit_codes.INTERRUPTED
  assert len(saved(tmp_path)) == 1
  assert seen == [signal.SIG_DFL]  # the second one ends the process at once
  assert 'Press Ctrl-C again to end at once' in capfd.readouterr().err


def test_without_a_listening_program_the_handlers_are_left_alone(whole, tiny_run):
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  training.train(configure(tiny_run, whole))
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def catches(pid: int, number: int) -> bool:
  """Whether a process has a handler for a signal."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  mask = next(line.split()[1] for line in status.splitlines() if line.startswith('SigCgt'))
  return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize('module', ['alignjax', 'experiments.train'])
def test_a_real_process_hears_sigterm_during_its_imports(module):
  arguments = ['train'] if module == 'alignjax' else []
  process = subprocess.Popen(
    [sys.executable, '-m', module, *arguments, '--model=x'],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 60
  while not catches(process.pid, signal.SIGTERM) and time.monotonic() < deadline:
    time.sleep(0.001)
  time.sleep(0.2)  # importing takes seconds
  process.terminate()
  process.terminate()
  _, error = process.communicate(timeout=60)
  assert process.returncode == exit_codes.PREEMPTED, error
  assert error.startswith('SIGTERM received')
  assert 'Traceback' not in error
