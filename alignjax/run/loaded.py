"""Checksums of the weights that a run has loaded besides its state: the reference, an adapter's base, the delta.

Every checkpoint keeps them, and a run that resumes compares what it has loaded. They do not depend on the mesh.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import numpy as np

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
    """Adds all leaves of a model. Those in host memory are moved to the devices one by one.

    Args:
      part: what the run uses the weights for.
      folder: the folder that they come from.
      params: the leaves.
    """
    paths = jax.tree_util.tree_leaves_with_path(params)
    leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}
    kind = jax.local_devices()[0].default_memory().kind
    away = [path for path, leaf in leaves.items() if leaf.sharding.memory_kind not in (None, kind)]
    for path in away:
      leaf = leaves.pop(path)
      self.add_leaf(part, folder, path, jax.device_put(leaf, leaf.sharding.with_memory_kind(kind)))
    self._add(part, folder, leaves)

  def add_leaf(self, part: str, folder: str, path: str, leaf: Array) -> None:
    """Adds one leaf of a model."""
    self._add(part, folder, {path: leaf})

  def _add(self, part: str, folder: str, leaves: Mapping[str, Array]) -> None:
    depths = frozenset((path, self._family.tensor(path).depth) for path in leaves)
    self._folders[part] = folder
    self._sums.setdefault(part, {}).update(_sums(dict(leaves), depths))

  def sums(self) -> dict[str, dict[str, int]]:
    """The checksums, in JSON types."""
    return {part: self._by_tensor(sums) for part, sums in jax.device_get(self._sums).items()}

  def _by_tensor(self, sums: Mapping[str, np.ndarray]) -> dict[str, int]:
    found = {}
    for path, values in sums.items():
      tensor = self._family.tensor(path)
      names = [name if len(tensor.leaves) == 1 else f'{name} ({path})' for name in tensor.names(values.shape)]
      found |= zip(names, values.ravel().tolist(), strict=True)
    return found

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


@functools.partial(jax.jit, static_argnums=1)
def _sums(leaves: dict[str, Array], depths: frozenset[tuple[str, int]]) -> dict[str, Array]:
  """The checksums of the stored tensors in each leaf, by path.

  Args:
    leaves: the leaves.
    depths: the number of leading axes of each leaf that stack stored tensors.
  """
  checksum = checksums.checksum, jax.vmap(checksums.checksum), jax.vmap(jax.vmap(checksums.checksum))
  return {path: checksum[depth](leaves[path]) for path, depth in depths}
