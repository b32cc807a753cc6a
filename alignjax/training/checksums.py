"""Checks of arrays, computed on their devices: checksums, and whether all values are finite."""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.types import Array


def checksum(array: Array) -> Array:
  """The sum over elements of bits(x_i) * odd(i) mod 2^32, where odd(i) is an odd hash of the index i.

  The odd factor detects every single flipped bit. Its dependence on i detects exchanged elements. A sum of integers
  does not depend on the order of addition, so the checksum does not depend on the mesh.

  Args:
    array: any shape; bool, integer or floating.

  Returns:
    [] uint32; 0 for an array of zeros.
  """
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)  # 8 bytes: a new last axis of 2
  bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  mixed = index * jnp.uint32(0x9E3779B1)
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
  return jnp.sum(bits * ((mixed ^ (mixed >> 13)) | jnp.uint32(1)), dtype=jnp.uint32)


@jax.jit
def _checksums(arrays: dict[str, Array]) -> dict[str, Array]:
  return {name: checksum(array) for name, array in arrays.items()}


def checksums(tree: Any) -> dict[str, int]:
  """The checksum of each array of a tree, by path. PRNG keys count as their raw data."""
  raw = {name: raw_data(leaf) for name, leaf in by_path(tree).items()}
  return {name: int(value) for name, value in jax.device_get(_checksums(raw)).items()}


def fingerprint(tree: Any) -> str:
  """A SHA-256 of the checksums of all arrays of a tree."""
  return fingerprint_of(checksums(tree))


def fingerprint_of(sums: Mapping[str, int]) -> str:
  """`fingerprint` of a tree with these checksums."""
  return hashlib.sha256(json.dumps(dict(sums), sort_keys=True).encode()).hexdigest()


@jax.jit
def _finite(arrays: dict[str, Array]) -> dict[str, Array]:
  return {name: jnp.all(jnp.isfinite(array) if array.ndim else ~jnp.isnan(array)) for name, array in arrays.items()}


def not_finite(tree: Any) -> list[str]:
  """The paths of the floating-point arrays of a tree that hold NaN or an infinity.

  A scalar may be infinite, because an optimizer's best value so far starts at infinity.
  """
  floating = {name: leaf for name, leaf in by_path(tree).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
  return [name for name, finite in jax.device_get(_finite(floating)).items() if not finite]


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def is_key(leaf: Any) -> bool:
  """Whether a leaf is an array of typed PRNG keys."""
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def raw_data(leaf: Array) -> Array:
  """The raw data of PRNG keys; other arrays are returned unchanged."""
  return jax.random.key_data(leaf) if is_key(leaf) else leaf
