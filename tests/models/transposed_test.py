"""Kernels stored by outputs multiply like kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import transposed


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('leading', [(1,), (1, 1), (3,), (2, 3)])
@pytest.mark.parametrize('result', [None, jnp.float32])
def test_the_product_is_that_of_the_kernel(dtype, leading, result):
  rng = np.random.default_rng(0)
  x, kernel = (jnp.asarray(rng.integers(-4, 5, size), dtype) for size in ((*leading, 5), (5, 7)))  # exact sums
  found = jax.jit(lambda x, kernel: x @ transposed.Transposed.of(kernel, result))(x, kernel)
  assert found.dtype == (result or dtype)
  np.testing.assert_array_equal(found, jnp.einsum('...d,df->...f', x, kernel))


def test_numbers_are_cast():
  kernel = transposed.Transposed.of(jnp.ones((2, 3))).astype(jnp.bfloat16)
  assert (kernel.array.shape, kernel.array.dtype) == ((3, 2), jnp.bfloat16)
