"""Sliding windows: what each token sees is told by the distance of positions, and by nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import attention
from tests import quick

HEADS, KV_HEADS, WIDTH = 4, 2, 6
LAYOUT = attention.Layout(prompt=7, samples=2, response=6)
PROMPT_KEYS = np.array([6, 3, 0], np.int32)  # prompts of 7, 4 and 1 tokens
WINDOWS = (None, 2, 9, 1, 4, 50)
XLA, CUDNN = attention.Scores('xla'), attention.Scores('cudnn')


def _attention():
  heads = attention.Heads(8, HEADS, KV_HEADS, WIDTH)
  return attention.Attention(heads, XLA, jax.random.key(0), bias=False, output_bias=False, norms=None)


def _arrays(length):
  """Queries, keys and values of `length` tokens in each of three rows."""
  rng = np.random.default_rng(length)
  shapes = [(len(PROMPT_KEYS), length, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def _near(query_position, key_position, window):
  """[T, S] bool: at or before the query, and fewer than `window` tokens away."""
  distance = np.asarray(query_position)[:, None] - np.asarray(key_position)[None]
  return (distance >= 0) & (distance < (np.inf if window is None else window))


def _joint_near(row, window):
  """[R, P + R]: what the tokens of a response see; its first token stands where its prompt ends."""
  keys, (prompt, _, response) = PROMPT_KEYS[row], LAYOUT
  own = keys + np.arange(response)
  near = _near(own, np.concatenate([np.arange(prompt), own]), window)
  near[:, keys:prompt] = False
  return near


@pytest.mark.parametrize('window', quick.first(3, WINDOWS))
def test_prompt_tokens_see_by_distance(window):
  query, key, value = _arrays(LAYOUT.prompt)
  positions = np.arange(LAYOUT.prompt)
  mask = jnp.asarray(_near(positions, positions, window))[None, None]
  expected = attention.attend(query, key, value, mask, XLA)
  actual = _attention().over_prompt(query, key, value, window)
  np.testing.assert_array_equal(actual, expected.reshape(actual.shape))


@pytest.mark.parametrize('window', quick.first(3, WINDOWS))
def test_response_tokens_see_by_distance_across_the_end_of_the_prompt(window):
  prompt, samples, response = LAYOUT
  query, key, value = _arrays(prompt + samples * response)
  actual = _attention().over_responses(query[:, prompt:], key, value, PROMPT_KEYS, LAYOUT, window)
  actual = np.asarray(actual).reshape(len(PROMPT_KEYS), samples, response, HEADS, WIDTH)
  own = [np.arange(prompt + n * response, prompt + (n + 1) * response) for n in range(samples)]
  seen = [np.concatenate([np.arange(prompt), index]) for index in own]
  for n in range(samples):
    mask = jnp.stack([_joint_near(row, window) for row in range(len(PROMPT_KEYS))])[:, None]
    expected = attention.attend(query[:, own[n]], key[:, seen[n]], value[:, seen[n]], mask, XLA)
    np.testing.assert_array_equal(actual[:, n], expected)


@pytest.mark.parametrize('window', WINDOWS)
def test_a_decoding_step_sees_by_distance_across_the_end_of_the_prompt(window):
  for index in range(LAYOUT.response):
    seen = attention.Seen.at(PROMPT_KEYS, jnp.int32(index), LAYOUT.prompt, LAYOUT.response, window)
    for row in range(len(PROMPT_KEYS)):
      actual = np.concatenate([seen.prompt[row], seen.own])
      np.testing.assert_array_equal(actual, _joint_near(row, window)[index])


@pytest.mark.parametrize('cap', [None, 0.7])
def test_layers_may_share_a_program_and_differ_in_the_window(cap):
  arrays = _arrays(LAYOUT.prompt)
  for window in (1, 3, 7):
    as_number, as_array = (
      attention.attend(*arrays, None, attention.Scores('xla', cap=cap), attention.Causal(given))
      for given in (window, jnp.int32(window))
    )
    np.testing.assert_array_equal(as_number, as_array)


def test_scores_are_scaled_and_softly_capped_before_what_is_unseen_is_left_out():
  query, key, value = _arrays(5)
  scores = attention.Scores('xla', scale=0.3, cap=0.7)
  actual = attention.attend(query, key, value, None, scores, attention.Causal(3))
  groups = HEADS // KV_HEADS
  key, value = (np.repeat(np.asarray(x, np.float64), groups, axis=2) for x in (key, value))
  capped = 0.7 * np.tanh(0.3 / 0.7 * np.einsum('bthd,bshd->bhts', np.asarray(query, np.float64), key))
  weights = np.exp(capped) * _near(np.arange(5), np.arange(5), 3)
  expected = np.einsum('bhts,bshd->bthd', weights / weights.sum(-1, keepdims=True), value)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_kernels_are_told_the_window(monkeypatch):
  """cuDNN needs a GPU, so what it would be called with is compared: keys t - 3 .. t."""
  calls = []
  monkeypatch.setattr(jax.nn, 'dot_product_attention', lambda *_, **options: calls.append(options))
  attention.attend(*_arrays(5), None, CUDNN, attention.Causal(4))
  attention.attend(*_arrays(5), None, CUDNN, attention.Causal())
  assert [call['local_window_size'] for call in calls] == [(3, 0), None]
  assert all(call['implementation'] == 'cudnn' and call['is_causal'] for call in calls)


@pytest.mark.parametrize('most', [0, attention.FEW])  # products of the prompt as matrix products, and as sums
@pytest.mark.parametrize(('window', 'cap'), [(None, None), (4, 2.0)])
def test_a_decoding_step_is_softmax_over_the_prompt_and_the_response(window, cap, most, monkeypatch):
  monkeypatch.setattr(attention, 'FEW', most)
  (prompt, samples, response), index = LAYOUT, 3
  rng, batch = np.random.default_rng(0), len(PROMPT_KEYS)

  def draw(*shape):
    return rng.standard_normal((batch, *shape))

  query = draw(samples, HEADS, WIDTH)
  keys, values = (draw(samples, prompt + response, KV_HEADS, WIDTH) for _ in range(2))
  for array in (keys, values):
    array[:, :, :prompt] = array[:, :1, :prompt]  # a prompt is shared
  stored = [
    keys[:, 0, :prompt].transpose(0, 2, 3, 1),
    values[:, 0, :prompt].transpose(0, 2, 1, 3),
    keys[:, :, prompt:].transpose(0, 1, 3, 4, 2),
    values[:, :, prompt:].transpose(0, 1, 3, 2, 4),
  ]
  cache = attention.LayerCache(*(jnp.asarray(array, jnp.float32) for array in stored))
  seen = attention.Seen.at(jnp.asarray(PROMPT_KEYS), jnp.int32(index), prompt, response, window)
  found = attention.attend_cached(jnp.asarray(query, jnp.float32), cache, seen, attention.Scores('xla', cap=cap))
  found = np.asarray(found).reshape(batch, samples, HEADS, WIDTH)
  for b, n, h in np.ndindex(batch, samples, HEADS):
    head = h // (HEADS // KV_HEADS)
    scores = keys[b, n, :, head] @ query[b, n, h] / np.sqrt(WIDTH)
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    near = _joint_near(b, window)[index]
    weights = np.where(near, np.exp(scores - scores.max()), 0.0)
    np.testing.assert_allclose(found[b, n, h], weights @ values[b, n, :, head] / weights.sum(), rtol=1e-5, atol=1e-6)
