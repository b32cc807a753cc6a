"""Checkpoints of a run: its state, the position of its source and its metadata, verified when they are restored.

The checkpoint of step n has three items:

  state     every array of the state by its path in the tree; PRNG keys as their raw data
  data      `Source.get_state()` as JSON, one file per process
  metadata  identity and configuration of the run, versions, and shape, dtype and checksum of each array

Orbax commits a checkpoint atomically, so a killed run leaves the previous one intact. It does not detect a flipped bit
in array files. The checksums do: they are computed on the devices before a save and after a restore, and do not depend
on the mesh or the sharding.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
from typing import Any, NamedTuple
import zlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from alignjax.training import checksums, source

_VERSIONED = ('alignjax', 'flax', 'grain', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint')


class CheckpointError(ValueError):
  """A checkpoint that cannot be used."""


class CorruptCheckpointError(CheckpointError):
  """A checkpoint whose bytes have changed since it was saved."""


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
  """A checkpoint that was read back."""

  step: int  # updates done
  state: Any
  config: Mapping[str, Any]  # the configuration of the run that saved it


def _abstract(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
  if leaf.sharding is None:
    raise ValueError(f'{name}: cannot be restored without a sharding; pass a ShapeDtypeStruct that has one')
  raw = jax.eval_shape(checksums.raw_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=leaf.sharding)


def _specification(leaf: Any) -> dict[str, Any]:
  return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}


def _versions() -> dict[str, str]:
  found = {}
  for name in _VERSIONED:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # alignjax itself, in a checkout that is not installed
      found[name] = 'not installed'
  return found


def _digest(content: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _crc(position: Any) -> int:
  return zlib.crc32(json.dumps(position, sort_keys=True).encode())


def per_process(value: int) -> list[int]:
  """Gathers one uint32 from each process."""
  if jax.process_count() == 1:
    return [value]
  return [int(x) for x in multihost_utils.process_allgather(np.array([value], np.uint32)).ravel()]


def _file_of(process: int, count: int) -> str:
  return f'process_{process}-of-{count}.json'


class _PositionHandler(ocp.CheckpointHandler):
  """Writes one JSON file per process. `Checkpoints` reads them without Orbax."""

  def save(self, directory: Any, args: '_PositionSave') -> None:
    (directory / _file_of(jax.process_index(), jax.process_count())).write_text(args.text)

  def restore(self, directory: Any, args: Any = None) -> None:
    raise NotImplementedError('Checkpoints.restore reads these files')


@ocp.args.register_with_handler(_PositionHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _PositionSave(ocp.args.CheckpointArgs):
  text: str


def _remove_unfinished(folder: pathlib.Path) -> None:
  """Removes checkpoints that a killed run did not commit. Orbax would do so in a thread that outlives a short run."""
  if jax.process_index() == 0:
    for unfinished in folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(unfinished)
  per_process(0)  # every process waits for the removal


class Checkpoints:
  """The checkpoints of one run, in one folder that all processes can read and write.

  Args:
    folder: created if absent.
    config: the resolved configuration, JSON-like; `restore` returns it.
    identity: everything that must stay the same when a run resumes (model, data, objective, seed, ...), JSON-like. A
      checkpoint in which an entry differs is refused.
    keep: the number of newest checkpoints to keep.
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
    _remove_unfinished(self.folder)
    options = ocp.CheckpointManagerOptions(preservation_policy=ocp.checkpoint_managers.LatestN(keep))
    self._doubted: set[int] = set()
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=('state', 'data', 'metadata'))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def steps(self) -> list[int]:
    """The steps that have a checkpoint, the newest last, except those in doubt."""
    return sorted(set(self._manager.all_steps()) - self._doubted)

  def doubt(self, step: int) -> None:
    """Leaves a checkpoint out from now on, because the run cannot continue from it.

    It stays on disk until a run from an earlier checkpoint has saved this step or a later one: until then, the data or
    the machine may be at fault.
    """
    self._doubted.add(step)

  def save(self, step: int, state: Any, batches: source.Source) -> None:
    """Saves in the background. After it returns, the state may be donated and the source may advance.

    Args:
      step: updates done.
      state: a tree of arrays. The caller has checked that they are finite.
      batches: the source, positioned at the batch of the next update.
    """
    position = batches.get_state()
    leaves = checksums.by_path(state)
    sums = checksums.checksums(state)
    if self._settled(step, sums):
      return
    arrays = {name: _specification(leaf) | {'checksum': sums[name]} for name, leaf in leaves.items()}
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if checksums.is_key(leaf)}
    content = {
      'step': step,
      'identity': self._identity,
      'config': self._config,
      'versions': _versions(),
      'arrays': arrays,
      'keys': keys,
      'data': per_process(_crc(position)),
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave({name: checksums.raw_data(leaf) for name, leaf in leaves.items()}),
        data=_PositionSave(json.dumps(position, indent=4)),
        metadata=ocp.args.JsonSave({'content': content, 'sha256': _digest(content)}),
      ),
      force=True,
    )

  def _settled(self, step: int, sums: Mapping[str, int]) -> bool:
    """Moves the doubted checkpoints that the run has passed. True if one of them is this very state."""
    for doubted in sorted(doubted for doubted in self._doubted if doubted <= step):
      self._doubted.remove(doubted)
      saved = self._read_metadata(doubted)['arrays']
      if doubted == step and {name: array['checksum'] for name, array in saved.items()} == sums:
        return True
      self._set_aside(doubted)
    return False

  def wait(self) -> None:
    """Waits until the last save is committed."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save and releases the folder."""
    self._manager.close()

  def restore(self, like: Any, batches: source.Source) -> Restored | None:
    """Restores the newest intact checkpoint, and moves the source to its position.

    A corrupt checkpoint is logged as an error and moved to the folder `<folder>-corrupt`; then the one before it is
    tried.

    Args:
      like: a tree of arrays or ShapeDtypeStructs with shardings. The restored arrays get these shardings.
      batches: a source over the same data.

    Returns:
      The step, the state and the saved configuration; None if there is no checkpoint.

    Raises:
      MismatchError: if the checkpoint belongs to a run of another identity or has other arrays.
      CorruptCheckpointError: if every checkpoint is corrupt.
    """
    failures: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        restored = self._restore_step(step, like, batches)
      except CorruptCheckpointError as error:
        failures[step] = str(error)
        logging.error('CORRUPT CHECKPOINT: %s. Trying the one before it.', failures[step])
        continue
      for corrupt in failures:
        self._set_aside(corrupt)
      return restored
    if failures:
      raise CorruptCheckpointError(
        f'no checkpoint in {self.folder} is intact: {"; ".join(failures.values())}. Remove the folder to start over'
      )
    return None

  def _restore_step(self, step: int, like: Any, batches: source.Source) -> Restored:
    metadata = self._read_metadata(step)
    leaves = checksums.by_path(like)
    self._check_identity(step, metadata)
    self._check_arrays(step, metadata, leaves)
    position = self._read_data(step, metadata)
    abstract = {name: _abstract(name, leaf) for name, leaf in leaves.items()}
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    arrays = self._guard(step, 'state', lambda: self._manager.restore(step, args=arguments)['state'])
    wrong = [
      name for name, value in checksums.checksums(arrays).items() if value != metadata['arrays'][name]['checksum']
    ]
    if wrong:
      raise CorruptCheckpointError(
        f'checkpoint {step}: the bytes of {", ".join(wrong)} have changed since it was saved'
      )
    for name, implementation in metadata['keys'].items():
      arrays[name] = jax.random.wrap_key_data(arrays[name], impl=implementation)
    # The source moves last, so that a corrupt checkpoint leaves it where it was.
    batches.set_state(position)
    self._warn_of_versions(step, metadata['versions'])
    state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
    return Restored(step, state, metadata['config'])

  def _guard(self, step: int, item: str, read: Any) -> Any:
    """Calls `read` on every process; if it fails on one, all of them treat the checkpoint as corrupt."""
    result, cause = None, None
    try:
      result = read()
    except Exception as error:  # damaged files raise KeyError, JSONDecodeError, errors of the storage layer, ...
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        raise
      cause = error
    failed = per_process(int(cause is not None))
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
    """This process's position in the data. If all positions are equal, any number of processes can resume."""
    sums = metadata['data']
    if len(sums) != jax.process_count() and len(set(sums)) > 1:
      raise MismatchError(
        f'checkpoint {step} was saved by {len(sums)} processes and cannot be resumed by {jax.process_count()}: '
        'its processes were at different positions in the data',
        metadata['config'],
      )
    process = jax.process_index() if len(sums) == jax.process_count() else 0

    def read() -> Any:
      file = self.folder / str(step) / 'data' / _file_of(process, len(sums))
      position = json.loads(file.read_text(encoding='utf-8'))
      if _crc(position) != sums[process]:
        raise ValueError('its checksum does not match')
      return position

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
        'Restore the old value, or choose another work directory',
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
          'Restore the old settings, or choose another work directory',
          metadata['config'],
        )

  def _warn_of_versions(self, step: int, saved: Mapping[str, str]) -> None:
    for name, now in _versions().items():
      if saved.get(name) != now:
        logging.warning(
          'checkpoint %d was written with %s %s; the installed version is %s', step, name, saved.get(name), now
        )

  def _set_aside(self, step: int) -> None:
    target = self.folder.with_name(self.folder.name + '-corrupt')
    self.wait()  # a save in the background must be committed before the folder is read again
    if jax.process_index() == 0:
      target.mkdir(exist_ok=True)
      free = next(n for n in range(1000) if not (target / f'{step}.{n}').exists())
      (self.folder / str(step)).rename(target / f'{step}.{free}')
    per_process(0)  # no process continues before the folder is gone
    self._manager.reload()
    logging.error('moved checkpoint %d to %s', step, target)
