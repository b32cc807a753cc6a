"""The command `alignjax`, on devices in the order of a torus: the devices of a process are not neighbours in the mesh.

2 processes with 4 devices each are arranged as 0, 4, 1, 5, 2, 6, 3, 7. What leaves the devices leaves them in pieces of
at most 2,048 bytes.
"""

import jax
import numpy as np

from alignjax.commands import main
from alignjax.models import pieces
from alignjax.parallel import mesh as parallel_mesh

PIECE = 2048

_make_mesh, _gather = parallel_mesh.make_mesh, pieces.gather


def make_mesh(*sizes: int, **options: int) -> jax.sharding.Mesh:
  """`parallel.mesh.make_mesh`, which takes one device of each process in turn."""
  devices = np.reshape(jax.devices(), (jax.process_count(), -1)).T.ravel().tolist()
  print(f'devices of the processes {[device.process_index for device in devices]}', flush=True)
  return _make_mesh(*sizes, devices=devices, **options)


def gather(*block: object) -> jax.Array:
  """`pieces.gather`, which checks the size of the piece."""
  piece = _gather(*block)
  assert piece.nbytes <= PIECE, (piece.shape, piece.dtype)
  return piece


if __name__ == '__main__':
  parallel_mesh.make_mesh = make_mesh
  pieces.PIECE, pieces.gather = PIECE, gather
  main.main()
