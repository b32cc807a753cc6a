"""Folders of tiny models, and what to do with them in tests."""

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, folders
from tests import assets

SIZES = {'vocab_size': 259, 'width': 8, 'heads': 2, 'kv_heads': 1, 'mlp_width': 12, 'layers': 3}


def write(folder, weights=None, **sizes):
  """A tiny model; `weights` maps its tensors to those that are stored."""
  assets.write_tiny_model(folder, **(SIZES | sizes))
  if weights is not None:
    path = folder / folders.WEIGHTS
    safetensors_numpy.save_file(weights(safetensors_numpy.load_file(path)), path)
  return folder


def load(folder, **options):
  """Its weights."""
  return checkpoint_io.load_params(folder, checkpoint_io.load_config(folder), **options)


def stored(folder):
  """Its tensors by name, where they are in one file."""
  return safetensors_numpy.load_file(folder / folders.WEIGHTS)


def flat(params):
  """Parameters by path, on the host."""
  paths, _ = jax.tree_util.tree_flatten_with_path(params)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf) for path, leaf in paths}


def files(folder):
  """The contents of the files of a folder, by name."""
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip_bit(path):
  """Flips one bit in the middle of a file; of a weight file, in an array."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def shard(folder, weight_map):
  """Splits the weights into files as `weight_map` says, with an index."""
  path = folder / folders.WEIGHTS
  weights = safetensors_numpy.load_file(path)
  path.unlink()
  for file in set(weight_map.values()):
    names = [name for name in weights if weight_map[name] == file]
    safetensors_numpy.save_file({name: weights[name] for name in names}, folder / file)
  folders.write_json(folder / folders.INDEX, {'metadata': {}, 'weight_map': weight_map})
