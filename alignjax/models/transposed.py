"""Kernels as decoding reads them: one row of numbers for each output.

Decoding multiplies a few rows by every kernel of the model, so it takes as long as reading the kernels. XLA for CPU
reads a kernel faster if the numbers of each output are next to each other; `bench.decoding` measures both layouts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transposed:
  """A kernel [D, F] stored as [F, D]. `x @ kernel` is the product of [..., D] with it, in the dtype of x.

  Attributes:
    array: the stored array, [F, D].
    result: the dtype of products, in which they are also summed; None for the dtype of x.
  """

  array: Array
  result: Any = dataclasses.field(default=None, metadata={'static': True})

  @classmethod
  def of(cls, kernel: Array, result: Any = None) -> 'Transposed':
    """Stores a kernel [D, F] by outputs."""
    # The compiler would otherwise turn the product around, and read the kernel as it was.
    return cls(jax.lax.optimization_barrier(kernel.T), result)

  def astype(self, dtype: Any) -> 'Transposed':
    """The kernel with numbers of another dtype."""
    return dataclasses.replace(self, array=self.array.astype(dtype))

  def __rmatmul__(self, x: Array) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == jnp.bfloat16 and len(rows) == 1:
      rows = jnp.concatenate([rows, rows])  # XLA for CPU emulates the product of a single row
    contracted = ((1,), (1,)), ((), ())
    y = jax.lax.dot_general(rows, self.array, contracted, preferred_element_type=self.result)
    return y[: x.size // x.shape[-1]].reshape(*x.shape[:-1], -1)
