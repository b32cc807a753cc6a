"""The k entries of largest magnitude, against sorting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.optim import random_bits, top_fraction
from tests import quick
from tests.oracles import online_merging as oracle

WORDS = random_bits.key_words(7)


@functools.partial(jax.jit, static_argnames=('fraction', 'stacked'))
def mask(x, fraction, previous, stacked):
  cut = top_fraction.find(x, fraction, WORDS, stacked=stacked, previous=previous)
  return top_fraction.keeps(x, WORDS, cut)


def kept(x, fraction, previous=None, *, stacked=False):
  return np.asarray(mask(x, fraction, previous or top_fraction.no_cut(x, stacked), stacked))


def hard_tensors():
  rng = np.random.default_rng(0)
  normal = rng.standard_normal(5000)
  yield 'normal', normal
  yield 'heavy', np.sinh(6 * normal) * 1e-9
  yield 'two scales', np.where(rng.random(5000) < 0.5, 1e-20, 1e10) * normal
  yield 'crowded', 1.0 + 1e-6 * normal
  yield 'one large', np.r_[1e30, normal[1:]]
  yield 'subnormal', normal * 1e-41
  yield 'equal', np.where(normal > 0, 1e-6, -1e-6)
  yield 'zeros', np.zeros(5000)
  yield 'few values', np.round(normal)
  yield 'coarse', (normal * 1e-3).astype(jnp.bfloat16)
  yield 'half tied', np.where(rng.random(5000) < 0.5, 0.1, normal)


@pytest.mark.parametrize(
  'values', quick.named(dict(hard_tensors()), ('normal', 'two scales', 'subnormal', 'equal', 'half tied'))
)
def test_it_is_what_sorting_finds(values):
  x = jnp.asarray(values, jnp.float32).reshape(50, 100)
  magnitude = np.abs(np.asarray(x)).ravel().view(np.int32)  # a CPU may compare subnormal numbers as zeros
  ranks = [oracle.permuted(index, np.asarray(WORDS), 31) for index in range(5000)]
  search = jax.jit(lambda x, fraction: top_fraction.keeps(x, WORDS, top_fraction.find(x, fraction, WORDS)))
  for fraction in (0.0001, 0.01, 0.5, 0.9999):
    found = np.asarray(search(x, jnp.float32(fraction))).ravel()
    expected = oracle.largest(magnitude, np.float32(fraction), ranks)
    np.testing.assert_array_equal(found, expected, err_msg=f'share {fraction}')


def test_ties_are_broken_by_rank_and_nothing_larger_is_dropped():
  x = jnp.asarray([3.0, -2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
  ranks = np.asarray(random_bits.ranks(WORDS, x.shape))
  two = kept(x, 0.2)
  assert two[0]
  assert two[1:4].tolist() == (ranks[1:4] == ranks[1:4].max()).tolist()
  assert kept(x, 0.6).sum() == 6
  assert kept(x, 0.6)[:5].all()


def test_the_order_of_ties_depends_on_the_key_and_favours_no_position():
  def count(seed):
    words = random_bits.key_words(seed)
    return top_fraction.keeps(x, words, top_fraction.find(x, 0.25, words)).astype(jnp.int32)

  x, seeds = jnp.ones((8, 20)), 400
  masks = np.asarray(jax.lax.map(count, jnp.arange(seeds)))
  assert (masks.sum((1, 2)) == 40).all()
  often = masks.mean(0)
  assert abs(often - 0.25).max() < 5 * (0.25 * 0.75 / seeds) ** 0.5
  both = (masks[:-1] & masks[1:]).mean()  # of different keys, independent
  assert abs(both - 0.25**2) < 0.005


@pytest.mark.slow  # online_merging_test.py has the trajectories of a stack
def test_stacked_tensors_are_independent():
  scale = np.array([1e-6, 1.0, 1e6])[:, None, None]
  x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 20, 30)) * scale, jnp.float32)
  layers = kept(x, 0.1, stacked=True)
  assert layers.sum((1, 2)).tolist() == [60, 60, 60]
  for layer, of_layer in zip(x, layers, strict=True):
    np.testing.assert_array_equal(kept(layer, 0.1), of_layer)
  assert kept(x, 0.1)[2].sum() == 180
  tied = kept(jnp.asarray(np.sign(x) * scale, jnp.float32).at[1, :, :2].set(-2.0), 0.1, stacked=True)
  assert tied.sum((1, 2)).tolist() == [60, 60, 60]
  assert tied[1, :, :2].all()
  assert (tied[0] != tied[2]).any()


def test_the_start_of_the_search_does_not_change_what_is_kept():
  x = jnp.asarray(np.random.default_rng(2).standard_normal((40, 50)), jnp.float32)
  expected = kept(x, 0.05)
  answer = top_fraction.find(x, 0.05, WORDS).bits
  for start in (answer, answer + 2**18, answer - 2**20, jnp.full_like(answer, 1), jnp.full_like(answer, 2**31 - 2**23)):
    previous = top_fraction.Cut(start, jnp.full_like(answer, 5))
    np.testing.assert_array_equal(kept(x, 0.05, previous), expected)
  wrong = top_fraction.Cut(jnp.full_like(answer, 77), jnp.full_like(answer, 5))
  assert [int(part.squeeze()) for part in top_fraction.find(x, 0.05, WORDS, previous=wrong, known=True)] == [77, 5]


@pytest.mark.slow  # random numbers of float32 are compared above
def test_a_bfloat16_is_the_float32_that_it_is():
  x = jnp.asarray(np.random.default_rng(3).standard_normal(300), jnp.bfloat16)
  np.testing.assert_array_equal(kept(x, 0.1), kept(x.astype(jnp.float32), 0.1))


def test_kept_count():
  assert [top_fraction.kept_count(p, 100) for p in (0.001, 0.29, 0.5, 1.0)] == [1, 28, 50, 100]
  assert int(top_fraction.kept_count(jnp.float32(0.25), 100)) == 25
