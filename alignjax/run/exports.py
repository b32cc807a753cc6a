"""Exports the results of a finished run: models and adapters in formats that other tools read."""

from collections.abc import Callable, Iterator
import contextlib
import pathlib
from typing import Any, NamedTuple

import jax

from alignjax import optim, storage, transfers
from alignjax.models import checkpoint_io, folders, manifest, peft, reward_scale
from alignjax.run import locations
from alignjax.training import checkpoint, checksums, disk, processes, watchdog
from alignjax.training import state as training_state
from alignjax.training.policy import Policy
from alignjax.types import Params


class ExportError(Exception):
  """The run is trained and saved, but its model could not be written."""


class Records(NamedTuple):
  """What the configuration and the metrics of a run give an export."""

  card: Callable[[str, int], str] = lambda folder, step: ''  # the model card
  scale: Callable[[int], reward_scale.RewardScale | None] = lambda step: None  # of a reward model, after a step


class Origin(NamedTuple):
  """The policy that was trained, and the model it started from."""

  folder: str  # the model before training
  fingerprint: str  # of that folder
  policy: Policy
  averages: bool  # whether the optimizer keeps an average of the parameters
  records: Records = Records()


def export(
  workdir: pathlib.Path,
  origin: Origin,
  state: training_state.TrainState,
  base: Params | None,
  announce: Callable[[str], None],
  fingerprint: Callable[[Params], str] = checksums.fingerprint,
) -> None:
  """Writes model/, the aligned model; model_average/ if the optimizer keeps one; adapter/ if an adapter was trained.

  Folders are replaced as a whole. A folder that already holds the result of this state, undamaged, is left unchanged. A
  reward model without a reward.json gets one.

  Args:
    workdir: the run's folder.
    origin: the policy and where it came from.
    state: the state after the last step.
    base: the frozen parameters that the adapter is merged into; None without an adapter.
    announce: called with one line per folder.
    fingerprint: identifies parameters.

  Raises:
    ExportError: a folder cannot be written. The message explains how to export from the checkpoint.
  """
  policy, config = origin.policy, origin.policy.model.config

  def identify(params: Params) -> dict[str, Any]:
    """Identifies what an export is written from, in JSON types."""
    return {'step': int(state.step), 'model': origin.fingerprint, 'parameters': fingerprint(params)}

  def export_model(name: str, what: str, params: Params) -> None:
    folder, source = workdir / name, identify(params)
    if _must_write(folder, source, announce):
      with transfers.staged(folder) as local:
        about = folders.About(source, origin.records.card(name, int(state.step)))
        checkpoint_io.save(local, config, policy.attached(params, base), assets_from=origin.folder, about=about)
    if config.scored and jax.process_index() == 0 and not (folder / folders.REWARD).exists():
      scale = origin.records.scale(int(state.step))
      if scale is not None:
        reward_scale.write(folder, scale)
    announce(f'{what} is in {folder}')

  with watchdog.during('export'), _failures(workdir, int(state.step)):
    export_model('model', 'the reward model' if config.scored else 'the aligned model', state.params)
    if origin.averages:
      export_model('model_average', 'its moving average', optim.averaged(state.opt_state, state.params))
    if policy.adapter is not None:
      folder, source = workdir / 'adapter', identify(state.params)
      if _must_write(folder, source, announce):
        with transfers.staged(folder) as local:
          about = folders.About(source, origin.records.card('adapter', int(state.step)))
          peft.save(local, config, policy.adapter, state.params, locations.name_of(origin.folder), about)
      announce(f'the adapter is in {folder}, as PEFT reads it')


@contextlib.contextmanager
def _failures(workdir: pathlib.Path, step: int) -> Iterator[None]:
  """Turns errors of an export into an ExportError."""
  try:
    yield
  except checkpoint.CheckpointError:
    raise
  except Exception as error:  # each library has its own
    raise ExportError(
      f'step {step} is saved, but the model is not exported to {workdir}: {disk.describe(error)}. '
      'Remove the cause, and give the same command again: it exports from the checkpoint. So does '
      f'alignjax export --workdir={workdir}, on one machine and without the data'
    ) from error


def _must_write(folder: pathlib.Path, source: dict[str, Any], announce: Callable[[str], None]) -> bool:
  """Whether a folder is absent, damaged or written from another state: process 0 decides for all."""

  def find(alive: storage.Tick) -> str:
    del alive
    fault = manifest.fault(folder, source)
    if fault and folder.exists():
      announce(f'writing {folder} again: {fault}')
    return fault

  return bool(processes.from_first(find))
