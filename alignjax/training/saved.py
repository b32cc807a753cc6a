"""Reads single arrays of a checkpoint, without the run that saved it and on any devices."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from alignjax import paths
from alignjax.models import pieces
from alignjax.training import checkpoint, checksums, compatibility
from alignjax.types import Array, Params


def fingerprint(params: Params) -> str:
  """`checksums.fingerprint` of deferred arrays, without reading them."""
  return checksums.fingerprint_of({name: leaf.checksum for name, leaf in checksums.by_path(params).items()})


@dataclasses.dataclass(frozen=True)
class Saved:
  """A checkpoint on disk.

  Attributes:
    folder: the folder of the checkpoint.
    step: updates done.
    content: its metadata, as `Checkpoints.save` writes it.
  """

  folder: pathlib.Path
  step: int
  content: Mapping[str, Any]

  def deferred(self, like: Any) -> Any:
    """The arrays of a tree, to be read when they are needed.

    Args:
      like: a tree of ShapeDtypeStructs with shardings, with the paths of the state that was saved.

    Raises:
      MismatchError: the checkpoint holds other arrays.
    """
    leaves, arrays = checksums.by_path(like), self.content['arrays']
    if changes := compatibility.changed_arrays({name: arrays[name] for name in leaves if name in arrays}, leaves):
      raise checkpoint.MismatchError(f'checkpoint {self.step}: {changes[0]}', self.content['config'])

    def defer(name: str, leaf: Any) -> pieces.Deferred:
      return pieces.Deferred(leaf.shape, leaf.dtype, lambda: self._read(name, leaf), arrays[name]['checksum'])

    return jax.tree.unflatten(jax.tree.structure(like), [defer(name, leaf) for name, leaf in leaves.items()])

  def _read(self, name: str, like: jax.ShapeDtypeStruct) -> Array:
    """Reads an array and verifies its checksum."""
    item = {name: like}
    arguments = ocp.args.PyTreeRestore(
      item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        array = reader.restore(self.folder / 'state', args=arguments)[name]
    except Exception as error:  # damaged files raise KeyError, JSONDecodeError, errors of the storage layer, ...
      raise checkpoint.CorruptCheckpointError(f'{self._name}: {name} cannot be read: {error}') from error
    if checksums.checksums({name: array})[name] != self.content['arrays'][name]['checksum']:
      raise checkpoint.CorruptCheckpointError(f'{self._name}: the bytes of {name} have changed since it was saved')
    return array

  @property
  def _name(self) -> str:
    return f'checkpoint {self.step} in {self.folder.parent}'


def read(folder: pathlib.Path, step: int) -> Saved:
  """Reads the metadata of a checkpoint.

  Args:
    folder: the folder of all checkpoints of a run.
    step: the step of the checkpoint.

  Raises:
    CorruptCheckpointError: the metadata are absent, damaged, or those of another checkpoint.
  """
  place = paths.absolute(folder) / str(step)
  try:
    metadata = json.loads((place / 'metadata' / 'metadata').read_bytes())
    content = metadata['content']
    if checkpoint.digest(content) != metadata['sha256']:
      raise ValueError('its digest does not match')
    if content['step'] != step:
      raise ValueError(f'it was saved as checkpoint {content["step"]}: its folder has been renamed')
  except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
    raise checkpoint.CorruptCheckpointError(
      f'checkpoint {step} in {folder}: its metadata cannot be read: {error}'
    ) from error
  return Saved(place, step, content)
