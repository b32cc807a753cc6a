"""Loads a model on one of two processes, whose devices take turns in the mesh, and prints what it has read."""

import json
import sys

import jax
import numpy as np

from alignjax.models import checkpoint_io, folders, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import process_flags
from alignjax.training import checksums, processes


def main(coordinator: str, process: str, *models: str) -> None:
  """Loads models one after another; prints one line of JSON for each."""
  process_flags.Processes(
    coordinator=coordinator, num_processes=2, process_id=int(process), local_devices=4, cluster='flags'
  ).join()
  read, fill = [], folders.StoredTensor._fill

  def counted(self: folders.StoredTensor, values: np.ndarray, offset: int) -> None:
    read.append(values.nbytes)
    fill(self, values, offset)

  folders.StoredTensor._fill = counted
  devices = np.reshape(jax.devices(), (2, 4)).T.ravel().tolist()
  mesh = parallel_mesh.make_mesh(devices=devices)
  for model in models:
    read.clear()
    config = checkpoint_io.load_config(model)
    shapes = jax.eval_shape(transformer.build(config).init, jax.random.key(0))
    try:
      loading = checkpoint_io.Loading(None, together=processes.on_all)
      params = checkpoint_io.load_params(model, config, rules.param_shardings(mesh, shapes), loading)
    except ValueError as error:
      print(json.dumps({'error': str(error)}), flush=True)
      continue
    shards = [{str(s.index): s.data.nbytes for s in leaf.addressable_shards} for leaf in jax.tree.leaves(params)]
    share = sum(sum(parts.values()) for parts in shards)
    print(json.dumps({'read': sum(read), 'share': share, 'sums': checksums.checksums(params)}), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
