"""SIGTERM in each phase of a run: the exit code, what is saved, and that the same command goes on from there."""

from collections.abc import Callable, Iterator
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import orbax.checkpoint as ocp
import pytest

from alignjax import exit_codes, stopping
from alignjax.commands import program, train
from alignjax.data.batches import reference_cache
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io
from alignjax.run import command_line, examination, settings, training
from alignjax.training import caching, checkpoint, metrics, programs
from tests import runs

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 4


def configure(folder: pathlib.Path, workdir: pathlib.Path, phase: str = '') -> settings.Config:
  extra = {'doctor': {'doctor': 'warn'}, 'cache': {'reference_cache': str(workdir / 'cache')}}.get(phase, {})
  return runs.make_config(folder, workdir, steps=STEPS, save_every=2, eval_every=3, **extra)


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


class Place(NamedTuple):
  """The n-th call of a function for which a condition holds, where a run is told to stop."""

  owner: object
  name: str
  count: int = 1
  condition: Callable[..., bool] = lambda *args: True

  def tell(self, patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    original, calls = getattr(self.owner, self.name), []

    def hooked(*args, **options):
      if self.condition(*args):
        calls.append(args)
        if len(calls) == self.count:
          act()
      return original(*args, **options)

    patch.setattr(self.owner, self.name, hooked)


def evaluations(run, *args) -> bool:
  return run._name == 'evaluation'


# phase: (where it is told, the checkpoints that exist then)
BEFORE_THE_LOOP = {
  'tokenising': (Place(tokenization.Tokenizer, 'encode_all', 1), []),
  'loading': (Place(checkpoint_io, 'load_params', 1), []),
  'doctor': (Place(examination, 'examine', 1), []),
  'cache': (Place(reference_cache.Writer, 'write', 3), []),
}
FROM_THE_LOOP_ON = {
  'first evaluation': (Place(programs.Programs, '__call__', 1, evaluations), []),
  'compile': (Place(programs.Programs, '_compile', 1, lambda run, args: run._name == 'training step'), [1]),
  'step': (Place(metrics.JsonlWriter, 'write', 1, lambda writer, step, values: step == 1), [2]),
  'evaluation': (Place(programs.Programs, '__call__', 3, evaluations), [2, 3]),
  'last evaluation': (Place(programs.Programs, '__call__', 5, evaluations), [2, 4]),
  'save': (Place(checkpoint.Checkpoints, 'save', 1), [2]),
  'last save': (Place(checkpoint.Checkpoints, 'close', 1), [2, 4]),
  'export': (Place(checkpoint_io, 'save', 1), [2, 4]),
}


def stop(place: Place, times: int, config: settings.Config, patch: pytest.MonkeyPatch) -> None:
  """Runs until it is told to stop, and checks how it ends."""
  workdir = pathlib.Path(config.workdir)
  with patch.context() as patched:
    place.tell(patched, lambda: send(signal.SIGTERM, times))
    assert attempt(config) == exit_codes.PREEMPTED
  assert not (workdir / 'model').exists()
  assert not [*workdir.rglob('*.partial'), *workdir.rglob('*tmp*')]


@pytest.mark.parametrize('times', [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize('phase', BEFORE_THE_LOOP)
def test_sigterm_before_the_first_step_leaves_nothing_unfinished_behind(phase, times, tiny_run, tmp_path, monkeypatch):
  monkeypatch.setattr(caching, 'SHARD', 8)  # a batch
  place, expected = BEFORE_THE_LOOP[phase]
  stop(place, times, configure(tiny_run, tmp_path, phase), monkeypatch)
  assert saved(tmp_path) == expected
  finished = list(tmp_path.glob('cache/*/*/manifest.json'))
  assert len(finished) == (2 if phase == 'cache' else 0)  # finished shards of the reference cache are kept


# loop_test.py stops and resumes a loop, and train_test.py stops two processes.
@pytest.mark.slow
@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize('phase', list(FROM_THE_LOOP_ON))
def test_sigterm_during_training_saves_and_the_same_command_goes_on(
  phase, times, tiny_run, whole, tmp_path, monkeypatch
):
  place, expected = FROM_THE_LOOP_ON[phase]
  config = configure(tiny_run, tmp_path)
  stop(place, times, config, monkeypatch)
  assert saved(tmp_path) == expected
  if times == 2:
    assert attempt(config) == exit_codes.DONE
    assert evaluated(tmp_path) == evaluated(whole)
    assert weights(tmp_path) == weights(whole)


@pytest.fixture
def interactive() -> Iterator[None]:
  """Ctrl-C is heard, as in a terminal: a shell makes processes in the background ignore it."""
  previous = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, previous)


def test_the_first_ctrl_c_saves_and_ends_with_130(interactive, tiny_run, tmp_path, monkeypatch, capfd):
  FROM_THE_LOOP_ON['compile'][0].tell(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
  seen = []
  FROM_THE_LOOP_ON['save'][0].tell(monkeypatch, lambda: seen.append(signal.getsignal(signal.SIGINT)))
  assert attempt(configure(tiny_run, tmp_path)) == exit_codes.INTERRUPTED
  assert len(saved(tmp_path)) == 1
  assert seen == [signal.SIG_DFL]  # the second one ends the process at once
  assert 'Press Ctrl-C again to end at once' in capfd.readouterr().err


def test_without_a_listening_program_the_handlers_are_left_alone(whole, tiny_run):
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  training.train(configure(tiny_run, whole))
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def interrupted(*args, **options):
  """A function of a library that turns every error into its own."""
  try:
    os.kill(os.getpid(), signal.SIGTERM)
  except BaseException as error:
    raise ImportError('cannot be imported') from error


def test_a_library_that_turns_it_into_an_error_of_its_own_changes_nothing(tiny_run, whole, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint_io, 'load_params', interrupted)
  assert attempt(configure(tiny_run, tmp_path / 'new')) == exit_codes.PREEMPTED
  shutil.copytree(whole / 'checkpoints', tmp_path / 'old' / 'checkpoints')
  monkeypatch.setattr(ocp.CheckpointManager, 'restore', interrupted)
  assert attempt(configure(tiny_run, tmp_path / 'old')) == exit_codes.PREEMPTED
  assert saved(tmp_path / 'old') == [2, 4]  # none of them counts as damaged


def catches(pid: int, number: int) -> bool:
  """Whether a process has a handler for a signal."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  mask = next(line.split()[1] for line in status.splitlines() if line.startswith('SigCgt'))
  return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
  ('module', 'delay'),
  [
    ('alignjax', 0.3),
    pytest.param('alignjax', 0.0, marks=pytest.mark.slow),
    pytest.param('experiments.train', 0.6, marks=pytest.mark.slow),
  ],
)
def test_a_real_process_hears_sigterm_during_its_imports(module, delay):
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
  time.sleep(delay)  # importing takes seconds
  process.terminate()
  process.terminate()
  _, error = process.communicate(timeout=60)
  assert process.returncode == exit_codes.PREEMPTED, error
  assert error.startswith('SIGTERM received')
  assert 'Traceback' not in error
