"""Kernels of a frozen model in 8 or 4 bits.

A quantised kernel takes the place of the kernel: the product makes it dense again, in the dtype to compute in and one
layer at a time. What is stored, and how it is rounded, is up to Qwix. nf4 takes 4 bits in the memory of a device, but
XLA for the CPU unpacks all layers of a kernel to 8 bits before it runs them: there, int8 needs less while a step runs.

References:
  Dettmers et al., QLoRA, https://arxiv.org/abs/2305.14314, section 3 and appendix E (NF4).
"""

import dataclasses
import functools
import math
from typing import Any

from etils import epy
import jax

from alignjax.types import Array, Params

with epy.lazy_imports(error_callback="A quantised base needs Qwix: pip install 'alignjax[quantization]'"):
  import qwix  # it takes two seconds

KINDS = ('int8', 'nf4')
TILE = 64  # inputs that share a scale in nf4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A kernel in few bits, [..., in, out]."""

  array: Any  # a `qwix.QArray`

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the kernel."""
    return self.array.shape

  def astype(self, dtype: Any) -> 'Quantized':
    """Itself: a product computes in the dtype of the other side."""
    del dtype
    return self

  def __rmatmul__(self, x: Array) -> Array:
    # Made dense once more for the backward pass, which would otherwise keep the dense kernels of all layers.
    return jax.checkpoint(lambda x, kernel: x @ dense(kernel).astype(x.dtype))(x, self)


def dense(kernel: Array | Quantized) -> Array:
  """The kernel as an array, in the dtype that it had before it was quantised."""
  return qwix.dequantize(kernel.array) if isinstance(kernel, Quantized) else kernel


def convert(path: str, leaf: Array, kind: str) -> Array | Quantized:
  """Stores a leaf in few bits if it is a kernel of layers. Embeddings, norms, biases and the head stay as they are.

  int8  One scale for each output of each layer. |error| <= scale / 2, with scale = max |kernel| / 127.5.
  nf4   16 levels at quantiles of a normal distribution, and one scale for 64 inputs of an output, or for as many as
        divide them. |error| <= 0.152 scale, with scale = max |kernel|: half the widest gap between two levels.

  Args:
    path: of the leaf, such as 'layers/mlp/up/kernel'.
    leaf: [L, in, out] if it is a kernel.
    kind: 'int8' or 'nf4'.

  Raises:
    ValueError: for another kind.
  """
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r} is not one of {", ".join(KINDS)}')
  return _quantize(leaf, kind) if path.startswith('layers/') and path.endswith('/kernel') else leaf


def quantize(params: Params, kind: str) -> Params:
  """Does to all leaves of a decoder what `convert` does to one."""

  def one(path: tuple[Any, ...], leaf: Array) -> Any:
    return convert(jax.tree_util.keystr(path, simple=True, separator='/'), leaf, kind)

  return jax.tree_util.tree_map_with_path(one, params)


@functools.partial(jax.jit, static_argnames='kind')
def _quantize(kernel: Array, kind: str) -> Quantized:
  tiles = {0: math.gcd(kernel.shape[1], TILE)} if kind == 'nf4' else {}

  def layer(kernel: Array) -> qwix.QArray:
    return qwix.quantize(kernel, kind, channelwise_axes=(1,), tiled_axes=tiles)

  # Layer by layer: to find the nearest of 16 levels takes 16 times the memory of what is looked at.
  return Quantized(jax.lax.map(layer, kernel))
