"""Starts multi-process runs."""

from collections.abc import Callable
import threading
from typing import NamedTuple, NoReturn

from absl import logging
import jax

from alignjax.parallel import clusters


class Timeouts(NamedTuple):
  """How long processes wait for each other, in seconds."""

  join: int = 120  # until all processes have connected
  heartbeat: int = 30  # after this silence a process counts as dead, and the others end


def use_virtual_devices(count: int) -> None:
  """Replaces the real devices by virtual CPU devices, to try a mesh without the hardware; 0 keeps the real devices.

  Raises:
    ValueError: the count is negative.
  """
  if count < 0:
    raise ValueError(f'local_devices={count} must be the number of virtual CPU devices, or 0 for real devices')
  if count:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', count)


def initialize(cluster: clusters.Cluster | None, timeouts: Timeouts, give_up: Callable[[str], NoReturn]) -> None:
  """Joins this process to a cluster. Call it before anything uses a device.

  Args:
    cluster: the cluster; None for a single process, which has nothing to join.
    timeouts: how long to wait.
    give_up: ends the process; called with a message if it cannot join in time. It may run in another thread.

  Raises:
    ValueError: JAX does not recognise the cluster.
  """
  if cluster is None:
    return
  failure = (
    f'this process cannot join {cluster.name} ({cluster.processes} processes, coordinator {cluster.coordinator}) '
    f'within {timeouts.join} s (--join_timeout): check that all {cluster.processes} processes are running, that this '
    'host reaches the coordinator (name, port, firewall, proxy variables), and that no other run uses its port'
  )
  # JAX aborts the process, with a stack trace, when its own timeout is over. This one ends first.
  late = threading.Timer(timeouts.join, give_up, [failure])
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
      **cluster.arguments,
      initialization_timeout=timeouts.join + 60,
      heartbeat_timeout_seconds=timeouts.heartbeat,
    )
  except ValueError as error:
    raise ValueError(
      f'{cluster.name}: JAX does not recognise this cluster ({error}): on a TPU, install jax[tpu]; elsewhere, give '
      '--coordinator=host:port, --num_processes and --process_id'
    ) from error
  except Exception as error:  # each environment raises its own
    give_up(f'{failure}. {type(error).__name__}: {" ".join(str(error).split())[:300]}')
  finally:
    late.cancel()
  logging.info('process %d of %d: %d local devices', jax.process_index(), jax.process_count(), jax.local_device_count())
