"""The model, the tokenizer and the folder that all stages of a quickstart share."""

from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple

import jax

from alignjax import rewards
from alignjax.data.batches import shapes
from alignjax.data.tokens import tokenization
from alignjax.models import base as models
from alignjax.models import checkpoint_io, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import arithmetic, compiled, smollm2
from alignjax.sampling import strategies
from alignjax.types import Params
from experiments.quickstart import command_line, responses


class Setup(NamedTuple):
  """Everything that the stages of a quickstart share."""

  settings: command_line.Shared
  reward: rewards.Score
  workdir: pathlib.Path
  folder: pathlib.Path  # the model before training
  config: transformer.TransformerConfig
  model: models.LanguageModel
  mesh: jax.sharding.Mesh
  tokenizer: tokenization.Tokenizer
  shardings: Any  # of the parameters
  reference: Params
  shape: shapes.Bucket  # tokens of a prompt and of a response

  def load(self, folder: pathlib.Path) -> Params:
    """Loads the parameters of an aligned model."""
    return checkpoint_io.load_params(folder, self.config, self.shardings)

  def responder(self, group: int, samples: int, *strategy: strategies.Strategy) -> responses.Responder:
    """Draws `samples` responses to `group` prompts at a time."""
    sizes = responses.Sizes(group, samples, *self.shape)
    return responses.Responder(self.model, self.mesh, self.tokenizer, self.reward, sizes, *strategy)


def set_up(settings: command_line.Shared, reward: rewards.Score, texts: Sequence[str]) -> Setup:
  """Loads the model and the tokenizer. Call it before JAX computes anything, because it may set XLA flags.

  Args:
    settings: the command-line settings.
    reward: the gold reward.
    texts: all prompts, which decide to how many tokens prompts are padded.
  """
  compiled.keep()
  arithmetic.prepare()
  dtype = arithmetic.resolve(settings.compute_dtype)
  workdir = pathlib.Path(settings.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  folder = pathlib.Path(settings.model) if settings.model else smollm2.convert(workdir / 'base')
  config = checkpoint_io.load_config(folder, compute_dtype=dtype)
  mesh = parallel_mesh.make_mesh()
  model = transformer.build(config, rules.constraint(mesh))
  shardings = rules.param_shardings(mesh, jax.eval_shape(model.init, jax.random.key(0)))
  tokenizer = tokenization.Tokenizer.load(folder)
  return Setup(
    settings=settings,
    reward=reward,
    workdir=workdir,
    folder=folder,
    config=config,
    model=model,
    mesh=mesh,
    tokenizer=tokenizer,
    shardings=shardings,
    reference=checkpoint_io.load_params(folder, config, shardings),
    shape=(responses.longest_prompt(tokenizer, texts), settings.max_new_tokens),
  )
