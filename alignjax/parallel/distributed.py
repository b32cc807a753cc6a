"""Joining several processes into one run."""

from absl import logging
import jax


def initialize(
  coordinator: str | None = None,
  num_processes: int = 1,
  process_id: int = 0,
  local_devices: int = 0,
  timeout_seconds: int = 120,
) -> None:
  """Joins this process to a run; with one process there is nothing to join. To be called before anything uses a device.

  Args:
    coordinator: 'host:port' of process 0, the same for all processes.
    num_processes: processes in the run.
    process_id: of this process, from 0.
    local_devices: virtual CPU devices of this process, to try a mesh without the hardware; 0 for the real devices.
    timeout_seconds: to wait for the others.

  Raises:
    ValueError: for arguments that do not fit together.
    RuntimeError: if the others do not come.
  """
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise ValueError(f'process_id={process_id} must be from 0 to num_processes - 1, and num_processes={num_processes}')
  if local_devices < 0:
    raise ValueError(f'local_devices={local_devices} must be a number of virtual CPU devices, or 0 for the real ones')
  if num_processes > 1 and not coordinator:
    raise ValueError(f'num_processes={num_processes} needs the address of process 0: coordinator=host:port')
  if num_processes == 1 and coordinator:
    raise ValueError(f'coordinator={coordinator} is given, but num_processes=1: say how many processes there are')
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
      f'process {process_id} of {num_processes} could not join at {coordinator} within {timeout_seconds} s: are all '
      f'processes started, and does the address reach process 0? {error}'
    ) from error
  logging.info('process %d of %d: %d local devices', process_id, num_processes, jax.local_device_count())
