"""Small trees of parameters to merge, and ways to cut them into blocks."""

import jax
import numpy as np

from alignjax import merging
from alignjax.merging import base as base_lib
from alignjax.merging import task_vectors

# As matrices, embed and attention have one shape: each method compiles two programs.
SHAPES = {'embed': (16, 16), 'layers': {'attention': (2, 8, 16)}, 'scale': (16,)}


def tree(seed, spread=1.0, around=None):
  """Random float32 parameters, `spread` away from those of `around`."""
  generator = np.random.default_rng(seed)
  drawn = jax.tree.map(
    lambda shape: (spread * generator.standard_normal(shape)).astype(np.float32),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )
  return drawn if around is None else jax.tree.map(np.add, around, drawn)


def family(models, seed=0):
  """A base, and models trained from it that share a part of what they learnt."""
  base = tree(seed)
  common = tree(seed + 1, 0.05)
  return base, [jax.tree.map(np.add, tree(seed + 2 + i, 0.1, base), common) for i in range(models)]


def leaves(params):
  return {name: np.asarray(leaf) for name, leaf in task_vectors.named_leaves(params)[0].items()}


def in_blocks(method, name, models, base, weights=None, rows=3):
  """Merges one tensor `rows` rows at a time."""

  def as_rows(array):
    return np.asarray(array).reshape(merging.rows_and_columns(array.shape))

  matrices, last = [as_rows(model) for model in models], None if base is None else as_rows(base)

  def blocks():
    for first in range(0, matrices[0].shape[0], rows):
      cut = slice(first, first + rows)
      yield base_lib.Block(None if last is None else last[cut], tuple(m[cut] for m in matrices), np.uint32(first))

  tensor = base_lib.Tensor(name, *matrices[0].shape, blocks)
  parts = [np.asarray(part) for part in method.run(tensor, len(models), weights)]
  return np.concatenate(parts).reshape(models[0].shape)
