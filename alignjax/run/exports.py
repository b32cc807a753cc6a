"""Exports the results of a finished run: models and adapters in formats that other tools read."""

from collections.abc import Callable
import pathlib
from typing import NamedTuple

from alignjax import optim
from alignjax.models import checkpoint_io, peft
from alignjax.training import state as training_state
from alignjax.training.policy import Policy
from alignjax.types import Params


class Origin(NamedTuple):
  """The policy that was trained, and the model it started from."""

  folder: str  # the model before training
  policy: Policy
  averages: bool  # whether the optimizer keeps an average of the parameters


def export(
  workdir: pathlib.Path,
  origin: Origin,
  state: training_state.TrainState,
  base: Params | None,
  announce: Callable[[str], None],
) -> None:
  """Writes model/, the aligned model; model_average/ if the optimizer keeps one; adapter/ if an adapter was trained.

  Existing folders are left unchanged.

  Args:
    workdir: the run's folder.
    origin: the policy and where it came from.
    state: the state after the last step.
    base: the frozen parameters that the adapter is merged into; None without an adapter.
    announce: called with one line per folder.
  """
  policy, config = origin.policy, origin.policy.model.config

  def export_model(name: str, what: str, params: Params) -> None:
    folder = workdir / name
    if not (folder / 'config.json').exists():
      checkpoint_io.save(folder, config, policy.merged(params, base), assets_from=origin.folder)
    announce(f'{what} is in {folder}')

  export_model('model', 'the aligned model', state.params)
  if origin.averages:
    export_model('model_average', 'its moving average', optim.averaged(state.opt_state, state.params))
  if policy.adapter is not None:
    folder = workdir / 'adapter'
    if not (folder / peft.CONFIG).exists():
      peft.save(folder, config, policy.adapter, state.params, origin.folder)
    announce(f'the adapter is in {folder}, as PEFT reads it')
