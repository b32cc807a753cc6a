"""Checkpoints of a run: its state, the position of its source and its metadata, verified when they are restored.

The checkpoint of step n has three items:

  state     every array of the state by its path in the tree; PRNG keys as their raw data
  data      `Source.get_state()` as JSON, one file per process
  metadata  identity and configuration of the run, versions, and shape, dtype and checksum of each array

Orbax commits a checkpoint atomically, so a killed run leaves the previous one intact: on a disk it renames a folder, in
an object store it writes commit_success.txt last, without which a checkpoint does not count. Orbax does not detect a
flipped bit in array files. The checksums do: they are computed on the devices before a save and after a restore, and do
not depend on the mesh or the sharding.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
import pathlib
import shutil
import types
from typing import Any, NamedTuple

from absl import logging
import jax
import orbax.checkpoint as ocp

from alignjax import paths, refusals, stopping, transfers
from alignjax.training import (
  checksums,
  compatibility,
  disk,
  orbax_logs,
  positions,
  processes,
  source,
  step_folders,
  watchdog,
)


class CheckpointError(ValueError):
  """A checkpoint that cannot be used."""


class CorruptCheckpointError(CheckpointError):
  """A checkpoint whose bytes have changed since it was saved."""


class SaveError(CheckpointError):
  """A checkpoint that cannot be written."""


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
  changed: Sequence[str] = ()  # describes the accepted entries of the identity that differ
  loaded: Mapping[str, Any] = types.MappingProxyType({})  # `Checkpoints.loaded` of the run that saved it


def _abstract(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
  if leaf.sharding is None:
    raise ValueError(f'{name}: cannot be restored without a sharding; pass a ShapeDtypeStruct that has one')
  raw = jax.eval_shape(checksums.raw_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=leaf.sharding)


def digest(content: Mapping[str, Any]) -> str:
  """The SHA-256 of metadata."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Saving(NamedTuple):
  """A save that runs in the background."""

  step: int
  size: int  # of the arrays, in bytes


class Checkpoints:
  """The checkpoints of one run, in one folder that all processes can read and write.

  Args:
    folder: created if absent.
    config: the resolved configuration, JSON-like; `restore` returns it.
    identity: everything that must stay the same when a run resumes (model, data, objective, seed, ...), JSON-like. A
      checkpoint in which an entry differs is refused.
    keep: the number of newest checkpoints to keep.
    accepted: the entries of the identity that may differ.

  Attributes:
    loaded: identifies what the run has loaded besides its state, JSON-like; kept in every checkpoint.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    keep: int = 2,
    accepted: Collection[str] = (),
  ):
    if keep < 1:
      raise ValueError(f'keep={keep}: at least one checkpoint must be kept')
    self.folder = paths.absolute(folder)
    self._config = json.loads(json.dumps(config))
    self._identity = json.loads(json.dumps(dict(identity)))
    self._identity['jax_threefry_partitionable'] = bool(jax.config.jax_threefry_partitionable)
    step_folders.remove_unfinished(self.folder)
    step_folders.agree(self.folder)
    options = ocp.CheckpointManagerOptions(preservation_policy=ocp.checkpoint_managers.LatestN(keep))
    self._accepted = frozenset(accepted)
    self.loaded: Mapping[str, Any] = {}
    self._doubted: set[int] = set()
    self._saving: _Saving | None = None
    self._quiet = orbax_logs.without_tracebacks()
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=('state', 'data', 'metadata'))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
    try:
      with stopping.deferred(), watchdog.during('save'):
        self.close()
    except SaveError as failure:
      if error is None:
        raise
      logging.error('%s', failure)  # the error that is already on its way matters more

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

    Raises:
      SaveError: this save cannot begin, or the one before it has failed.
    """
    self.wait()
    position = batches.get_state()
    leaves = checksums.by_path(state)
    sums = checksums.checksums(state)
    if self._settled(step, sums):
      return
    arrays = {name: compatibility.specification(leaf) | {'checksum': sums[name]} for name, leaf in leaves.items()}
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if checksums.is_key(leaf)}
    content = {
      'step': step,
      'identity': self._identity,
      'config': self._config,
      'versions': compatibility.versions(),
      'arrays': arrays,
      'keys': keys,
      'loaded': self.loaded,
      'data': processes.gather(positions.crc(position)),
    }
    self._saving = _Saving(step, sum(leaf.nbytes for leaf in leaves.values()))
    with self._failures():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave({name: checksums.raw_data(leaf) for name, leaf in leaves.items()}),
          data=positions.Save(json.dumps(position, indent=4)),
          metadata=ocp.args.JsonSave({'content': content, 'sha256': digest(content)}),
        ),
        force=True,
      )

  def check(self) -> None:
    """Raises if a save in the background has failed. Does not wait for one that is running.

    Raises:
      SaveError: the message names the step, the reason and what to do.
    """
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

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
    """Waits until the last save is committed.

    Raises:
      SaveError: it has failed.
    """
    with self._failures():
      self._manager.wait_until_finished()
    self._saving = None

  def close(self) -> None:
    """Waits for the last save and releases the folder.

    Raises:
      SaveError: the last save has failed, and this has not been reported yet.
    """
    try:
      self.wait()
    finally:
      self._manager.close()
      self._quiet.remove()

  @contextlib.contextmanager
  def _failures(self) -> Iterator[None]:
    """Turns errors of a save into a SaveError."""
    try:
      yield
    except Exception as error:
      if self._saving is None:
        raise
      saving, self._saving = self._saving, None
      raise SaveError(self._complaint(saving, error)) from error

  def _complaint(self, saving: '_Saving', error: BaseException) -> str:
    reason = disk.describe(error)
    if disk.is_full(error) and not paths.scheme(self.folder):
      free = shutil.disk_usage(self.folder).free
      reason += f' ({free / 2**20:,.1f} MiB are free; the arrays have {saving.size / 2**20:,.1f} MiB)'
    steps = [step for step in self.steps() if step != saving.step]
    then = f'resumes from checkpoint {steps[-1]}' if steps else 'starts over, because there is no earlier checkpoint'
    return (
      f'checkpoint {saving.step} cannot be written to {self.folder}: {reason}. Make room or remove the cause, and give '
      f'the same command again: it {then}'
    )

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
    if metadata['step'] != step:
      raise CorruptCheckpointError(
        f'checkpoint {step} was saved as checkpoint {metadata["step"]}: its folder has been renamed. Rename it back to '
        'use it'
      )
    tolerated, changes = compatibility.changed_entries(metadata['identity'], self._identity, self._accepted)
    if changes:
      raise MismatchError(
        f'checkpoint {step} in {self.folder} belongs to another run. {"; ".join(changes)}. '
        'Restore the old value, or choose another work directory',
        metadata['config'],
        metadata['identity'],
      )
    if changes := compatibility.changed_arrays(metadata['arrays'], leaves):
      raise MismatchError(
        f'checkpoint {step}: {changes[0]}. Restore the old settings, or choose another work directory',
        metadata['config'],
      )
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
    for change in compatibility.changed_versions(metadata['versions']):
      logging.warning('checkpoint %d was written with %s', step, change)
    state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
    return Restored(step, state, metadata['config'], tolerated, metadata.get('loaded', {}))

  def _guard(self, step: int, item: str, read: Any) -> Any:
    """Calls `read` on every process; if it fails on one, all of them treat the checkpoint as corrupt."""
    result, cause = None, None
    try:
      result = read()
    except Exception as error:  # damaged files raise KeyError, JSONDecodeError, errors of the storage layer, ...
      stopping.check()  # it may come from a library that SIGTERM has interrupted
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error) or refusals.of_the_network(error):
        raise
      cause = error
    failed = processes.gather(int(cause is not None))
    if any(failed):
      where = '' if len(failed) == 1 else f' on processes {[i for i, fail in enumerate(failed) if fail]}'
      detail = '' if cause is None else f': {type(cause).__name__}: {str(cause)[:300]}'
      raise CorruptCheckpointError(f'checkpoint {step}: its {item} cannot be read{where}{detail}') from cause
    return result

  def _read_metadata(self, step: int) -> Mapping[str, Any]:
    def read() -> Mapping[str, Any]:
      saved = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))['metadata']
      if digest(saved['content']) != saved['sha256']:
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
      file = self.folder / str(step) / 'data' / positions.file_of(process, len(sums))
      position = json.loads(file.read_text(encoding='utf-8'))
      if positions.crc(position) != sums[process]:
        raise ValueError('its checksum does not match')
      return position

    return self._guard(step, 'data', read)

  def _set_aside(self, step: int) -> None:
    target = self.folder.with_name(self.folder.name + '-corrupt')
    self.wait()  # a save in the background must be committed before the folder is read again

    def move() -> None:
      target.mkdir(exist_ok=True)
      free = next(n for n in range(1000) if not (target / f'{step}.{n}').exists())
      transfers.move(self.folder / str(step), target / f'{step}.{free}')

    processes.on_first(move)
    step_folders.agree(self.folder)  # no process continues before the folder is gone
    self._manager.reload()
    logging.error('moved checkpoint %d to %s', step, target)
