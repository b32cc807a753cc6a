"""The sampler on a mesh, for weights that are sharded as for training."""

import dataclasses

import jax

from alignjax.models import base
from alignjax.parallel import rules
from alignjax.sampling import layouts, sampler
from alignjax.types import Array, Params


class ShardedSampler:
  """Draws responses on the devices of a mesh.

  Args:
    model: the model to sample from.
    mesh: the mesh that holds the weights.
    decoding: how responses are drawn; its `constrain` is replaced.

  Attributes:
    layout: how the weights are sharded while the model decodes.
    batch_sharding: how prompts are sharded meanwhile.
  """

  def __init__(self, model: base.LanguageModel, mesh: jax.sharding.Mesh, decoding: sampler.Decoding):
    self.layout = layouts.choose(model, mesh)
    self.batch_sharding = rules.batch_sharding(self.layout.mesh)
    constrain = rules.constraint(self.layout.mesh)
    self._model = model.constrained(constrain) if model.constrained else model
    self._decoding = dataclasses.replace(decoding, constrain=constrain)
    self._compiled = jax.jit(self.sample)

  def place(self, params: Params) -> Params:
    """Reshards weights for decoding. Do it once for all prompts that are drawn with the same weights.

    Args:
      params: the weights on the mesh; kernels may be adapted or quantised.
    """
    return self.layout.place(params)

  def sample(self, placed: Params, key: Array, prompts: sampler.Prompts) -> sampler.Samples:
    """Draws responses, see `sampler.sample`; to be compiled.

    Args:
      placed: the result of `place`.
      key: a typed PRNG key.
      prompts: prompts on the devices, by `batch_sharding`.
    """
    return sampler.sample(self._model, placed, prompts, key, self._decoding)

  def draw(self, placed: Params, key: Array, prompts: sampler.Prompts) -> sampler.Samples:
    """Draws responses by a program that is compiled once for each shape of prompts.

    Args:
      placed: the result of `place`.
      key: a typed PRNG key.
      prompts: numpy arrays, the same on all processes. Their number is a multiple of the batch shards of the mesh.
    """
    return self._compiled(placed, key, jax.device_put(prompts, self.batch_sharding))
