"""Estimates of the KL, against the sum over every response that there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import stats
from alignjax.evaluation import evaluator
from alignjax.models import base
from alignjax.types import Head, PreferenceBatch

VOCABULARY, SIZE, END = 4, 3, 0


def _hidden(params, prompt, prompt_length, response, response_length):
  """A Markov chain: the hidden state is the previous token, one-hot, and the head holds the logits of the next one."""
  del params, response_length
  last = jnp.take_along_axis(prompt, prompt_length[:, None] - 1, axis=1)
  first = jnp.broadcast_to(last[:, None], (*response.shape[:2], 1))
  previous = jnp.concatenate([first, response[..., :-1]], axis=-1)
  return jnp.eye(VOCABULARY)[previous]


CHAIN = base.LanguageModel(None, None, _hidden, Head, None, None)


def _every_response() -> list[tuple[int, ...]]:
  """All sequences that end with the end token, or run into the limit without one."""
  return [
    tokens
    for size in range(1, SIZE + 1)
    for tokens in itertools.product(range(VOCABULARY), repeat=size)
    if END not in tokens[:-1] and (tokens[-1] == END or size == SIZE)
  ]


def _log_probability(logits: np.ndarray, first: int, tokens: tuple[int, ...]) -> float:
  """log p(tokens | first), in float64."""
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  return sum(log_probs[a, b] for a, b in itertools.pairwise((first, *tokens)))


@pytest.fixture
def models() -> tuple[np.ndarray, np.ndarray]:
  generator = np.random.default_rng(0)
  return generator.normal(size=(2, VOCABULARY, VOCABULARY))


def _batch(responses: list[tuple[int, ...]], prompts: list[int]) -> PreferenceBatch:
  """All responses under each prompt, which ends with the token given; padding holds tokens that must not count."""
  padded = np.array([tokens + (3,) * (SIZE - len(tokens)) for tokens in responses], np.int32)
  length = np.array([len(tokens) for tokens in responses], np.int32)
  count = len(prompts)
  return PreferenceBatch(
    prompt=np.array([[2, last, 1] for last in prompts], np.int32),
    prompt_length=np.full(count, 2, np.int32),
    response=np.tile(padded, (count, 1, 1)),
    response_length=np.tile(length, (count, 1)),
    label=np.ones(count, np.float32),
    weight=np.ones(count, np.float32),
  )


@pytest.mark.parametrize('chunk', [1, 100, 4096])
def test_both_estimates_are_unbiased_and_the_one_by_tokens_varies_less(models, chunk):
  policy, reference = models
  responses, prompts = _every_response(), [1, 3]
  batch = _batch(responses, prompts)
  probability = np.array([[np.exp(_log_probability(policy, p, tokens)) for tokens in responses] for p in prompts])
  log_ratio = np.array(
    [[_log_probability(policy, p, y) - _log_probability(reference, p, y) for y in responses] for p in prompts]
  )
  np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-12)
  exact = (probability * log_ratio).sum(axis=1)

  step = jax.jit(evaluator.build_kl_step(CHAIN, chunk=chunk))
  table = step(jnp.asarray(policy, jnp.float32), jnp.asarray(reference, jnp.float32), batch)
  by_ratio = np.asarray(table.sum(stats.logp) - table.sum(stats.reference_logp), np.float64)
  by_tokens = np.asarray(table.sum(stats.reverse_kl), np.float64)
  np.testing.assert_allclose(by_ratio, log_ratio, atol=1e-5)
  np.testing.assert_allclose((probability * by_ratio).sum(axis=1), exact, atol=1e-5)
  np.testing.assert_allclose((probability * by_tokens).sum(axis=1), exact, atol=1e-5)
  assert np.all(by_tokens >= 0)
  variance = [(probability * (values - exact[:, None]) ** 2).sum(axis=1) for values in (by_ratio, by_tokens)]
  assert np.all(variance[1] < variance[0])


def test_estimates_from_draws_cover_the_exact_value(models):
  policy, reference = models
  responses, samples = _every_response(), 400
  batch = _batch(responses, [1])
  step = jax.jit(evaluator.build_kl_step(CHAIN))
  table = step(jnp.asarray(policy, jnp.float32), jnp.asarray(reference, jnp.float32), batch)
  log_probability = np.array([_log_probability(policy, 1, tokens) for tokens in responses])
  exact = sum(
    np.exp(p) * (p - _log_probability(reference, 1, y)) for p, y in zip(log_probability, responses, strict=True)
  )
  # Independent prompts with one sample each: the clustered error is then the plain one.
  drawn = np.random.default_rng(1).choice(len(responses), samples, p=np.exp(log_probability))
  mask = (np.arange(SIZE) < batch.response_length[0][:, None])[drawn][:, None]
  log_ratio = np.asarray(table[stats.logp] - table[stats.reference_logp])[0, drawn][:, None]
  for values in (log_ratio, np.asarray(table[stats.reverse_kl])[0, drawn][:, None]):
    estimate = evaluator.kl(values, mask)
    assert abs(estimate.mean - exact) < 3 * estimate.error
    assert estimate.error < 0.1


def test_a_model_is_at_distance_zero_from_itself(models):
  table = jax.jit(evaluator.build_kl_step(CHAIN))(models[0], models[0], _batch(_every_response(), [1, 2]))
  np.testing.assert_array_equal(table[stats.logp], table[stats.reference_logp])
  np.testing.assert_allclose(table[stats.reverse_kl], 0.0, atol=1e-6)


def test_a_chunk_below_one_is_refused():
  with pytest.raises(ValueError, match='chunk must be at least 1, got 0'):
    evaluator.build_kl_step(CHAIN, chunk=0)
