"""Faults in each phase of a run: the exit code that a launcher sees."""

import errno
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from alignjax import exit_codes, refusals, stopping
from alignjax.commands import program, train
from alignjax.data.reading import sources
from alignjax.models import checkpoint_io
from alignjax.run import command_line, exports, settings, training
from alignjax.training import checkpoint, disk, loop, source
from alignjax.training import step as training_step
from tests import runs

README = pathlib.Path(__file__).parents[2] / 'docs' / 'launching.md'
EIO, ENOSPC, ETIMEDOUT = (OSError(code, 'injected') for code in (errno.EIO, errno.ENOSPC, errno.ETIMEDOUT))
LOST = ConnectionResetError('injected')
GLOO = ValueError('UNKNOWN: Gloo AllGather failed: injected: Connection reset by peer')
BARRIER = jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: injected: Barrier timed out')
MISSING, WRONG, BUG = FileNotFoundError('injected'), ValueError('injected'), TypeError('injected')


def configure(folder: pathlib.Path, workdir: pathlib.Path) -> settings.Config:
  return runs.make_config(folder, workdir, steps=2, save_every=1, eval_data=(), nonfinite_limit=1)


def attempt(config: settings.Config) -> int:
  return program.attempt(train.PROGRAM, command_line.Invocation(config))


def wrapped(inner: Exception) -> Exception:
  """An error as a reader raises it that turns all errors into its own."""
  try:
    try:
      raise inner
    except type(inner):
      raise ValueError('injected: cannot be read') from None
  except ValueError as error:
    return error


@pytest.fixture(scope='module')
def finished(tiny_run, tmp_path_factory) -> settings.Config:
  config = configure(tiny_run, tmp_path_factory.mktemp('finished'))
  training.train(config)
  return config


READ, LOAD = (sources, 'read_examples'), (checkpoint_io, 'load_params')
SAVE, NEXT, EXPORT = (ocp.CheckpointManager, 'save'), (source.GrainSource, 'next'), (checkpoint_io, 'save')
BUILD = (training_step, 'build_train_step')


@pytest.mark.parametrize(
  ('where', 'error', 'code'),
  [
    (READ, EIO, exit_codes.CRASHED),
    (READ, LOST, exit_codes.CRASHED),
    (READ, GLOO, exit_codes.CRASHED),
    (READ, wrapped(EIO), exit_codes.CRASHED),
    (READ, wrapped(WRONG), exit_codes.REFUSED),
    (READ, MISSING, exit_codes.REFUSED),
    (READ, WRONG, exit_codes.REFUSED),
    (READ, BUG, exit_codes.CRASHED),
    (LOAD, LOST, exit_codes.CRASHED),
    (LOAD, WRONG, exit_codes.REFUSED),
    (BUILD, WRONG, exit_codes.REFUSED),
    (NEXT, WRONG, exit_codes.CRASHED),
    (NEXT, LOST, exit_codes.CRASHED),
    (SAVE, ENOSPC, exit_codes.CRASHED),
    pytest.param(SAVE, ETIMEDOUT, exit_codes.CRASHED, marks=pytest.mark.slow),
    pytest.param(SAVE, WRONG, exit_codes.CRASHED, marks=pytest.mark.slow),
    (EXPORT, ENOSPC, exit_codes.NOT_EXPORTED),
    pytest.param(EXPORT, EIO, exit_codes.NOT_EXPORTED, marks=pytest.mark.slow),
    pytest.param(EXPORT, WRONG, exit_codes.NOT_EXPORTED, marks=pytest.mark.slow),
  ],
)
def test_an_injected_fault_has_the_exit_code_of_its_cause(where, error, code, tiny_run, tmp_path, monkeypatch, capsys):
  def fail(*args, **options):
    raise error

  monkeypatch.setattr(*where, fail)
  assert attempt(configure(tiny_run, tmp_path)) == code
  output = capsys.readouterr().err
  assert ('Traceback' in output) == (error is BUG or (where, error) == (NEXT, WRONG))
  assert 'injected' in output or 'the disk is full' in output
  if code == exit_codes.NOT_EXPORTED:
    assert 'give the same command again: it exports from the checkpoint' in output
    monkeypatch.undo()
    assert attempt(configure(tiny_run, tmp_path)) == exit_codes.DONE


@pytest.mark.parametrize('error', [ETIMEDOUT, LOST, BARRIER])
def test_a_network_that_fails_while_restoring_costs_no_checkpoint(error, finished, monkeypatch):
  def fail(*args, **options):
    raise error

  workdir = pathlib.Path(finished.workdir)
  monkeypatch.setattr(ocp.CheckpointManager, 'restore', fail)
  assert attempt(finished) == exit_codes.CRASHED
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['1', '2']
  assert not (workdir / 'checkpoints-corrupt').exists()


def test_another_configuration_in_the_same_folder_is_refused(finished):
  other = settings.from_dict(settings.config_dict(**vars(finished)).to_dict() | {'seed': 7})
  assert attempt(other) == exit_codes.REFUSED


@pytest.mark.slow  # skipping_test.py stops a run at a limit, and the last test has the code
def test_a_loss_that_is_not_finite_has_a_code_of_its_own(tiny_run, tmp_path, monkeypatch, capsys):
  build = training_step.build_train_step

  def poisoned(*args, **options):
    step = build(*args, **options)

    def run(state, frozen, batch):
      new, values = step(state, frozen, batch)
      return new, values | {'loss': jnp.where(state.step == 1, jnp.nan, values['loss'])}

    return run

  monkeypatch.setattr(training_step, 'build_train_step', poisoned)
  assert attempt(configure(tiny_run, tmp_path)) == exit_codes.NOT_FINITE
  assert 'error: step 2: loss is nan' in capsys.readouterr().err


def fail_after_the_checks() -> None:
  with refusals.checking() as checks:
    checks.over = True
    raise WRONG


def test_checks_that_are_over_refuse_nothing():
  with pytest.raises(refusals.Refused), refusals.checking():
    raise WRONG
  with pytest.raises(ValueError, match='injected') as caught:
    fail_after_the_checks()
  assert caught.value is WRONG


def test_errors_that_cause_each_other_are_described():
  first, second = ValueError('first'), OSError(errno.EIO, 'second')
  first.__cause__, second.__cause__ = second, first
  assert refusals.of_the_machine(first)
  assert not refusals.of_the_network(first)
  assert not disk.is_full(first)


def test_the_table_in_the_documentation_is_the_one_in_the_code():
  rows = [f'| {code} | {meaning} | {restart} |' for code, (meaning, restart) in exit_codes.MEANINGS.items()]
  assert '\n'.join(rows) in README.read_text(encoding='utf-8')
  assert exit_codes.table() in train.PROGRAM.help


@pytest.mark.parametrize(
  ('outcome', 'code'),
  [
    (loop.Result(None, 3, True, 1), exit_codes.PREEMPTED),
    (loop.Result(None, 3, False, 1), exit_codes.DONE),
    (refusals.Refused('why'), exit_codes.REFUSED),
    (ValueError('why'), exit_codes.CRASHED),
    (loop.NonFiniteError('why'), exit_codes.NOT_FINITE),
    (exports.ExportError('why'), exit_codes.NOT_EXPORTED),
    (checkpoint.SaveError('why'), exit_codes.CRASHED),
    (stopping.Stopped(), exit_codes.PREEMPTED),
    (RuntimeError('why'), exit_codes.CRASHED),
  ],
)
def test_the_exit_code_of_each_outcome_of_training(capsys, monkeypatch, outcome, code):
  def run(config: settings.Config) -> loop.Result:
    del config
    if isinstance(outcome, BaseException):
      raise outcome
    return outcome

  monkeypatch.setattr(training, 'train', run)
  assert attempt(settings.Config()) == code
  assert ('Traceback' in capsys.readouterr().err) == (type(outcome) in (ValueError, RuntimeError))
