"""Decoding strategies: pure functions from logits to logits, and drawing a token from the result.

A strategy takes float32 logits [..., V] and returns the logits of the distribution to draw from, with -inf for excluded
tokens. Strategies compose: `chain(temperature(0.7), nucleus(0.9))` is a strategy too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax import expressions, numerics, registry
from alignjax.types import Array

Strategy = Callable[[Array], Array]

STRATEGIES: dict[str, Callable[..., Strategy]] = {}
"""All strategy factories, by their names in expressions; `factory` adds entries."""

_BLOCK = 128  # number of tokens per block; divides the vocabulary size of most model families
_ONE_AS_BITS = 0x3F800000  # the bits of float32 1.0


def factory[**P](build: Callable[P, Strategy]) -> Callable[P, Strategy]:
  """Registers a function that builds a strategy, so that expressions can use its name.

  Raises:
    ValueError: another function is registered under the same name.
  """
  return registry.add(STRATEGIES, build, 'decoding strategies')


def parse(text: str) -> Strategy:
  """Reads a strategy from its expression, such as `'chain(temperature(0.7), nucleus(0.9))'`.

  Raises:
    ExpressionError: the text is not a valid strategy. The message shows the position, the reason and the known names.
  """
  return expressions.parse(text, Callable, 'a decoding strategy', {'decoding strategies': STRATEGIES})


@factory
def chain(*strategies: Strategy) -> Strategy:
  """Applies strategies from left to right. An empty chain samples from the model's own distribution."""

  def apply(logits: Array) -> Array:
    for strategy in strategies:
      logits = strategy(logits)
    return logits

  return apply


@factory
def greedy() -> Strategy:
  """Keeps only the most probable token; ties go to the lowest id."""

  def apply(logits: Array) -> Array:
    # Use two plain reductions: XLA does not vectorise argmax, which takes ten times longer on a CPU.
    token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    greatest = jnp.max(logits, axis=-1, keepdims=True)
    best = jnp.min(jnp.where(logits == greatest, token, logits.shape[-1]), axis=-1, keepdims=True)
    return jnp.where(token == best, logits, -jnp.inf)

  return apply


@factory
def temperature(value: float) -> Strategy:
  """softmax(logits / value): sharper below 1, flatter above 1, and the model's own distribution at 1.

  Raises:
    ValueError: `value` is not positive; the limit at 0 is `greedy()`.
  """
  if not value > 0:
    raise ValueError(f'temperature {value} must be positive; for temperature 0 use greedy()')
  return chain() if value == 1 else lambda logits: logits / value


@factory
def top_k(k: int) -> Strategy:
  """Keeps the k most probable tokens, and all ties with the k-th.

  Raises:
    ValueError: k is below 1.
  """
  if not k >= 1:
    raise ValueError(f'top_k: k={k} must be at least 1')

  def apply(logits: Array) -> Array:
    if k >= logits.shape[-1]:
      return logits
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)

  return apply


@factory
def nucleus(mass: float) -> Strategy:
  """Keeps the fewest most probable tokens whose probabilities sum to at least `mass`, and all ties with the last one.

  That set is {v: p_v >= t} for the greatest threshold t that leaves enough mass. Non-negative floats are ordered like
  their bits, so 30 bisections of the bits find t exactly. Sorting the vocabulary takes far longer.

  References:
    Holtzman et al., The Curious Case of Neural Text Degeneration, https://arxiv.org/abs/1904.09751, equation 2.

  Raises:
    ValueError: `mass` is not in (0, 1].
  """
  if not 0 < mass <= 1:
    raise ValueError(f'nucleus: mass={mass} must be in (0, 1]')

  def apply(logits: Array) -> Array:
    relative = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))  # in [0, 1]
    wanted = mass * jnp.sum(relative, axis=-1)

    def bisect(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
      enough, too_little = bounds
      middle = enough + (too_little - enough) // 2
      threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)[..., None]
      kept = jnp.sum(jnp.where(relative >= threshold, relative, 0.0), axis=-1)
      return jnp.where(kept >= wanted, middle, enough), jnp.where(kept >= wanted, too_little, middle)

    bounds = (jnp.zeros(wanted.shape, jnp.int32), jnp.full(wanted.shape, _ONE_AS_BITS + 1, jnp.int32))
    enough, _ = jax.lax.fori_loop(0, 30, bisect, bounds)
    threshold = jax.lax.bitcast_convert_type(enough, jnp.float32)[..., None]
    return jnp.where(relative >= threshold, logits, -jnp.inf)

  return chain() if mass == 1 else apply


def draw(logits: Array, uniform: Array) -> tuple[Array, Array]:
  """Draws from softmax(logits) by inverting its cumulative distribution, first over blocks of tokens, then within one.

  A Gumbel draw takes V random numbers and 2 V logarithms, which cost more than a small model itself. This takes two
  random numbers.

  Args:
    logits: [..., V] float32; -inf excludes a token, and at least one must be finite.
    uniform: uniform random numbers in [0, 1), [..., 2]. The first selects the block and the second the token in it, so
      that rare tokens keep their probability although a uniform number has only 23 bits.

  Returns:
    The token, [...] int32, and its log-probability under softmax(logits), [...] in nats.
  """
  size = logits.shape[-1]
  block = min(_BLOCK, size)
  padding = [(0, 0)] * (logits.ndim - 1) + [(0, -size % block)]
  blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(*logits.shape[:-1], -1, block)
  greatest = jnp.max(logits, axis=-1)
  masses = jnp.sum(jnp.exp(blocks - greatest[..., None, None]), axis=-1)
  which = _invert(masses, uniform[..., 0])
  within_block = jnp.take_along_axis(blocks, which[..., None, None], axis=-2)[..., 0, :] - greatest[..., None]
  within = _invert(jnp.exp(within_block), uniform[..., 1])
  logp = numerics.select(within_block, within) - jnp.log(jnp.sum(masses, axis=-1))
  return which * block + within, logp


def _invert(weights: Array, uniform: Array) -> Array:
  """The first index whose cumulative weight exceeds uniform * total. Rounding never selects an index of weight 0."""
  cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), -1.0)
  target = uniform * jnp.max(cumulative, axis=-1)
  return jnp.argmax(cumulative > target[..., None], axis=-1).astype(jnp.int32)
