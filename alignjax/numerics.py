"""Masked reductions and numerically stable functions; for an empty mask, values are defined and gradients finite."""

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.types import Array


def length_mask(length: Array, size: int) -> Array:
  """A mask [..., size], True where the index along the last axis is below `length` [...]."""
  length = jnp.asarray(length)
  return jax.lax.broadcasted_iota(length.dtype, (*length.shape, size), length.ndim) < length[..., None]


def masked_sum(values: Array, mask: Array, axis: int | tuple[int, ...] = -1) -> Array:
  """Sum of `values` where `mask` is True; 0 for an empty mask. Masked-out values may be NaN."""
  return jnp.sum(jnp.where(mask, values, 0.0), axis=axis)


def masked_mean(values: Array, mask: Array, axis: int | tuple[int, ...] = -1) -> Array:
  """Mean of `values` where `mask` is True; 0 for an empty mask. Masked-out values may be NaN."""
  return masked_sum(values, mask, axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def masked_logsumexp(values: Array, mask: Array, axis: int | tuple[int, ...] = -1) -> Array:
  """log sum exp of `values` where `mask` is True; -inf, with zero gradient, for an empty mask."""
  return jax.nn.logsumexp(values, axis=axis, where=mask)


def log1mexp(x: Array) -> Array:
  """log(1 - exp(x)) for x < 0, accurate at both ends: log(-expm1(x)) near 0 and log1p(-exp(x)) far from it.

  References:
    Maechler 2012, Accurately Computing log(1 - exp(-|a|)),
    https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf, equation 7.
  """
  near = x > -jnp.log(2.0)
  return jnp.where(
    near,
    jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))),
    jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
  )


def select(values: Array, index: Array) -> Array:
  """`values[..., index]`: selects one entry of the last axis for each leading position.

  It is a masked sum instead of a gather: the sum fuses with the computation of `values`, its gradient needs no scatter,
  and if the last axis is sharded, it costs one small all-reduce instead of an all-gather.

  Args:
    values: the values to select from, [..., V].
    index: the index to select, [...] int in [0, V).

  Returns:
    The selected values, [...].
  """
  positions = jax.lax.broadcasted_iota(index.dtype, values.shape, values.ndim - 1)
  return jnp.sum(jnp.where(positions == index[..., None], values, 0.0), axis=-1)


def order_statistic(values: Array, rank: int) -> Array:
  """The value of a rank along the last axis, without a sort: the bits of the answer from the highest, by counting.

  It has no gradient. Each of the 32 passes reads all values once, which is cheaper than sorting a vocabulary.

  Args:
    values: the values, [..., n] float32, without NaN.
    rank: the rank in [0, n); 0 is the smallest.

  Returns:
    One of the values, [...].

  Raises:
    ValueError: the rank is outside [0, n).
  """
  if not 0 <= rank < values.shape[-1]:
    raise ValueError(f'rank={rank} must be in [0, {values.shape[-1]})')
  sign = jnp.uint32(1 << 31)
  bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values).astype(jnp.float32), jnp.uint32)
  keys = jnp.where(bits >= sign, ~bits, bits | sign)  # unsigned integers in the order of the values

  def decide(i: Array, key: Array) -> Array:
    raised = key | (sign >> i.astype(jnp.uint32))
    below = jnp.sum(keys < raised[..., None], axis=-1, dtype=jnp.int32)
    return jnp.where(below <= rank, raised, key)

  key = jax.lax.fori_loop(0, 32, decide, jnp.zeros(values.shape[:-1], jnp.uint32))
  return jax.lax.bitcast_convert_type(jnp.where(key >= sign, key ^ sign, ~key), jnp.float32)


def permuted(index: Array, words: Array, bits: int = 32) -> Array:
  """A pseudorandom permutation of the numbers below 2^bits: distinct indices give distinct numbers.

  Every step (adding a constant, multiplying by an odd one, folding the high half into the low half) is a bijection
  modulo 2^bits. It is not cryptographic.

  Args:
    index: uint32 of any shape, below 2^bits.
    words: [2] uint32, the key that selects the permutation.
    bits: the width of the numbers, 31 or 32.

  Returns:
    uint32, shaped like `index`.

  References:
    Wellons 2018, Prospecting for Hash Functions, https://nullprogram.com/blog/2018/07/31 (the multipliers and shifts).
  """
  last = np.uint32(2**bits - 1)
  for word in (words[0], words[1]):
    index = (index + word) & last
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
      index = ((index ^ (index >> np.uint32(shift))) * np.uint32(factor)) & last
    index ^= index >> np.uint32(16)
  return index


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
  """`x @ kernel` in the dtype of `x`; the gradient in the kernel is summed in float32, over all leading axes at once.

  Autodiff would write that gradient as a product with a transposed operand in the compute dtype. It rounds the sum, and
  XLA for CPU emulates it in bfloat16.

  Args:
    x: [..., D] in the compute dtype.
    kernel: [D, F], of any dtype.

  Returns:
    The product, [..., F].
  """
  return x @ kernel.astype(x.dtype)


def _product_forward(x, kernel):
  return x @ kernel.astype(x.dtype), (x, kernel)


def _product_backward(residuals, cotangent):
  x, kernel = residuals
  d_x = jnp.einsum('...f,df->...d', cotangent, kernel.astype(x.dtype))
  d_kernel = jnp.einsum('...d,...f->df', x, cotangent, preferred_element_type=jnp.float32)
  return d_x, d_kernel.astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def project(hidden: Array, kernel: Array) -> Array:
  """`hidden @ kernel` in the dtype of `hidden`, accumulated and returned in float32.

  The gradients use the same kind of product: operands in the compute dtype, sums in float32. Plain autodiff would
  multiply a float32 cotangent by a bfloat16 operand, which is slow on most hardware.

  Args:
    hidden: hidden states, [..., D] in the compute dtype.
    kernel: kernel of the head, [D, V] float32.

  Returns:
    The product, [..., V] float32.
  """
  return jnp.einsum('...d,dv->...v', hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _project_forward(hidden, kernel):
  return project(hidden, kernel), (hidden, kernel)


def _project_backward(residuals, cotangent):
  hidden, kernel = residuals
  cotangent = cotangent.astype(hidden.dtype)
  d_hidden = jnp.einsum('...v,dv->...d', cotangent, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
  d_kernel = jnp.einsum('...d,...v->dv', hidden, cotangent, preferred_element_type=jnp.float32)
  if hidden.dtype != jnp.float32:
    # A tied head transposes d_kernel. XLA for CPU has no mixed-precision product with a transposed result, so a barrier
    # keeps it from fusing the transposition into the product.
    d_kernel = jax.lax.optimization_barrier(d_kernel)
  return d_hidden.astype(hidden.dtype), d_kernel.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def scale_gradient(x: Array, factor: Array) -> Array:
  """`x`, whose gradient is multiplied by `factor`, an array of the same shape; no gradient flows into `factor`."""
  del factor
  return x


def _scale_gradient_backward(factor, cotangent):
  return factor * cotangent, jnp.zeros_like(factor)


scale_gradient.defvjp(lambda x, factor: (x, factor), _scale_gradient_backward)
