"""Strategies against float64 sorts, and draws against the distribution they claim to follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.sampling import strategies

LOGITS = (3 * np.random.default_rng(0).standard_normal((4, 2, 300))).astype(np.float32)


def _softmax(logits):
  weights = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


def _kept(logits):
  return np.isfinite(np.asarray(logits))


def test_greedy_keeps_the_first_of_the_most_probable_tokens():
  logits = LOGITS.copy()
  logits[0, 0, [17, 200]] = 99.0
  kept = _kept(strategies.greedy()(logits))
  assert (kept.sum(axis=-1) == 1).all()
  np.testing.assert_array_equal(kept.argmax(axis=-1), logits.argmax(axis=-1))
  assert kept[0, 0, 17]


def test_temperature_divides_and_leaves_alone_at_one():
  np.testing.assert_allclose(strategies.temperature(0.5)(LOGITS), 2 * LOGITS, rtol=1e-6)
  assert strategies.temperature(1.0)(LOGITS) is LOGITS


@pytest.mark.parametrize('k', [1, 7, 299])
def test_top_k_keeps_k_tokens_and_their_logits(k):
  filtered = np.asarray(strategies.top_k(k)(LOGITS))
  order = np.argsort(-LOGITS, axis=-1)
  expected = np.full_like(LOGITS, -np.inf)
  np.put_along_axis(expected, order[..., :k], np.take_along_axis(LOGITS, order[..., :k], axis=-1), axis=-1)
  np.testing.assert_array_equal(filtered, expected)


def test_top_k_keeps_ties_of_the_last_token_and_everything_when_k_is_large():
  logits = jnp.asarray([[3.0, 1.0, 2.0, 1.0, 0.0]])
  np.testing.assert_array_equal(_kept(strategies.top_k(3)(logits)), [[True, True, True, True, False]])
  assert strategies.top_k(300)(LOGITS) is LOGITS


@pytest.mark.parametrize('mass', [0.05, 0.5, 0.9, 0.999])
def test_nucleus_is_the_smallest_set_of_enough_mass(mass):
  filtered = np.asarray(strategies.nucleus(mass)(LOGITS))
  probability = _softmax(LOGITS)
  order = np.argsort(-probability, axis=-1)
  before = np.cumsum(np.take_along_axis(probability, order, axis=-1), axis=-1)
  before = np.concatenate([np.zeros_like(before[..., :1]), before[..., :-1]], axis=-1)
  expected = np.zeros(LOGITS.shape, bool)
  np.put_along_axis(expected, order, before < mass, axis=-1)
  np.testing.assert_array_equal(_kept(filtered), expected)
  np.testing.assert_array_equal(filtered[expected], LOGITS[expected])


def test_nucleus_of_equal_tokens_keeps_them_all_and_mass_one_everything():
  logits = jnp.log(jnp.asarray([[0.4, 0.2, 0.2, 0.2]]))
  np.testing.assert_array_equal(_kept(strategies.nucleus(0.5)(logits)), [[True] * 4])
  np.testing.assert_array_equal(_kept(strategies.nucleus(0.3)(logits)), [[True, False, False, False]])
  assert strategies.nucleus(1.0)(LOGITS) is LOGITS


def test_nucleus_tells_neighbouring_floats_apart():
  np.testing.assert_array_equal(_kept(strategies.nucleus(0.4)(jnp.asarray([[-1e-6, 0.0]]))), [[False, True]])


def test_strategies_apply_from_left_to_right():
  """Of (0.5, 0.3, 0.1, 0.1), top 2 leaves (5/8, 3/8): mass 0.6 is then the first alone. The other order keeps two."""
  logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.11, 0.09]]))
  first_k = strategies.chain(strategies.top_k(2), strategies.nucleus(0.6))(logits)
  first_mass = strategies.chain(strategies.nucleus(0.6), strategies.top_k(2))(logits)
  assert _kept(first_k).sum() == 1
  assert _kept(first_mass).sum() == 2
  assert strategies.chain()(LOGITS) is LOGITS


@pytest.mark.parametrize(
  ('factory', 'value', 'message'),
  [
    (strategies.temperature, 0.0, r'temperature 0.0 must be positive; for temperature 0 use greedy\(\)'),
    (strategies.top_k, 0, 'top_k: k=0 must be at least 1'),
    (strategies.nucleus, 0.0, r'nucleus: mass=0.0 must be in \(0, 1\]'),
    (strategies.nucleus, 1.5, 'mass=1.5'),
    (strategies.nucleus, float('nan'), 'mass=nan'),
  ],
)
def test_wrong_settings_are_refused(factory, value, message):
  with pytest.raises(ValueError, match=message):
    factory(value)


def test_draw_inverts_the_cumulative_distribution_of_one_block():
  probability = np.array([0.1, 0.0, 0.25, 0.65, 0.0])
  with np.errstate(divide='ignore'):
    logits = np.broadcast_to(np.log(probability).astype(np.float32), (10000, 5))
  uniform = np.stack([np.zeros(10000), (np.arange(10000) + 0.5) / 10000], axis=-1).astype(np.float32)
  token, logp = jax.jit(strategies.draw)(logits, uniform)
  np.testing.assert_allclose(np.bincount(token, minlength=5) / 10000, probability, atol=1e-4)
  np.testing.assert_allclose(logp, np.log(probability[token]), atol=1e-6)


def test_draw_follows_a_distribution_over_several_blocks():
  """Pearson's chi-square over 300 tokens, the rare ones together, at a fixed seed."""
  draws, row = 40000, LOGITS[0, 0]
  probability = _softmax(row)
  uniform = jax.random.uniform(jax.random.key(1), (draws, 2))
  token, logp = jax.jit(lambda u: strategies.draw(jnp.broadcast_to(row, (draws, 300)), u))(uniform)
  counts, expected = np.bincount(token, minlength=300), draws * probability
  common = expected >= 5
  assert 30 < common.sum() < 250
  counts = np.append(counts[common], counts[~common].sum())
  expected = np.append(expected[common], expected[~common].sum())
  statistic, freedom = np.sum((counts - expected) ** 2 / expected), len(counts) - 1
  assert abs(statistic - freedom) < 3 * np.sqrt(2 * freedom)
  np.testing.assert_allclose(logp, np.log(probability[token]), atol=1e-5)


def test_draw_never_takes_an_excluded_token():
  """At both ends of the uniform numbers, and where whole blocks are excluded."""
  draw = jax.jit(strategies.draw)
  for kept in ([299], [0], [130, 255], [5, 128]):
    logits = np.full((3, 300), -np.inf, np.float32)
    logits[:, kept] = [[1.0] * len(kept), [-40.0] * len(kept), np.linspace(0.0, 80.0, len(kept))]
    for end in (0.0, 0.5, 1 - 2.0**-24):
      token, logp = draw(logits, np.full((3, 2), end, np.float32))
      assert set(np.asarray(token)) <= set(kept)
      assert np.all(np.isfinite(logp))


def test_draw_gives_each_of_four_equal_tokens_a_half_open_quarter():
  uniform = np.array([[0, 0], [0, 0.25 - 2**-24], [0, 0.25], [0, 0.5], [0, 0.75], [0, 1 - 2**-24]], np.float32)
  token, _ = jax.jit(strategies.draw)(np.zeros((6, 4), np.float32), uniform)
  np.testing.assert_array_equal(token, [0, 0, 1, 2, 3, 3])


def test_no_block_of_mass_zero_is_taken_where_cumulative_sums_are_rounded():
  """A parallel cumulative sum may rise at a weight of 0; uniform numbers are put on both sides of every such edge."""
  rng = np.random.default_rng(4)
  weights = (rng.uniform(size=(4000, 384)) * (rng.uniform(size=(4000, 384)) < 0.1)).astype(np.float32)
  cumulative = np.asarray(jax.jit(lambda x: jnp.cumsum(x, axis=-1))(weights))
  highest = np.maximum.accumulate(cumulative, axis=-1)
  row, place = np.nonzero((weights[:, 1:] == 0) & (cumulative[:, 1:] > highest[:, :-1]))
  assert len(row) > 100, 'sums that never rise at 0 would test nothing'
  edge = highest[row, place] / highest[row, -1]
  for uniform in (np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.float32(1))):
    index = np.asarray(jax.jit(strategies._invert)(weights[row], np.minimum(uniform, np.float32(1 - 2**-24))))
    assert np.all(weights[row, index] > 0)
