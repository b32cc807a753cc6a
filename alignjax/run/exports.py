"""What a finished run leaves: models and adapters that other tools read."""

from collections.abc import Callable
import pathlib
from typing import NamedTuple

from alignjax import optim
from alignjax.models import checkpoint_io, lora, peft, transformer
from alignjax.training import state as training_state
from alignjax.types import Params


class Origin(NamedTuple):
  """What was trained."""

  folder: str  # of the model before training
  config: transformer.TransformerConfig
  adapter: lora.LoRA | None  # what was trained if not the model's own parameters
  averages: bool  # whether the optimizer keeps an average of the parameters


def export(
  workdir: pathlib.Path,
  origin: Origin,
  state: training_state.TrainState,
  base: Params | None,
  announce: Callable[[str], None],
) -> None:
  """Writes model/, the aligned model; model_average/ if the optimizer keeps one; adapter/ if an adapter was trained.

  Folders that exist stay as they are.

  Args:
    workdir: of the run.
    origin: what was trained.
    state: the state after the last step.
    base: the model under the adapter, which is merged with it.
    announce: called with a line for each folder.
  """
  adapter = origin.adapter

  def export_model(name: str, what: str, params: Params) -> None:
    folder = workdir / name
    if not (folder / 'config.json').exists():
      params = params if adapter is None else lora.merge(base, params, adapter)
      checkpoint_io.save(folder, origin.config, params, assets_from=origin.folder)
    announce(f'{what} is in {folder}')

  export_model('model', 'the aligned model', state.params)
  if origin.averages:
    export_model('model_average', 'its moving average', optim.averaged(state.opt_state, state.params))
  if adapter is not None:
    folder = workdir / 'adapter'
    if not (folder / peft.CONFIG).exists():
      peft.save(folder, origin.config, adapter, state.params, origin.folder)
    announce(f'the adapter is in {folder}, as PEFT reads it')
