"""Quantises the kernels of a frozen model to 8 or 4 bits.

A quantised kernel replaces the kernel in the parameter tree. Each product dequantises it to the compute dtype, one
layer at a time. Qwix determines the storage format and the rounding. nf4 takes 4 bits in device memory, but XLA for CPU
unpacks all layers of a kernel to 8 bits before it runs them, so there int8 has the lower peak memory during a step.

References:
  Dettmers et al., QLoRA, https://arxiv.org/abs/2305.14314, section 3 and appendix E (NF4).
"""

import dataclasses
import functools
import math
from typing import Any

from etils import epy
import jax
import jax.numpy as jnp

from alignjax.types import Array, Params

with epy.lazy_imports(error_callback="A quantised base needs Qwix: pip install 'alignjax[quantization]'"):
  import qwix  # it takes two seconds

KINDS = ('int8', 'nf4')
TILE = 64  # number of inputs that share a scale in nf4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A quantised kernel, [..., in, out]."""

  array: Any  # a `qwix.QArray`

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the kernel."""
    return self.array.shape

  def astype(self, dtype: Any) -> 'Quantized':
    """Returns the kernel unchanged, because products compute in the dtype of the other operand."""
    del dtype
    return self

  def __rmatmul__(self, x: Array) -> Array:
    # Dequantise again in the backward pass instead of keeping the dense kernels of all layers.
    return jax.checkpoint(lambda x, kernel: x @ dense(kernel).astype(x.dtype))(x, self)


def dense(kernel: Array | Quantized) -> Array:
  """The kernel as an array, in its dtype before quantisation."""
  return qwix.dequantize(kernel.array) if isinstance(kernel, Quantized) else kernel


def convert(path: str, leaf: Array, kind: str) -> Array | Quantized:
  """Quantises a leaf if it is a kernel of the layers. Embeddings, norms, biases and the head are returned unchanged.

  int8  One scale per output of each layer. |error| <= scale / 2, with scale = max |kernel| / 127.5.
  nf4   16 levels at quantiles of a normal distribution, with one scale per gcd(inputs, 64) inputs of an output.
        |error| <= 0.152 scale, with scale = max |kernel|: half the widest gap between two levels.

  Args:
    path: path of the leaf, such as 'layers/mlp/up/kernel'.
    leaf: the array; [L, in, out] if it is a kernel.
    kind: the format, 'int8' or 'nf4'.

  Raises:
    ValueError: `kind` is unknown.
  """
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r} is not one of {", ".join(KINDS)}')
  if path.startswith('layers/') and path.endswith('/kernel'):
    return _quantize(leaf.astype(jnp.float32), kind)
  return leaf


def quantize(params: Params, kind: str) -> Params:
  """Applies `convert` to all leaves of a decoder."""

  def one(path: tuple[Any, ...], leaf: Array) -> Any:
    return convert(jax.tree_util.keystr(path, simple=True, separator='/'), leaf, kind)

  return jax.tree_util.tree_map_with_path(one, params)


@functools.partial(jax.jit, static_argnames='kind')
def _quantize(kernel: Array, kind: str) -> Quantized:
  tiles = {0: math.gcd(kernel.shape[1], TILE)} if kind == 'nf4' else {}

  def layer(kernel: Array) -> qwix.QArray:
    return qwix.quantize(kernel, kind, channelwise_axes=(1,), tiled_axes=tiles)

  # Quantise layer by layer, because finding the nearest of 16 levels takes 16 times the memory of its input.
  return Quantized(jax.lax.map(layer, kernel))
