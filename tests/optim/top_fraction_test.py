"""The k-th largest magnitude, against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.optim import top_fraction


def kept(x, fraction, **options):
  bits = jax.jit(lambda x: top_fraction.threshold(x, fraction, **options))(x)
  return np.asarray(top_fraction.magnitude_bits(x) >= bits)


def hard_tensors():
  rng = np.random.default_rng(0)
  normal = rng.standard_normal(5000)
  yield 'normal', normal
  yield 'heavy', np.sinh(6 * normal) * 1e-9
  yield 'two scales', np.where(rng.random(5000) < 0.5, 1e-20, 1e10) * normal
  yield 'crowded', 1.0 + 1e-6 * normal
  yield 'one large', np.r_[1e30, normal[1:]]
  yield 'subnormal', normal * 1e-41


@pytest.mark.parametrize(
  ('name', 'values'), list(hard_tensors()), ids=lambda value: value if isinstance(value, str) else ''
)
def test_it_is_what_sorting_finds(name, values):
  x = jnp.asarray(values, jnp.float32).reshape(50, 100)
  magnitude = np.abs(np.asarray(x)).ravel()
  search = jax.jit(lambda x, fraction: top_fraction.threshold(x, fraction))
  for fraction in (0.0001, 0.01, 0.5, 0.9999):
    count = max(1, int(np.float32(fraction) * 5000))
    smallest = np.sort(magnitude)[-count]
    mask = np.asarray(top_fraction.magnitude_bits(x) >= search(x, jnp.float32(fraction))).ravel()
    bits = magnitude.view(np.int32)  # a CPU may compare subnormal numbers as zeros
    np.testing.assert_array_equal(mask, bits >= smallest.view(np.int32), err_msg=f'{name}, {fraction}')


def test_what_ties_with_the_smallest_kept_is_kept():
  x = jnp.asarray([3.0, -2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
  np.testing.assert_array_equal(kept(x, 0.2), [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
  assert kept(x, 0.6).all()  # zeros, too: keeping them is no different from dropping them
  assert kept(jnp.full((7, 3), 0.1), 0.01).all()


def test_stacked_tensors_are_independent():
  scale = np.array([1e-6, 1.0, 1e6])[:, None, None]
  x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 20, 30)) * scale, jnp.float32)
  mask = kept(x, 0.1, stacked=True)
  assert mask.sum((1, 2)).tolist() == [60, 60, 60]
  for layer, of_layer in zip(x, mask, strict=True):
    np.testing.assert_array_equal(kept(layer, 0.1), of_layer)
  assert kept(x, 0.1)[2].sum() == 180


def test_the_start_of_the_search_does_not_change_what_is_kept():
  x = jnp.asarray(np.random.default_rng(2).standard_normal((40, 50)), jnp.float32)
  expected = kept(x, 0.05)
  answer = top_fraction.threshold(x, 0.05)
  for start in (answer, answer + 2**18, answer - 2**20, jnp.full_like(answer, 1), jnp.full_like(answer, 2**31 - 2**23)):
    np.testing.assert_array_equal(kept(x, 0.05, previous=start), expected)
  wrong = jnp.full_like(answer, 77)
  assert int(top_fraction.threshold(x, 0.05, previous=wrong, known=True).squeeze()) == 77


def test_a_bfloat16_is_the_float32_that_it_is():
  x = jnp.asarray(np.random.default_rng(3).standard_normal(300), jnp.bfloat16)
  np.testing.assert_array_equal(kept(x, 0.1), kept(x.astype(jnp.float32), 0.1))


def test_kept_count():
  assert [top_fraction.kept_count(p, 100) for p in (0.001, 0.29, 0.5, 1.0)] == [1, 28, 50, 100]
  assert int(top_fraction.kept_count(jnp.float32(0.25), 100)) == 25
