"""The sampler on a mesh, for weights that are sharded as for training."""

import dataclasses
import functools

import jax

from alignjax.models import base
from alignjax.parallel import rules
from alignjax.sampling import layouts, sampler
from alignjax.types import Array, Params


class ShardedSampler:
  """Draws responses on the devices of a mesh, compiled once for each shape of prompts.

  Args:
    model: the model to sample from.
    mesh: the mesh that holds the weights.
    decoding: how responses are drawn; its `constrain` is replaced.

  Attributes:
    layout: how the weights are sharded while the model decodes.
  """

  def __init__(self, model: base.LanguageModel, mesh: jax.sharding.Mesh, decoding: sampler.Decoding):
    self.layout = layouts.choose(model, mesh)
    constrain = rules.activation_constraint(self.layout.mesh)
    decoding = dataclasses.replace(decoding, constrain=constrain)
    model = model.constrained(constrain) if model.constrained else model
    self._draw = jax.jit(functools.partial(sampler.sample, model, decoding=decoding))

  def place(self, params: Params) -> Params:
    """Reshards weights for decoding. Do it once for all prompts that are drawn with the same weights.

    Args:
      params: the weights on the mesh; kernels may be adapted or quantised.
    """
    return self.layout.place(params)

  def draw(self, placed: Params, prompts: sampler.Prompts, key: Array) -> sampler.Samples:
    """Draws responses; see `sampler.sample`.

    Args:
      placed: the result of `place`.
      prompts: the same arrays on all processes. Their number is a multiple of the number of devices.
      key: a typed PRNG key.
    """
    return self._draw(placed, jax.device_put(prompts, rules.batch_sharding(self.layout.mesh)), key)
