"""Random masks that depend only on key and position, and therefore not on the mesh.

Threefry-2x32 with 20 rounds; the numbers equal those of `jax.random.split` of a threefry key. It is written out here
because JAX's own implementation on CPU is a loop over whole arrays that costs several times an optimizer update. As
plain elementwise operations it fuses with the code that reads the mask, and nothing is stored. Both words of a position
are returned.

References:
  Salmon, Moraes, Dror, Shaw 2011, Parallel Random Numbers: As Easy as 1, 2, 3,
  https://www.thesalmons.org/john/random123/papers/random123sc11.pdf.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import numerics
from alignjax.types import Array

_IMPLEMENTATION = 'threefry2x32'
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio, which keeps layers apart
_RESOLUTION = 24  # bits of a draw that are compared: as many as float32 represents exactly


def key_words(seed: Array | int) -> Array:
  """[2] uint32: the key of a seed as raw data, which optax wrappers can select and checkpoints can store."""
  return jax.random.key_data(jax.random.key(seed, impl=_IMPLEMENTATION))


def fold(words: Array, *data: Array | int) -> Array:
  """[2] uint32: applies `jax.random.fold_in` with each number in order."""
  key = jax.random.wrap_key_data(words, impl=_IMPLEMENTATION)
  for number in data:
    key = jax.random.fold_in(key, number)
  return jax.random.key_data(key)


def bits(words: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
  """Two independent uint32 arrays of random bits.

  Args:
    words: [2] uint32, the key.
    shape: the shape of each array. It has at most 2^32 entries, or its first axis counts layers with at most 2^32 each.
  """
  keys = (words[0], words[1], words[0] ^ words[1] ^ _PARITY)
  layer, place = numbers(_indices(shape), shape, most=2**32)
  first, second = layer + keys[0], place + keys[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      first += second
      second = first ^ ((second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation)))
    first += keys[(group + 1) % 3]
    second += keys[(group + 2) % 3] + np.uint32(group + 1)
  return first, second


def ranks(words: Array, shape: tuple[int, ...]) -> Array:
  """int32: distinct numbers in pseudorandom order, one for each position; see `numerics.permuted`.

  Args:
    words: [2] uint32, the key.
    shape: the shape of the array. It has at most 2^31 entries, or its first axis counts layers with at most 2^31 each;
      then numbers are distinct within a layer.
  """
  layer, place = numbers(_indices(shape), shape, most=2**31)
  return numerics.permuted(place, (words[0] + layer * _GOLDEN, words[1]), bits=31).astype(jnp.int32)


def numbers(index: Sequence[Array], shape: tuple[int, ...], most: int) -> tuple[Array, Array]:
  """Numbers the entries of an array: (0, place), or (layer, place) if there are more than `most` places.

  A place is an index in row-major order, into the array or into its layer, which is an entry of the first axis.

  Args:
    index: uint32, the index of the entries along each axis, of any common shape.
    shape: the shape of the array.
    most: the largest number of places.

  Returns:
    Two uint32 arrays.

  Raises:
    ValueError: there are more than `most` places in a layer.
  """
  first = int(math.prod(shape) > most)
  if math.prod(shape[first:]) > most:
    raise ValueError(f'an array of shape {shape} has more than {most} entries in a layer')
  place = sum(
    (np.uint32(math.prod(shape[axis + 1 :])) * index[axis] for axis in range(first, len(shape))), jnp.uint32(0)
  )
  return (index[0] if first else jnp.zeros_like(place)), jnp.asarray(place)


def _indices(shape: tuple[int, ...]) -> list[Array]:
  return [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]


def bernoulli(word: Array, probability: Array | float) -> Array:
  """bool: True with the given probability, to a precision of 2^-24.

  Args:
    word: one of the two arrays that `bits` returns.
    probability: the probability of True, in (0, 1]; 1 is always True.
  """
  draw = (word >> np.uint32(32 - _RESOLUTION)).astype(jnp.float32)
  return draw < jnp.asarray(probability, jnp.float32) * 2.0**_RESOLUTION


def packed(masks: Sequence[Array]) -> Array:
  """uint8: packs the masks and materialises them, because every fused reader would otherwise draw them again."""
  together = sum(mask.astype(jnp.uint8) << np.uint8(place) for place, mask in enumerate(masks))
  return jax.lax.optimization_barrier(together)


def unpacked(together: Array, count: int) -> tuple[Array, ...]:
  """Inverts `packed`."""
  return tuple((together >> np.uint8(place)) & np.uint8(1) != 0 for place in range(count))
