"""What a finished run leaves: models and adapters that other tools read."""

from collections.abc import Callable
import pathlib
from typing import NamedTuple

from alignjax import optim
from alignjax.models import checkpoint_io, peft
from alignjax.training import state as training_state
from alignjax.training.policy import Policy
from alignjax.types import Params


class Target(NamedTuple):
  """Where a run writes its models, and where it takes what it does not train."""

  workdir: pathlib.Path
  origin: str  # folder of the model before training, whose tokenizer and configuration are copied


def export(
  target: Target,
  policy: Policy,
  state: training_state.TrainState,
  base: Params | None,
  averages: bool,
  announce: Callable[[str], None],
) -> None:
  """Writes model/, the aligned model; model_average/ if the optimizer keeps one; adapter/ if an adapter was trained.

  Folders that exist stay as they are.

  Args:
    target: where to write.
    policy: the model and what of it was trained.
    state: the state of the finished run.
    base: the frozen parameters under an adapter, which are merged with it; None without one.
    averages: whether the optimizer keeps an average of the parameters.
    announce: called with a line for each folder.
  """
  workdir, model_config = target.workdir, policy.model.config

  def export_model(name: str, what: str, params: Params) -> None:
    folder = workdir / name
    if not (folder / 'config.json').exists():
      checkpoint_io.save(folder, model_config, policy.merged(params, base), assets_from=target.origin)
    announce(f'{what} is in {folder}')

  export_model('model', 'the aligned model', state.params)
  if averages:
    export_model('model_average', 'its moving average', optim.averaged(state.opt_state, state.params))
  if policy.adapter is not None:
    folder = workdir / 'adapter'
    if not (folder / peft.CONFIG).exists():
      peft.save(folder, model_config, policy.adapter, state.params, target.origin)
    announce(f'the adapter is in {folder}, as PEFT reads it')
