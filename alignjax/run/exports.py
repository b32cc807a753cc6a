"""What a finished run leaves: models and adapters that other tools read."""

from collections.abc import Callable
import pathlib

from alignjax import optim
from alignjax.models import checkpoint_io, lora, peft, transformer
from alignjax.optim import recipes
from alignjax.run import settings
from alignjax.training import state as state_lib
from alignjax.types import Params


def export(
  workdir: pathlib.Path,
  model_config: transformer.TransformerConfig,
  state: state_lib.TrainState,
  config: settings.Config,
  recipe: recipes.Recipe,
  announce: Callable[[str], None],
  adapter: lora.LoRA | None = None,
  base: Params | None = None,
) -> None:
  """Writes model/, the aligned model; model_average/ if the optimizer keeps one; adapter/ if an adapter was trained.

  What is there already stays.

  Args:
    workdir: of the run.
    model_config: of the model.
    state: when the run is finished.
    config: of the run.
    recipe: its optimizer.
    announce: told of every folder.
    adapter: what was trained if not the model's own parameters.
    base: the model under the adapter, which is merged with it.
  """

  def export_model(name: str, what: str, params: Params) -> None:
    folder = workdir / name
    if not (folder / 'config.json').exists():
      params = params if adapter is None else lora.merge(base, params, adapter)
      checkpoint_io.save(folder, model_config, params, assets_from=config.model)
    announce(f'{what} is in {folder}')

  export_model('model', 'the aligned model', state.params)
  if recipe.averages:
    export_model('model_average', 'its moving average', optim.averaged(state.opt_state, state.params))
  if adapter is not None:
    folder = workdir / 'adapter'
    if not (folder / peft.CONFIG).exists():
      peft.save(folder, model_config, adapter, state.params, config.model)
    announce(f'the adapter is in {folder}, as PEFT reads it')
