"""Masked reductions and elementary functions, in value and gradient, at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import numerics
from alignjax.types import WeightedSum


def test_masked_reductions_ignore_what_is_masked_out():
  values = jnp.asarray([1.0, jnp.nan, 3.0])
  mask = jnp.asarray([True, False, True])
  assert numerics.masked_sum(values, mask) == 4.0
  assert numerics.masked_mean(values, mask) == 2.0
  np.testing.assert_allclose(numerics.masked_logsumexp(values, mask), np.logaddexp(1.0, 3.0), rtol=1e-6)


@pytest.mark.parametrize(
  ('reduce', 'empty'),
  [(numerics.masked_sum, 0.0), (numerics.masked_mean, 0.0), (numerics.masked_logsumexp, -np.inf)],
)
def test_an_empty_mask_is_defined_and_has_zero_gradient(reduce, empty):
  values, mask = jnp.asarray([1.0, 2.0]), jnp.zeros(2, bool)
  assert reduce(values, mask) == empty
  np.testing.assert_array_equal(jax.grad(lambda x: reduce(x, mask))(values), 0.0)


def test_log1mexp_is_accurate_and_differentiable_at_both_ends():
  x = np.array([-1e-6, -1e-3, -0.5, -np.log(2.0), -1.0, -30.0, -80.0], np.float32)
  expected = np.log1p(-np.exp(x.astype(np.longdouble)))
  near = x > -1e-2
  expected[near] = np.log(-np.expm1(x[near].astype(np.longdouble)))
  np.testing.assert_allclose(numerics.log1mexp(jnp.asarray(x)), expected.astype(np.float64), rtol=3e-6)
  slope = jax.vmap(jax.grad(numerics.log1mexp))(jnp.asarray(x))
  exact = -np.exp(x.astype(np.float64)) / -np.expm1(x.astype(np.float64))
  np.testing.assert_allclose(slope, exact, rtol=1e-5)


def test_length_mask():
  np.testing.assert_array_equal(
    numerics.length_mask(jnp.asarray([[0, 2], [3, 1]]), 3),
    [[[False, False, False], [True, True, False]], [[True, True, True], [True, False, False]]],
  )


def test_select_equals_indexing_and_its_gradient_is_one_hot():
  values = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5)), jnp.float32)
  index = jnp.asarray([[0, 4, 2], [1, 1, 3]])
  np.testing.assert_array_equal(
    numerics.select(values, index), np.take_along_axis(values, index[..., None], -1)[..., 0]
  )
  gradient = jax.grad(lambda x: numerics.select(x, index).sum())(values)
  np.testing.assert_array_equal(gradient, np.eye(5)[np.asarray(index)])


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_project_multiplies_in_the_compute_dtype_and_sums_in_float32(dtype):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.standard_normal((2, 3, 64)), dtype)
  kernel = jnp.asarray(rng.standard_normal((64, 7)), jnp.float32)
  cotangent = jnp.asarray(rng.standard_normal((2, 3, 7)), dtype).astype(jnp.float32)
  out, vjp = jax.vjp(numerics.project, hidden, kernel)
  rounded = np.asarray(kernel.astype(dtype), np.float64)
  h, c = np.asarray(hidden, np.float64), np.asarray(cotangent, np.float64)
  d_hidden, d_kernel = vjp(cotangent)
  assert (out.dtype, d_hidden.dtype, d_kernel.dtype) == (jnp.float32, dtype, jnp.float32)
  np.testing.assert_allclose(out, h @ rounded, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(d_kernel, np.einsum('bnd,bnv->dv', h, c), rtol=1e-5, atol=1e-4)
  tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
  np.testing.assert_allclose(d_hidden.astype(jnp.float32), c @ rounded.T, rtol=tolerance, atol=tolerance)


def test_weighted_sums_add_like_one_large_batch_and_skip_weight_zero():
  values, weight = jnp.asarray([1.0, 2.0, jnp.nan, 4.0]), jnp.asarray([1.0, 3.0, 0.0, 0.5])
  parts = WeightedSum.of(values[:1], weight[:1]) + WeightedSum.of(values[1:], weight[1:])
  np.testing.assert_allclose(parts.mean(), (1 + 6 + 2) / 4.5, rtol=1e-6)
  assert WeightedSum.of(values, jnp.zeros(4)).mean() == 0.0


def test_the_gradient_of_a_product_in_bfloat16_is_summed_in_float32():
  rng = np.random.default_rng(0)
  x, cotangent = (jnp.asarray(rng.standard_normal((3, 200, size)), jnp.bfloat16) for size in (4, 5))
  kernel = jnp.asarray(rng.standard_normal((4, 5)), jnp.float32)
  value, pull_back = jax.vjp(numerics.product, x, kernel)
  d_x, d_kernel = pull_back(cotangent)
  assert (value.dtype, d_x.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  np.testing.assert_array_equal(value, x @ kernel.astype(jnp.bfloat16))
  rounded = [np.asarray(each, np.float64) for each in (x, cotangent, kernel.astype(jnp.bfloat16))]
  np.testing.assert_allclose(d_kernel, np.einsum('btd,btf->df', *rounded[:2]), rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(np.asarray(d_x, np.float64), rounded[1] @ rounded[2].T, rtol=1e-2, atol=1e-2)


def test_an_order_statistic_is_that_of_a_sort():
  """With ties, zeros of both signs, subnormal numbers and infinities."""
  rng = np.random.default_rng(0)
  values = np.round(8 * rng.standard_normal((3, 2, 40))).astype(np.float32) / 4
  values[0, 0, :8] = [0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, 3e38, -3e38]
  expected = np.sort(values, axis=-1)
  for rank in (0, 1, 7, 20, 38, 39):
    np.testing.assert_array_equal(numerics.order_statistic(jnp.asarray(values), rank), expected[..., rank])
  for rank in (-1, 40):
    with pytest.raises(ValueError, match=rf'rank={rank} must be in \[0, 40\)'):
      numerics.order_statistic(jnp.asarray(values), rank)


def test_an_order_statistic_has_no_gradient():
  gradient = jax.grad(lambda x: jnp.sum(numerics.order_statistic(x, 1)))(jnp.asarray([3.0, 1.0, 2.0]))
  np.testing.assert_array_equal(gradient, 0.0)
