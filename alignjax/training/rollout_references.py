"""The policy at the start of an earlier round as the reference, kept on disk so that the run can be resumed."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from alignjax import paths, stats
from alignjax.training import checksums, forward, rollout_files
from alignjax.training import policy as policies
from alignjax.types import Params, PreferenceBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Earlier:
  """The policy with earlier values of its trained parameters. A `references.Reference`."""

  params: Params

  def states(self, policy: policies.Policy, base: Params | None, batch: PreferenceBatch) -> stats.HiddenStates:
    """Runs the trunk of the earlier policy."""
    return forward.hidden_states(policy.bind(base), self.params, batch)


class Kept:
  """The earlier policy that is the reference of a round. All processes call it together.

  Args:
    refresh: rounds after which the policy becomes the reference, at least 2.

  Attributes:
    fingerprint: the fingerprint of the parameters; '' before the first refresh.
  """

  def __init__(self, refresh: int):
    self._refresh = refresh
    self._round: int | None = None
    self._reference: Earlier | None = None
    self.fingerprint = ''

  def of(self, folder: pathlib.Path, params: Params, number: int) -> Earlier | None:
    """The reference of a round that is about to be drawn; None if it is that of the start of the run.

    Args:
      folder: the folder of the rounds.
      params: the trained parameters that draw the round.
      number: the number of the round.

    Raises:
      RolloutError: the reference was set by an earlier process, and its file is missing or damaged.
    """
    chosen = number - number % self._refresh
    if not chosen:
      return None
    if chosen == number:
      places = jax.tree.map(lambda leaf: leaf.sharding, params)
      self._reference = Earlier(jax.jit(_copies, out_shardings=places)(params))
      self._round, self.fingerprint = number, checksums.fingerprint(self._reference.params)
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(_path(folder, number), args=ocp.args.StandardSave(self._reference.params), force=True)
    elif self._round != chosen:
      self._reference, self._round = Earlier(self._read(_path(folder, chosen), params)), chosen
    return self._reference

  def forget(self, fingerprint: str) -> None:
    """Forgets the reference; it will be read again, if it has this fingerprint."""
    self._round, self._reference, self.fingerprint = None, None, fingerprint

  def _read(self, path: pathlib.Path, like: Params) -> Params:
    try:
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        found = reader.restore(path, args=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))
    except Exception as error:  # damaged files raise KeyError, JSONDecodeError, errors of the storage layer, ...
      raise rollout_files.RolloutError(f'{path}: the reference cannot be read: {error}') from error
    if checksums.fingerprint(found) != self.fingerprint:
      raise rollout_files.RolloutError(f'{path}: these are not the parameters that became the reference in this run')
    return found


def _path(folder: pathlib.Path, number: int) -> pathlib.Path:
  return paths.absolute(folder) / f'reference_{number:06d}'


def _copies(params: Params) -> Params:
  """Copies, because the step donates the parameters."""
  return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
