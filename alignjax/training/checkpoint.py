"""Checkpoints: state, data iterator and metadata together, verified when they are read back.

A checkpoint of step n holds three items:

  state     every array of the state by its path in the tree; PRNG keys as their raw data
  data      the state of the Grain iterator, one file a process
  metadata  identity and configuration of the run, versions, and shape, dtype and checksum of each array

Orbax commits a checkpoint atomically, so a killed run leaves the previous one intact; but it does not notice a flipped
bit among array bytes. Hence the checksums: computed on the devices before a save and after a restore, and equal for
every mesh and sharding.
"""

from collections.abc import Mapping
import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any, NamedTuple
import zlib

from absl import logging
from grain import checkpoint as grain_checkpoint
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from alignjax.types import Array

_VERSIONED = ('alignjax', 'flax', 'grain', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint')


class CheckpointError(ValueError):
  """A checkpoint that cannot be used."""


class CorruptCheckpointError(CheckpointError):
  """A checkpoint whose bytes are not those that were saved."""


class MismatchError(CheckpointError):
  """A checkpoint of another run: something differs that must not.

  Attributes:
    config: the configuration of that run.
    identity: the identity of that run if it is what differs, otherwise None.
  """

  def __init__(self, message: str, config: Mapping[str, Any], identity: Mapping[str, Any] | None = None):
    super().__init__(message)
    self.config, self.identity = config, identity


class Restored(NamedTuple):
  """What was read back."""

  step: int  # updates done
  state: Any
  config: Mapping[str, Any]  # the configuration of the run that saved it


def checksum(array: Array) -> Array:
  """The sum over elements of bits(x_i) * odd(i) mod 2^32, where odd(i) is an odd hash of the index i.

  An odd factor makes every single flipped bit visible, its dependence on i makes exchanged elements visible, and since
  a sum of integers does not depend on order, neither does the result depend on the mesh.

  Args:
    array: any shape; bool, integer or floating.

  Returns:
    [] uint32; 0 for an array of zeros.
  """
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)  # 8 bytes become a last axis of 2
  bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  mixed = index * jnp.uint32(0x9E3779B1)
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
  return jnp.sum(bits * ((mixed ^ (mixed >> 13)) | jnp.uint32(1)), dtype=jnp.uint32)


@jax.jit
def _checksums(arrays: dict[str, Array]) -> dict[str, Array]:
  return {name: checksum(array) for name, array in arrays.items()}


def checksums(tree: Any) -> dict[str, int]:
  """The checksum of each array of a tree, by its path; PRNG keys by their raw data."""
  raw = {name: _raw(leaf) for name, leaf in _by_path(tree).items()}
  return {name: int(value) for name, value in jax.device_get(_checksums(raw)).items()}


def _by_path(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Array) -> Array:
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _abstract(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
  if leaf.sharding is None:
    raise ValueError(f'{name}: to restore it, its sharding must be known, and this shape has none')
  raw = jax.eval_shape(_raw, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=leaf.sharding)


def _specification(leaf: Any) -> dict[str, Any]:
  return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}


def _versions() -> dict[str, str]:
  found = {}
  for name in _VERSIONED:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # alignjax itself, run from a checkout that is not installed
      found[name] = 'not installed'
  return found


def _digest(content: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _per_process(value: int) -> list[int]:
  """One uint32 of each process."""
  if jax.process_count() == 1:
    return [value]
  return [int(x) for x in multihost_utils.process_allgather(np.array([value], np.uint32)).ravel()]


class Checkpoints:
  """The checkpoints of one run, in one folder that all processes see.

  Args:
    folder: created if absent.
    config: the resolved configuration, JSON-like; given back by `restore`.
    identity: what must stay the same for as long as a run is resumed (model, data, objective, seed ...), JSON-like.
      A checkpoint in which an entry differs is refused.
    keep: the number of checkpoints to keep, the newest ones.
  """

  def __init__(
    self, folder: str | pathlib.Path, *, config: Mapping[str, Any], identity: Mapping[str, Any], keep: int = 2
  ):
    if keep < 1:
      raise ValueError(f'keep={keep}: at least one checkpoint must be kept')
    self.folder = pathlib.Path(folder).absolute()
    self._config = json.loads(json.dumps(config))
    self._identity = json.loads(json.dumps(dict(identity)))
    self._identity['jax_threefry_partitionable'] = bool(jax.config.jax_threefry_partitionable)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=('state', 'data', 'metadata'))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Steps of the checkpoints, the newest last."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, iterator: Any) -> None:
    """Saves in the background. On return the state may be donated, and the iterator may move on.

    Args:
      step: updates done.
      state: a tree of arrays that the caller knows to be finite.
      iterator: a Grain iterator, whose state is taken at once.
    """
    leaves = _by_path(state)
    sums = checksums(state)
    arrays = {name: _specification(leaf) | {'checksum': sums[name]} for name, leaf in leaves.items()}
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if _is_key(leaf)}
    content = {
      'step': step,
      'identity': self._identity,
      'config': self._config,
      'versions': _versions(),
      'arrays': arrays,
      'keys': keys,
      'data': _per_process(zlib.crc32(json.dumps(iterator.get_state(), sort_keys=True).encode())),
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave({name: _raw(leaf) for name, leaf in leaves.items()}),
        data=grain_checkpoint.CheckpointSave(iterator),
        metadata=ocp.args.JsonSave({'content': content, 'sha256': _digest(content)}),
      ),
      force=True,
    )

  def wait(self) -> None:
    """Returns when the last save is committed."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save and releases the folder."""
    self._manager.close()

  def restore(self, like: Any, iterator: Any) -> Restored | None:
    """Reads the newest good checkpoint, and moves the iterator to where it stood.

    A corrupt checkpoint is reported as an error in the log, moved to the folder `<folder>-corrupt`, and the one before
    it is read.

    Args:
      like: a tree of arrays or of ShapeDtypeStructs, with shardings, which the restored arrays get.
      iterator: a Grain iterator over the same data.

    Returns:
      None where there is no checkpoint.

    Raises:
      MismatchError: for a checkpoint of a run of another identity, or of other arrays.
      CorruptCheckpointError: where there are checkpoints and none is good.
    """
    failures: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        restored = self._restore_step(step, like, iterator)
      except CorruptCheckpointError as error:
        failures[step] = str(error)
        logging.error('CORRUPT CHECKPOINT: %s. Trying the one before it.', failures[step])
        continue
      for corrupt in failures:
        self._set_aside(corrupt)
      return restored
    if failures:
      raise CorruptCheckpointError(
        f'no checkpoint in {self.folder} is good: {"; ".join(failures.values())}. Remove the folder to start anew'
      )
    return None

  def _restore_step(self, step: int, like: Any, iterator: Any) -> Restored:
    metadata = self._read_metadata(step)
    leaves = _by_path(like)
    self._check_identity(step, metadata)
    self._check_arrays(step, metadata, leaves)
    data_state = self._read_data(step, metadata)
    abstract = {name: _abstract(name, leaf) for name, leaf in leaves.items()}
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    arrays = self._guard(step, 'state', lambda: self._manager.restore(step, args=arguments)['state'])
    wrong = [name for name, value in checksums(arrays).items() if value != metadata['arrays'][name]['checksum']]
    if wrong:
      raise CorruptCheckpointError(f'checkpoint {step}: the bytes of {", ".join(wrong)} are not those that were saved')
    for name, implementation in metadata['keys'].items():
      arrays[name] = jax.random.wrap_key_data(arrays[name], impl=implementation)
    # The iterator moves last: had it moved for a checkpoint that proved corrupt, nothing would move it back.
    iterator.set_state(data_state)
    self._warn_of_versions(step, metadata['versions'])
    state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
    return Restored(step, state, metadata['config'])

  def _guard(self, step: int, item: str, read: Any) -> Any:
    """Runs `read` on every process; if it fails on one, all of them agree that the checkpoint is corrupt."""
    result, cause = None, None
    try:
      result = read()
    except Exception as error:  # damaged files surface as KeyError, JSONDecodeError, text of the storage layer, ...
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        raise
      cause = error
    failed = _per_process(int(cause is not None))
    if any(failed):
      where = '' if len(failed) == 1 else f' on processes {[i for i, fail in enumerate(failed) if fail]}'
      detail = '' if cause is None else f': {type(cause).__name__}: {str(cause)[:300]}'
      raise CorruptCheckpointError(f'checkpoint {step}: its {item} cannot be read{where}{detail}') from cause
    return result

  def _read_metadata(self, step: int) -> Mapping[str, Any]:
    def read() -> Mapping[str, Any]:
      saved = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))['metadata']
      if _digest(saved['content']) != saved['sha256']:
        raise ValueError('its digest does not match')
      return saved['content']

    return self._guard(step, 'metadata', read)

  def _read_data(self, step: int, metadata: Mapping[str, Any]) -> Any:
    """The state of this process's data iterator; where all states are equal, any number of processes can resume."""
    sums = metadata['data']
    if len(sums) != jax.process_count() and len(set(sums)) > 1:
      raise MismatchError(
        f'checkpoint {step} was saved by {len(sums)} processes and cannot be resumed by {jax.process_count()}: '
        'each process had a place of its own in the data',
        metadata['config'],
      )
    process = jax.process_index() if len(sums) == jax.process_count() else 0

    def read() -> Any:
      file = self.folder / str(step) / 'data' / f'process_{process}-of-{len(sums)}.json'
      state = json.loads(file.read_text(encoding='utf-8'))
      if zlib.crc32(json.dumps(state, sort_keys=True).encode()) != sums[process]:
        raise ValueError('its checksum does not match')
      return state

    return self._guard(step, 'data', read)

  def _check_identity(self, step: int, metadata: Mapping[str, Any]) -> None:
    saved = metadata['identity']
    changed = [
      f'{name}: was {saved.get(name, "absent")!r}, is now {self._identity.get(name, "absent")!r}'
      for name in sorted(saved.keys() | self._identity.keys())
      if saved.get(name, 'absent') != self._identity.get(name, 'absent')
    ]
    if changed:
      raise MismatchError(
        f'checkpoint {step} in {self.folder} belongs to another run. {"; ".join(changed)}. '
        'Go back to the old value, or choose another work directory',
        metadata['config'],
        saved,
      )

  def _check_arrays(self, step: int, metadata: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    saved = metadata['arrays']

    def described(specification: Mapping[str, Any] | None) -> str:
      return 'absent' if specification is None else f'{specification["dtype"]}{specification["shape"]}'

    for name in sorted(saved.keys() | leaves.keys()):
      was = {key: saved[name][key] for key in ('shape', 'dtype')} if name in saved else None
      now = _specification(leaves[name]) if name in leaves else None
      if was != now:
        raise MismatchError(
          f'checkpoint {step}: {name} was {described(was)} and is now {described(now)}. '
          'Go back to the old settings, or choose another work directory',
          metadata['config'],
        )

  def _warn_of_versions(self, step: int, saved: Mapping[str, str]) -> None:
    for name, now in _versions().items():
      if saved.get(name) != now:
        logging.warning('checkpoint %d was written with %s %s; this is %s', step, name, saved.get(name), now)

  def _set_aside(self, step: int) -> None:
    target = self.folder.with_name(self.folder.name + '-corrupt')
    if jax.process_index() == 0:
      target.mkdir(exist_ok=True)
      free = next(n for n in range(1000) if not (target / f'{step}.{n}').exists())
      (self.folder / str(step)).rename(target / f'{step}.{free}')
    _per_process(0)  # nobody goes on before the folder is gone
    self._manager.reload()
    logging.error('checkpoint %d is now in %s', step, target)
