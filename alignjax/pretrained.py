"""A Hugging Face folder on the devices of a mesh: what reward models, judges and lm-eval compute with."""

import os
from typing import Any, NamedTuple

import jax

from alignjax.data.tokens import tokenization
from alignjax.models import base, checkpoint_io, fingerprints, naming, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.types import Params


class Pretrained(NamedTuple):
  """A model with its tokenizer and its sharded parameters.

  Attributes:
    model: the model.
    params: its parameters, on the mesh.
    tokenizer: its own tokenizer.
    mesh: the mesh shared by all processes.
    fingerprint: identifies the contents of its folder; empty if it comes from none.
  """

  model: base.LanguageModel
  params: Params
  tokenizer: tokenization.Tokenizer
  mesh: jax.sharding.Mesh
  fingerprint: str = ''

  @property
  def positions(self) -> int:
    """The largest number of tokens that the model reads."""
    return self.model.config.max_positions

  @property
  def vocab_size(self) -> int:
    return self.model.config.vocab_size

  def rows(self, batch_size: int) -> int:
    """`batch_size`, rounded up to a multiple of the devices that share a batch."""
    shards = parallel_mesh.batch_shards(self.mesh)
    return -(-batch_size // shards) * shards


def load(folder: str | os.PathLike[str], role: str, **entries: Any) -> Pretrained:
  """Loads a model and its tokenizer from a Hugging Face folder. The weights keep the dtype of their file.

  Args:
    folder: a folder, or its name on the Hub.
    role: what the folder is used as; errors of names name it.
    **entries: entries of the configuration that replace those of the folder, such as `compute_dtype` and `output`.

  Raises:
    ValueError: the folder cannot be used.
  """
  folder = naming.resolve(folder, role)
  mesh = parallel_mesh.make_mesh()
  config = checkpoint_io.load_config(folder, **entries)
  model = transformer.build(config, rules.constraint(mesh))
  shardings = rules.param_shardings(mesh, jax.eval_shape(model.init, jax.random.key(0)))
  params = checkpoint_io.load_params(folder, config, shardings, checkpoint_io.Loading(dtype=None))
  return Pretrained(model, params, tokenization.Tokenizer.load(folder), mesh, fingerprints.of(folder))
