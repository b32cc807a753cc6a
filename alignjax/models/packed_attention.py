"""Attention within packed rows: each block of queries meets the blocks of keys that some of them see, and no others.

  scores(q, k) = scale q k^T, or cap tanh(scale q k^T / cap),   out = softmax(scores) v

over the keys that `PackedRows` lets a query see. The softmax of a query runs over all pairs of its block, in float32.
The backward pass computes the weights again from queries, keys and the logarithm of the softmax's denominator.

References:
  Dao et al., FlashAttention, https://arxiv.org/abs/2205.14135, appendix B.2 (the backward pass).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax.models import attention
from alignjax.types import BLOCK, Array, PackedRows


class Pairs(NamedTuple):
  """The pairs of blocks of packed rows, and what each query of a pair sees."""

  query: Array  # [S, E] int32, the block of the queries; 0 for padding
  key: Array  # [S, E] int32
  seen: Array  # [S, E, BLOCK, BLOCK] bool, whether a query sees a key; False for padding
  distance: Array  # [S, E, BLOCK, BLOCK] int32, positions from a key to a query

  @classmethod
  def of(cls, rows: PackedRows) -> 'Pairs':
    """The pairs of rows."""
    query, key = (jnp.maximum(rows.pairs[..., side], 0) for side in (0, 1))
    shape = (rows.segment.shape[0], -1, BLOCK)
    order = jnp.broadcast_to(jnp.arange(rows.segment.shape[1]), rows.segment.shape)
    columns = [x.reshape(shape) for x in (rows.segment, rows.branch, order, rows.position)]
    segment, branch, order, position = (_pick(x, query)[..., None] for x in columns)
    key_segment, key_branch, key_order, key_position = (_pick(x, key)[:, :, None] for x in columns)
    seen = (segment == key_segment) & (segment >= 0) & (key_order <= order)
    seen &= (key_branch == 0) | (key_branch == branch)
    return cls(query, key, seen & (rows.pairs[..., 0] >= 0)[..., None, None], position - key_position)

  def within(self, window: attention.Window) -> Array:
    """What each query sees of its last `window` tokens, itself included: [S, E, 1, 1, BLOCK, BLOCK] bool."""
    seen = self.seen if window is None else self.seen & (self.distance < window)
    return seen[:, :, None, None]


def attend(
  query: Array, key: Array, value: Array, pairs: Pairs, scores: attention.Scores, window: attention.Window
) -> Array:
  """Attention of every position to those that it sees. Padding gets 0.

  Args:
    query: queries, [S, T, heads, H].
    key: keys, [S, T, K, H]; each key-value head serves heads / K query heads.
    value: values, [S, T, K, H].
    pairs: the pairs of blocks.
    scores: the scale and cap of the scores; `implementation` does not apply.
    window: number of tokens that a token sees, including itself; None for all.

  Returns:
    [S, T, heads * H].
  """
  count, length, heads, head_width = query.shape
  kv_heads = key.shape[2]

  def blocks(x: Array, groups: int) -> Array:
    x = x.reshape(count, length // BLOCK, BLOCK, kv_heads, groups, head_width)
    return x.transpose(0, 1, 3, 4, 2, 5)

  inputs = blocks(query, heads // kv_heads), blocks(key, 1)[:, :, :, 0], blocks(value, 1)[:, :, :, 0]
  places = _Places(pairs.query, pairs.key, pairs.within(window))
  out = _attend(_Scale(scores.factor(head_width), scores.cap), *inputs, places)
  return out.transpose(0, 1, 4, 2, 3, 5).reshape(count, length, heads * head_width)


class _Places(NamedTuple):
  """Where a pair finds its blocks, and what its queries see."""

  query: Array  # [S, E]
  key: Array  # [S, E]
  seen: Array  # [S, E, 1, 1, BLOCK, BLOCK]


class _Scale(NamedTuple):
  """How products become scores."""

  factor: float
  cap: float | None

  def __call__(self, products: Array) -> Array:
    return products * self.factor if self.cap is None else self.cap * jnp.tanh(products * (self.factor / self.cap))

  def slope(self, scores: Array) -> Array | float:
    """The derivative with respect to the products."""
    return self.factor if self.cap is None else self.factor * (1 - jnp.square(scores / self.cap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scale: _Scale, query: Array, key: Array, value: Array, places: _Places) -> Array:
  """`attend` by blocks.

  Args:
    scale: how products become scores.
    query: [S, blocks, K, heads / K, BLOCK, H].
    key: [S, blocks, K, BLOCK, H].
    value: [S, blocks, K, BLOCK, H].
    places: the pairs of blocks.
  """
  return _forward(scale, query, key, value, places)[0]


def _forward(
  scale: _Scale, query: Array, key: Array, value: Array, places: _Places
) -> tuple[Array, tuple[Array | _Places, ...]]:
  """The result, and what the backward pass reads."""
  lowest = jnp.finfo(jnp.float32).min
  scores = _scores(scale, query, key, places)
  start = jnp.full(query.shape[:-1], lowest)
  largest = _scatter(start, places.query, jnp.max(jnp.where(places.seen, scores, lowest), axis=-1), 'max')
  weights = jnp.where(places.seen, jnp.exp(scores - _pick(largest, places.query)[..., None]), 0.0)
  total = _scatter(jnp.zeros_like(start), places.query, jnp.sum(weights, axis=-1), 'add')
  total = jnp.where(total > 0, total, 1.0)  # padding sees nothing
  products = jnp.einsum('sekgqc,sekch->sekgqh', weights.astype(value.dtype), _pick(value, places.key), **_FLOAT32)
  out = _scatter(jnp.zeros(query.shape), places.query, products, 'add') / total[..., None]
  out = out.astype(value.dtype)
  return out, (query, key, value, places, out, largest + jnp.log(total))


def _backward(scale: _Scale, kept: tuple[Array | _Places, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
  query, key, value, places, out, denominator = kept
  scores = _scores(scale, query, key, places)
  weights = jnp.where(places.seen, jnp.exp(scores - _pick(denominator, places.query)[..., None]), 0.0)
  own = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  of_out = _pick(d_out, places.query)
  d_weights = jnp.einsum('sekgqh,sekch->sekgqc', of_out, _pick(value, places.key), **_FLOAT32)
  d_products = weights * (d_weights - _pick(own, places.query)[..., None]) * scale.slope(scores)
  d_products = d_products.astype(query.dtype)
  d_query = jnp.einsum('sekgqc,sekch->sekgqh', d_products, _pick(key, places.key), **_FLOAT32)
  d_key = jnp.einsum('sekgqc,sekgqh->sekch', d_products, _pick(query, places.query), **_FLOAT32)
  d_value = jnp.einsum('sekgqc,sekgqh->sekch', weights.astype(value.dtype), of_out, **_FLOAT32)

  def summed(x: Array, block: Array, d_x: Array) -> Array:
    return _scatter(jnp.zeros(x.shape), block, d_x, 'add').astype(x.dtype)

  return summed(query, places.query, d_query), summed(key, places.key, d_key), summed(value, places.key, d_value), None


_attend.defvjp(_forward, _backward)


def _scores(scale: _Scale, query: Array, key: Array, places: _Places) -> Array:
  """[S, E, K, heads / K, BLOCK, BLOCK] float32."""
  products = jnp.einsum('sekgqh,sekch->sekgqc', _pick(query, places.query), _pick(key, places.key), **_FLOAT32)
  return scale(products)


_FLOAT32 = {'preferred_element_type': jnp.float32}


def _pick(x: Array, index: Array) -> Array:
  """[S, E, ...]: the blocks [S, blocks, ...] with these indices, [S, E]."""
  return jax.vmap(lambda x, index: x[index])(x, index)


def _scatter(x: Array, index: Array, values: Array, how: str) -> Array:
  """Adds values [S, E, ...] to the blocks with these indices, or takes the maximum."""
  return jax.vmap(lambda x, index, values: getattr(x.at[index], how)(values))(x, index, values)
