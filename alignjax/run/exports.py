"""What a finished run leaves: models and adapters that other tools read."""

from collections.abc import Callable
import pathlib

from alignjax import optim
from alignjax.models import checkpoint_io, peft
from alignjax.optim import recipes
from alignjax.run import settings
from alignjax.training import state as state_lib
from alignjax.training.policy import Policy
from alignjax.types import Params


def export(
  policy: Policy,
  state: state_lib.TrainState,
  base: Params | None,
  config: settings.Config,
  recipe: recipes.Recipe,
  announce: Callable[[str], None],
) -> None:
  """Writes model/, the aligned model; model_average/ if the optimizer keeps one; adapter/ if an adapter was trained.

  What is there already stays.

  Args:
    policy: the model and what of it was trained.
    state: the state of the finished run.
    base: the frozen parameters under an adapter, which are merged with it; None without one.
    config: the run's settings.
    recipe: its optimizer.
    announce: called with the path of each folder.
  """
  workdir, model_config = pathlib.Path(config.workdir), policy.model.config

  def export_model(name: str, what: str, params: Params) -> None:
    folder = workdir / name
    if not (folder / 'config.json').exists():
      checkpoint_io.save(folder, model_config, policy.merged(params, base), assets_from=config.model)
    announce(f'{what} is in {folder}')

  export_model('model', 'the aligned model', state.params)
  if recipe.averages:
    export_model('model_average', 'its moving average', optim.averaged(state.opt_state, state.params))
  if policy.adapter is not None:
    folder = workdir / 'adapter'
    if not (folder / peft.CONFIG).exists():
      peft.save(folder, model_config, policy.adapter, state.params, config.model)
    announce(f'the adapter is in {folder}, as PEFT reads it')
