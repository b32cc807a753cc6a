"""Starts multi-process runs."""

from absl import logging
import jax


def initialize(
  coordinator: str | None = None,
  num_processes: int = 1,
  process_id: int = 0,
  local_devices: int = 0,
  timeout_seconds: int = 120,
) -> None:
  """Joins this process to a multi-process run. Call it before anything uses a device.

  With one process and no virtual devices, it does nothing.

  Args:
    coordinator: address of process 0, 'host:port'; the same for all processes.
    num_processes: number of processes in the run.
    process_id: index of this process, from 0.
    local_devices: number of virtual CPU devices in this process, to try a mesh without the hardware; 0 for the real
      devices.
    timeout_seconds: how long to wait for the other processes, in seconds.

  Raises:
    ValueError: the arguments contradict each other.
    RuntimeError: the processes do not connect in time.
  """
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise ValueError(f'process_id={process_id} must be from 0 to num_processes - 1, with num_processes={num_processes}')
  if local_devices < 0:
    raise ValueError(f'local_devices={local_devices} must be the number of virtual CPU devices, or 0 for real devices')
  if num_processes > 1 and not coordinator:
    raise ValueError(f'num_processes={num_processes} needs the address of process 0: coordinator=host:port')
  if num_processes == 1 and coordinator:
    raise ValueError(f'coordinator={coordinator} requires num_processes > 1, not {num_processes}: set num_processes')
  if num_processes > 1 and not coordinator.rpartition(':')[2].isdigit():
    raise ValueError(f'coordinator={coordinator!r} must be host:port')
  if local_devices:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', local_devices)
  if num_processes == 1:
    return
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, initialization_timeout=timeout_seconds, heartbeat_timeout_seconds=30
    )
  except RuntimeError as error:
    raise RuntimeError(
      f'process {process_id} of {num_processes} could not connect to {coordinator} within {timeout_seconds} s: '
      f'check that all processes are running and that the address reaches process 0. {error}'
    ) from error
  logging.info('process %d of %d: %d local devices', process_id, num_processes, jax.local_device_count())
