"""The command `alignjax`, on devices in the order of a torus: the devices of a process are not neighbours in the mesh.

2 processes with 4 devices each are arranged as 0, 4, 1, 5, 2, 6, 3, 7.
"""

import jax
import numpy as np

from alignjax.commands import main
from alignjax.parallel import mesh as parallel_mesh

_make_mesh = parallel_mesh.make_mesh


def make_mesh(*sizes: int, **options: int) -> jax.sharding.Mesh:
  """`parallel.mesh.make_mesh`, which takes one device of each process in turn."""
  devices = np.reshape(jax.devices(), (jax.process_count(), -1)).T.ravel().tolist()
  print(f'devices of the processes {[device.process_index for device in devices]}', flush=True)
  return _make_mesh(*sizes, devices=devices, **options)


if __name__ == '__main__':
  parallel_mesh.make_mesh = make_mesh
  main.main()
