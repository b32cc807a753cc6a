"""The policy: a model and which of its parameters are trained."""

import dataclasses

import jax

from alignjax.models import base as models
from alignjax.models import lora
from alignjax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Policy:
  """A model whose own parameters are trained, or adapters on top of a frozen base.

  Args:
    model: the model as functions of its parameters.
    adapter: the adapters to train on top of `Frozen.base`; None trains the model's own parameters.
  """

  model: models.LanguageModel
  adapter: lora.LoRA | None = None

  def bind(self, base: Params | None) -> models.LanguageModel:
    """The model as functions of the trained parameters.

    Args:
      base: the frozen parameters under the adapters, or their shapes; None without adapters.

    Raises:
      ValueError: if there are adapters and no base, or a base and no adapters.
    """
    if self.adapter is None:
      if base is not None:
        raise ValueError('Frozen.base is given, but the policy has no adapters: pass Policy(model, adapter) or no base')
      return self.model
    if base is None:
      raise ValueError('the policy trains adapters, but Frozen.base is None: pass the parameters that they adapt')
    return lora.bind(self.model, base, self.adapter)

  def trained_shapes(self) -> Params:
    """The shapes of the trained parameters.

    Raises:
      ValueError: if the adapters target a projection that the model does not have.
    """
    key = jax.random.key(0)
    shapes = jax.eval_shape(self.model.init, key)
    return shapes if self.adapter is None else jax.eval_shape(self.bind(shapes).init, key)

  def attached(self, params: Params, base: Params | None) -> Params:
    """The parameters of the model that computes what the policy does, its kernels adapted, for export.

    Args:
      params: the trained parameters.
      base: as for `bind`.
    """
    return params if self.adapter is None else lora.attach(base, params, self.adapter)

  def init(self, key: Array, base: Params | None) -> Params:
    """Draws the trained parameters.

    Args:
      key: a typed PRNG key.
      base: as for `bind`.
    """
    return self.bind(base).init(key)
