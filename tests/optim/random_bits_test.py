"""Threefry, against JAX's own, and masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.optim import random_bits
from tests.oracles import online_merging as oracle


@pytest.mark.parametrize(
  'shape', [(), (5, 3), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((7,), (2, 3, 4)))]
)
def test_bits_are_those_of_jax(shape):
  with jax.threefry_partitionable(True):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3, impl='threefry2x32'), 5), 2)
    expected = jax.random.key_data(jax.random.split(key, shape))
  words = random_bits.bits(random_bits.fold(random_bits.key_words(3), 5, jnp.int32(2)), shape)
  for place in (0, 1):
    np.testing.assert_array_equal(words[place], expected[..., place])


@pytest.mark.parametrize('shape', [(7,), (2, 3, 4)])
def test_ranks_are_a_permutation_of_the_positions(shape):
  words = random_bits.fold(random_bits.key_words(3), 5)
  expected = [oracle.permuted(index, np.asarray(words), 31) for index in range(np.prod(shape))]
  np.testing.assert_array_equal(random_bits.ranks(words, shape), np.reshape(expected, shape))


def test_ranks_are_distinct_and_fill_their_range_evenly():
  ranks = np.asarray(random_bits.ranks(random_bits.key_words(0), (300, 400)))
  assert np.unique(ranks).size == ranks.size
  expected = ranks.size / 64
  counts = np.bincount(ranks.ravel() >> 25, minlength=64)
  assert counts.size == 64  # [0, 2^31)
  assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * (2 * 63) ** 0.5  # chi squared


@pytest.mark.parametrize(
  ('shape', 'most'),
  [((80, 8192, 28672), 2**32), ((80, 8192, 28672), 2**31), ((16, 128, 6144, 4096), 2**32), ((2**16, 2**16), 2**32)],
)
def test_numbers_of_entries_of_a_70b_model_do_not_wrap(shape, most):
  rng = np.random.default_rng(0)
  index = [np.append(rng.integers(size, size=1000), (0, size - 1)).astype(np.uint32) for size in shape]
  layer, place = (np.asarray(x) for x in random_bits.numbers(index, shape, most))
  rows = shape[1:] if np.prod(shape) > most else shape
  expected = np.ravel_multi_index([i.astype(np.int64) for i in index], shape)
  np.testing.assert_array_equal(layer.astype(np.int64) * np.prod(rows) + place, expected)


def test_more_places_in_a_layer_than_numbers_are_refused():
  with pytest.raises(ValueError, match=r'shape \(2, 65536, 65537\) has more than 4294967296 entries in a layer'):
    random_bits.numbers([], (2, 2**16, 2**16 + 1), 2**32)


def test_layers_have_other_bits_and_other_orders(monkeypatch):
  monkeypatch.setattr(random_bits, 'numbers', functools.partial(_with_most, random_bits.numbers))
  words = random_bits.key_words(0)
  bits, ranks = random_bits.bits(words, (2, 50, 40))[0], random_bits.ranks(words, (2, 50, 40))
  assert np.mean(np.asarray(bits[0] == bits[1])) < 0.01
  assert np.mean(np.asarray((ranks[0, :, 1:] > ranks[0, :, :-1]) == (ranks[1, :, 1:] > ranks[1, :, :-1]))) < 0.6
  assert all(np.unique(layer).size == layer.size for layer in np.asarray(ranks))


def _with_most(numbers, index, shape, most):
  """Numbers as if only 3,000 places could be numbered."""
  return numbers(index, shape, 3000)


def test_bernoulli():
  first, second = random_bits.bits(random_bits.key_words(0), (300, 400))
  for probability in (0.01, 0.5, 0.9):
    masks = [np.asarray(random_bits.bernoulli(word, probability)) for word in (first, second)]
    deviation = (probability * (1 - probability) / first.size) ** 0.5
    assert all(abs(mask.mean() - probability) < 5 * deviation for mask in masks)
    assert abs((masks[0] & masks[1]).mean() - probability**2) < 5 * probability / first.size**0.5
  assert random_bits.bernoulli(jnp.uint32(2**32 - 1), 1.0)
  assert not random_bits.bernoulli(jnp.uint32(2**32 - 1), 1.0 - 2.0**-24)


def test_masks_survive_packing():
  masks = [jnp.asarray([True, False, True, False]), jnp.asarray([True, True, False, False])]
  for mask, again in zip(masks, random_bits.unpacked(random_bits.packed(masks), 2), strict=True):
    np.testing.assert_array_equal(mask, again)
