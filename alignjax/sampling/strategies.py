"""Decoding strategies: pure functions from logits to logits, and the draw of a token from them.

A strategy takes float32 logits [..., V] and returns the logits of the distribution to draw from, -inf where a token is
excluded. Strategies compose: `chain(temperature(0.7), nucleus(0.9))` is again a strategy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax import numerics
from alignjax.types import Array

Strategy = Callable[[Array], Array]

_BLOCK = 128  # tokens; divides the vocabularies of most model families


def chain(*strategies: Strategy) -> Strategy:
  """Applies strategies from left to right; without any, the model's own distribution."""

  def apply(logits: Array) -> Array:
    for strategy in strategies:
      logits = strategy(logits)
    return logits

  return apply


def greedy() -> Strategy:
  """Only the most probable token; of equals, the one with the lowest id."""

  def apply(logits: Array) -> Array:
    best = jnp.argmax(logits, axis=-1)[..., None]
    return jnp.where(jax.lax.broadcasted_iota(best.dtype, logits.shape, logits.ndim - 1) == best, logits, -jnp.inf)

  return apply


def temperature(value: float) -> Strategy:
  """softmax(logits / value): below 1 sharper, above 1 flatter, at 1 the model's own distribution.

  Raises:
    ValueError: unless value > 0; the limit at 0 is `greedy()`.
  """
  if not value > 0:
    raise ValueError(f'temperature {value} must be positive: for temperature 0 use greedy()')
  return lambda logits: logits / value


def top_k(k: int) -> Strategy:
  """The k most probable tokens, with all that are as probable as the k-th.

  Raises:
    ValueError: unless k >= 1.
  """
  if k < 1:
    raise ValueError(f'top_k keeps k={k} tokens: k must be at least 1')

  def apply(logits: Array) -> Array:
    if k >= logits.shape[-1]:
      return logits
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)

  return apply


def nucleus(mass: float) -> Strategy:
  """The smallest set of most probable tokens whose probabilities sum to at least `mass`, with all ties of its last one.

  References:
    Holtzman et al., The Curious Case of Neural Text Degeneration, https://arxiv.org/abs/1904.09751, equation 2.

  Raises:
    ValueError: unless 0 < mass <= 1.
  """
  if not 0 < mass <= 1:
    raise ValueError(f'nucleus mass {mass} must be above 0 and at most 1')

  def apply(logits: Array) -> Array:
    ordered = jnp.sort(jax.nn.softmax(logits), axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    size = jnp.sum(before < mass, axis=-1, keepdims=True)
    return logits

  return apply


def draw(logits: Array, uniform: Array) -> tuple[Array, Array]:
  """Draws from softmax(logits) by inverting the cumulative distribution, first over blocks of tokens, then within one.

  A Gumbel draw costs V random numbers and V logarithms a row; this costs two random numbers.

  Args:
    logits: [..., V] float32; -inf excludes a token, at least one is finite.
    uniform: [..., 2] float32 in [0, 1): the first selects the block, the second the token, so that neither draw
      inherits the other's rounding.

  Returns:
    token [...] int32, and its log-probability [...] in nats, under softmax(logits).
  """
  size = logits.shape[-1]
  block = min(_BLOCK, size)
  padding = [(0, 0)] * (logits.ndim - 1) + [(0, -size % block)]
  blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(*logits.shape[:-1], -1, block)
  greatest = jnp.max(logits, axis=-1)
  sums = jnp.sum(jnp.exp(blocks - greatest[..., None, None]), axis=-1)
  which = _invert(sums, uniform[..., 0])
  chosen = jnp.take_along_axis(blocks, which[..., None, None], axis=-2)[..., 0, :]
  within = _invert(jnp.exp(chosen - greatest[..., None]), uniform[..., 1])
  logp = numerics.select(chosen, within) - greatest - jnp.log(jnp.sum(sums, axis=-1))
  return which * block + within, logp


def _invert(weights: Array, uniform: Array) -> Array:
  """The first index whose cumulative weight exceeds uniform * total; one of weight 0 is never taken."""
  cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), -1.0)
  target = uniform * jnp.max(cumulative, axis=-1)
  return jnp.argmax(cumulative > target[..., None], axis=-1).astype(jnp.int32)
