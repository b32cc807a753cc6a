"""The flags of all programs that use devices: how the processes of a run find each other.

Their settings have a field `processes: Processes`.
"""

import dataclasses
import os
import sys
import time
from typing import Any, NoReturn

import jax

from alignjax import exit_codes, paths
from alignjax.parallel import clusters, distributed
from alignjax.run import arithmetic, compiled, fields

_OTHERS_LEAVE = 1.0  # seconds; the end of the coordinator takes the other processes with it


@dataclasses.dataclass(frozen=True)
class Processes:
  """Processes."""

  cluster: str = fields.field(
    'auto',
    'How the processes find each other: by the flags below, or not at all; auto: by the flags, or else by the '
    'environment (TPU, Slurm, Open MPI, indexed Job).',
    choices=('auto', 'none', 'flags'),
  )
  coordinator: str = fields.field('', 'host:port of process 0, for runs with several processes; empty: one process.')
  num_processes: int = fields.field(1, 'Number of processes in the run.')
  process_id: int = fields.field(0, 'Index of this process, from 0.')
  join_timeout: int = fields.field(120, 'Time to wait until all processes have connected, in seconds.', at_least=1)
  heartbeat: int = fields.field(
    30, 'Time after which a silent process counts as dead and the others end, in seconds.', at_least=2
  )
  local_devices: int = fields.field(
    0, 'Virtual CPU devices in this process; 0: use the real devices.', at_least=0, at_most=1024
  )
  compilation_cache: str = fields.field(
    '',
    "Folder that keeps compiled programs for later starts, up to 4 GiB; empty: alignjax/compiled in the user's cache "
    'folder; off: compile at every start.',
    path=paths.DISK,
  )

  def __post_init__(self):
    fields.check(self)

  def join(self) -> None:
    """Joins this process to its cluster, if there is one. Call it before anything uses a device.

    Raises:
      ValueError: the flags or the environment are contradictory or incomplete.
    """
    arithmetic.prepare()
    compiled.keep(self.compilation_cache)
    timeouts = distributed.Timeouts(self.join_timeout, self.heartbeat)
    distributed.use_virtual_devices(self.local_devices)
    distributed.initialize(self.find_cluster(), timeouts, give_up=_give_up)

  def find_cluster(self) -> clusters.Cluster | None:
    """The cluster that flags or environment describe; None for a single process.

    Raises:
      ValueError: the flags or the environment are contradictory or incomplete.
    """
    found = clusters.given(self.coordinator, self.num_processes, self.process_id)
    if found is not None and self.cluster == 'none':
      raise ValueError(f'--cluster=none and --num_processes={self.num_processes} differ: give one of them')
    if found is None and self.cluster == 'auto':
      platform = {'JAX_PLATFORMS': 'cpu'} if self.local_devices else {}
      found = clusters.detect(os.environ | platform)
    if found is None:
      clusters.refuse_separate_tasks(os.environ)
    return found

  def leave(self, code: int, failed: bool) -> NoReturn:
    """Ends this process.

    Args:
      code: the exit code.
      failed: whether the program failed. Then the process does not wait for the others, which may be waiting for it.
    """
    if failed and jax.distributed.is_initialized():
      sys.stdout.flush()
      sys.stderr.flush()
      if jax.process_index() == 0:
        time.sleep(_OTHERS_LEAVE)
      os._exit(code)
    sys.exit(code)


def join(settings: Any) -> None:
  """Joins this process to its cluster, for `Program.join`."""
  settings.processes.join()


def leave(settings: Any, code: int) -> NoReturn:
  """Ends this process, for `Program.leave`."""
  settings.processes.leave(code, failed=not exit_codes.agreed(code))


def _give_up(message: str) -> NoReturn:
  """Prints an error and ends the process at once: a thread of a library still waits for the others."""
  print(f'error: {message}', file=sys.stderr, flush=True)
  os._exit(exit_codes.CRASHED)
