"""Checksums of the weights that a run has loaded besides its state: the reference, an adapter's base, the delta.

Every checkpoint keeps them, and a run that resumes compares what it has loaded. They do not depend on the mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax

from alignjax.models import families, transformer
from alignjax.training import checkpoint, checksums
from alignjax.types import Array, Params


class Loaded:
  """The checksums by part and tensor: {'base': {'model.layers.0.mlp.up_proj.weight': 123, ...}, ...}.

  Args:
    config: the configuration of the model.
  """

  def __init__(self, config: transformer.TransformerConfig):
    self._family = families.of(config)
    self._sums: dict[str, dict[str, Array]] = {}
    self._folders: dict[str, str] = {}

  def add(self, part: str, folder: str, params: Params) -> None:
    """Adds all leaves of a model, or of its head.

    Args:
      part: what the run uses the weights for.
      folder: the folder that they come from.
      params: the leaves.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      self.add_leaf(part, folder, jax.tree_util.keystr(path, simple=True, separator='/'), leaf)

  def add_leaf(self, part: str, folder: str, path: str, leaf: Array) -> None:
    """Adds one leaf of a model."""
    tensor = self._family.tensor(path)
    names = [name if len(tensor.leaves) == 1 else f'{name} ({path})' for name in tensor.names(leaf.shape)]
    sums = _by_layer(_on_device(leaf)) if tensor.stacked else [_whole(_on_device(leaf))]
    self._sums.setdefault(part, {}).update(zip(names, sums, strict=True))
    self._folders[part] = folder

  def sums(self) -> dict[str, dict[str, int]]:
    """The checksums, in JSON types."""
    return jax.tree.map(int, jax.device_get(self._sums))

  def check(self, saved: Mapping[str, Mapping[str, int]], config: Mapping[str, Any]) -> None:
    """Compares the weights with those of the run that saved a checkpoint. Parts that only one of them has are ignored.

    Args:
      saved: the checksums in the checkpoint.
      config: the configuration in the checkpoint.

    Raises:
      MismatchError: a tensor has changed.
    """
    for part, sums in self.sums().items():
      for name in sums.keys() & saved.get(part, {}).keys():
        if sums[name] != saved[part][name]:
          raise checkpoint.MismatchError(
            f'{self._folders[part]}: tensor {name} has changed since this run was started, and the run uses it as '
            f'its {part}. Restore the folder, or choose another work directory',
            config,
          )


def _on_device(leaf: Array) -> Array:
  """The leaf in the memory of its devices, where programs can read it."""
  kind = next(iter(leaf.sharding.device_set)).default_memory().kind
  if leaf.sharding.memory_kind in (None, kind):
    return leaf
  return jax.device_put(leaf, leaf.sharding.with_memory_kind(kind))


_whole = jax.jit(checksums.checksum)


@jax.jit
def _by_layer(leaf: Array) -> list[Array]:
  """The checksum of each layer."""
  return list(jax.vmap(checksums.checksum)(leaf))
