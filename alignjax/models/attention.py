"""Grouped-query attention in which all responses to a prompt share the keys and values of that prompt.

A joint sequence is P prompt tokens followed by N responses of R tokens each, [B, P + N * R, ...]. Every weight product
runs once over all of them; only attention distinguishes the branches.
"""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax.models import layers
from alignjax.types import Array


class Layout(NamedTuple):
  """The layout of a joint sequence: `prompt` tokens, then `samples` responses of `response` tokens each."""

  prompt: int  # P
  samples: int  # N
  response: int  # R


# Number of tokens that a token sees, including itself; None for all. An array if layers with different windows share
# one program.
Window = int | Array | None


class Causal(NamedTuple):
  """Causal attention: query t sees keys t - window + 1 .. t, or keys 0 .. t without a window."""

  window: Window = None  # at least 1


@dataclasses.dataclass(frozen=True)
class Scores:
  """How attention scores are computed: scale query key^T, or cap tanh(scale query key^T / cap) with a soft cap."""

  implementation: str  # 'xla' or 'cudnn'
  scale: float | None = None  # None for 1 / sqrt(H)
  cap: float | None = None  # positive, 'xla' only; None for no cap

  def factor(self, head_width: int) -> float:
    """The scale for heads of this width."""
    return head_width**-0.5 if self.scale is None else self.scale


class Heads(NamedTuple):
  """The sizes of an attention layer."""

  width: int  # D
  queries: int  # query heads
  keys_values: int  # K, key-value heads; divides the number of query heads
  head_width: int  # H


def attend(
  query: Array, key: Array, value: Array, mask: Array | None, scores: Scores, causal: Causal | None = None
) -> Array:
  """softmax(scores) value, with the softmax in float32.

  All attention in a training forward pass goes through this function.

  Args:
    query: queries, [B, T, heads, H].
    key: keys, [B, S, K, H]; each key-value head serves heads / K query heads.
    value: values, [B, S, K, H].
    mask: [B, 1, T, S] bool, True where a query sees a key, or None. Every query must see at least one key.
    scores: the implementation, scale and cap of the scores.
    causal: causal attention, with or without a window, in addition to `mask`; None if only `mask` applies.
  """
  window = None if causal is None else causal.window
  if scores.cap is not None or isinstance(window, jax.Array):
    mask, causal, window = _with_causal(mask, query.shape[1], key.shape[1], causal), None, None
  if scores.cap is not None:
    return _attend_capped(query, key, value, mask, scores)
  left_and_right = None if window is None else (window - 1, 0)
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    mask=mask,
    is_causal=causal is not None,
    local_window_size=left_and_right,
    scale=scores.scale,
    implementation=scores.implementation,
  )


def _with_causal(mask: Array | None, queries: int, keys: int, causal: Causal | None) -> Array | None:
  """Combines `mask` and `causal` into one mask, [B, 1, T, S] bool."""
  if causal is None:
    return mask
  distance = jnp.arange(queries)[:, None] - jnp.arange(keys)[None]
  seen = (distance >= 0) if causal.window is None else (distance >= 0) & (distance < causal.window)
  return seen[None, None] if mask is None else mask & seen[None, None]


def _attend_capped(query: Array, key: Array, value: Array, mask: Array | None, scores: Scores) -> Array:
  """`attend` in plain operations, because attention kernels do not support a cap."""
  batch, length, heads, head_width = query.shape
  kv_heads = key.shape[2]
  grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_width)
  products = jnp.einsum('btkgh,bskh->bkgts', grouped, key, preferred_element_type=jnp.float32)
  capped = scores.cap * jnp.tanh(products * (scores.factor(head_width) / scores.cap))
  if mask is not None:
    capped = jnp.where(mask[:, :, None], capped, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(capped).astype(value.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', weights, value).reshape(query.shape)


class Attention(nnx.Module):
  """Grouped-query self-attention, with rotary positions if the caller passes angles.

  Args:
    heads: the sizes of the layer.
    scores: the implementation, scale and cap of the scores.
    key: PRNG key that initialises the kernels.
    bias: whether the query, key and value projections have a bias.
    output_bias: whether the output projection has a bias.
    norms: norms of queries and keys before rotation, or None. Their width determines whether they normalise each head
      (H) or all heads as one vector (heads * H).

  References:
    Ainslie et al., GQA, https://arxiv.org/abs/2305.13245, section 2.2.
    Jiang et al., Mistral 7B, https://arxiv.org/abs/2310.06825, section 2 (windows).
    Gemma Team, Gemma 2, https://arxiv.org/abs/2408.00118, section 2 (soft caps).
  """

  def __init__(
    self,
    heads: Heads,
    scores: Scores,
    key: Array,
    *,
    bias: bool,
    output_bias: bool,
    norms: tuple[layers.Norm, layers.Norm] | None,
  ):
    keys = jax.random.split(key, 4)
    query_width, kv_width = heads.queries * heads.head_width, heads.keys_values * heads.head_width
    self.query = layers.Linear(heads.width, query_width, keys[0], bias)
    self.key = layers.Linear(heads.width, kv_width, keys[1], bias)
    self.value = layers.Linear(heads.width, kv_width, keys[2], bias)
    self.output = layers.Linear(query_width, heads.width, keys[3], output_bias)
    self.query_norm, self.key_norm = norms or (None, None)
    self.head_width = heads.head_width
    self.scores = scores

  def queries(self, x: Array, rotary: layers.Angles | None) -> Array:
    """[..., D] to queries, [..., heads, H], rotated by position."""
    return self._rotated(self.query(x), self.query_norm, rotary)

  def keys_values(self, x: Array, rotary: layers.Angles | None) -> tuple[Array, Array]:
    """[..., D] to keys, rotated by position, and values, both [..., K, H]."""
    return self._rotated(self.key(x), self.key_norm, rotary), self._heads(self.value(x), self.head_width)

  def _rotated(self, x: Array, norm: layers.Norm | None, rotary: layers.Angles | None) -> Array:
    if norm is not None:
      x = norm(self._heads(x, norm.scale.shape[-1])).reshape(x.shape)
    x = self._heads(x, self.head_width)
    return x if rotary is None else layers.rotate(x, *rotary)

  def _heads(self, x: Array, width: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, width)

  def over_prompt(self, query: Array, key: Array, value: Array, window: Window) -> Array:
    """Causal attention of prompt tokens to their prompt, within the window: [B, P, heads, H] to [B, P, heads * H].

    Padding needs no mask: it follows every valid token, and its outputs are never read.
    """
    out = attend(query, key, value, None, self.scores, Causal(window))
    return out.reshape(*out.shape[:2], -1)

  def over_responses(
    self, query: Array, key: Array, value: Array, prompt_keys: Array, layout: Layout, window: Window
  ) -> Array:
    """Causal attention of each response to its prompt and itself, within the window; responses do not see each other.

    The samples are folded into the batch axis, which preserves the sharding of that axis.

    Args:
      query: queries of the responses, [B, N * R, heads, H].
      key: keys of the joint sequence, [B, P + N * R, K, H].
      value: values of the joint sequence, [B, P + N * R, K, H].
      prompt_keys: number of prompt keys that responses may see, [B] int32.
      layout: P, N and R.
      window: number of tokens that a token sees, including itself.

    Returns:
      [B, N * R, heads * H].
    """
    batch = query.shape[0]
    prompt, samples, response = layout

    def own(x: Array) -> Array:
      return x.reshape(batch * samples, response, *x.shape[2:])

    def with_prompt(x: Array) -> Array:
      shared = jnp.broadcast_to(x[:, None, :prompt], (batch, samples, prompt, *x.shape[2:]))
      return jnp.concatenate([shared.reshape(batch * samples, prompt, *x.shape[2:]), own(x[:, prompt:])], axis=1)

    out = attend(
      own(query),
      with_prompt(key),
      with_prompt(value),
      _response_mask(prompt_keys, layout, window),
      self.scores,
    )
    return out.reshape(batch, samples * response, -1)


def _response_mask(prompt_keys: Array, layout: Layout, window: Window) -> Array:
  """[B * N, 1, R, P + R] bool: the first `prompt_keys` prompt tokens, and the response causally.

  A token sees only keys within its window. Response token t has position `prompt_keys` + t.
  """
  prompt, samples, response = layout
  batch = prompt_keys.shape[0]
  of_prompt = jnp.arange(prompt)[None, :] < prompt_keys[:, None]
  of_prompt = jnp.broadcast_to(of_prompt[:, None, None], (batch, samples, response, prompt))
  of_own = jnp.broadcast_to(jnp.tri(response, dtype=bool)[None, None], (batch, samples, response, response))
  if window is not None:
    position = prompt_keys[:, None] + jnp.arange(response)[None]
    of_prompt &= (position[:, :, None] - jnp.arange(prompt)[None, None] < window)[:, None]
    of_own &= (jnp.arange(response)[:, None] - jnp.arange(response)[None] < window)[None, None]
  mask = jnp.concatenate([of_prompt, of_own], axis=-1)
  return mask.reshape(batch * samples, 1, response, prompt + response)


class LayerCache(NamedTuple):
  """The key-value cache of one layer: the prompt once, and up to R tokens of each of its N responses.

  In keys the token axis comes last and in values next to last, which is the order that decoding steps read them in.
  """

  prompt_key: Array  # [B, K, H, P]
  prompt_value: Array  # [B, K, P, H]
  own_key: Array  # [B, N, K, H, R]
  own_value: Array  # [B, N, K, R, H]

  @classmethod
  def create(cls, key: Array, value: Array, samples: int, response: int) -> 'LayerCache':
    """Stores keys and values of prompts, [B, P, K, H], and allocates `samples` responses of `response` tokens."""
    batch, _, kv_heads, head_width = key.shape
    own = (batch, samples, kv_heads)
    return cls(
      prompt_key=key.transpose(0, 2, 3, 1),
      prompt_value=value.transpose(0, 2, 1, 3),
      own_key=jnp.zeros((*own, head_width, response), key.dtype),
      own_value=jnp.zeros((*own, response, head_width), value.dtype),
    )

  def write(self, index: Array, key: Array, value: Array) -> 'LayerCache':
    """Stores the key and value, [B, N, K, H], of response token `index`."""
    return self._replace(
      own_key=jax.lax.dynamic_update_slice_in_dim(self.own_key, key[..., None], index, axis=4),
      own_value=jax.lax.dynamic_update_slice_in_dim(self.own_value, value[..., None, :], index, axis=3),
    )


class Seen(NamedTuple):
  """Which keys of a `LayerCache` a token sees, including at least one response key."""

  prompt: Array  # [B, P] bool
  own: Array  # [R] bool

  @classmethod
  def at(cls, prompt_keys: Array, index: Array, prompt: int, response: int, window: int | None) -> 'Seen':
    """The keys that response token `index` sees: the first `prompt_keys` prompt tokens, and the response up to itself.

    It sees only keys within its window. The position of the token is `prompt_keys` + index.

    Args:
      prompt_keys: number of visible prompt keys, [B] int32.
      index: index of the token in its response, [] int32.
      prompt: P.
      response: R.
      window: number of tokens that a token sees, including itself; None for all.
    """
    seen = cls(jnp.arange(prompt)[None] < prompt_keys[:, None], jnp.arange(response) <= index)
    if window is None:
      return seen
    position = (prompt_keys + index)[:, None]
    near = cls(position - jnp.arange(prompt)[None] < window, index - jnp.arange(response) < window)
    return cls(seen.prompt & near.prompt, seen.own & near.own)


FEW = 16  # queries of one key, up to which sums run faster than matrix products


def attend_cached(query: Array, cache: LayerCache, seen: Seen, scores: Scores) -> Array:
  """One decoding step: N queries against the keys of their shared prompt, and each against its own response keys.

  One softmax runs over both sets of scores, so the prompt is never copied per sample. A response's own keys and values
  have a single query, and those of a prompt may have few. Their products are then written as sums, which run faster
  than matrix products.

  Args:
    query: queries, [B, N, heads, H].
    cache: keys and values of the layer.
    seen: the keys that the queries see.
    scores: the scale and cap of the scores; `implementation` does not apply to decoding.

  Returns:
    Attention outputs, [B, N, heads * H], computed in float32, which is free at this size.
  """
  dtype = query.dtype
  query, cache = jax.tree.map(lambda x: x.astype(jnp.float32), (query, cache))
  batch, samples, heads, head_width = query.shape
  _, kv_heads, prompt, _ = cache.prompt_value.shape
  query = query.reshape(batch, samples, kv_heads, heads // kv_heads, head_width)
  lowest = jnp.finfo(jnp.float32).min
  scale, cap = scores.factor(head_width), scores.cap

  def capped(products: Array) -> Array:
    return products if cap is None else jnp.tanh(products * (scale / cap)) * (cap / scale)

  few = samples * (heads // kv_heads) <= FEW
  if few:
    of_prompt = jnp.sum(query[..., None] * cache.prompt_key[:, None, :, None], axis=-2)
  else:
    of_prompt = jnp.einsum('bnkgh,bkhp->bnkgp', query, cache.prompt_key)
  of_prompt = capped(of_prompt)
  of_prompt = jnp.where(seen.prompt[:, None, None, None], of_prompt, lowest)
  of_own = capped(jnp.sum(query[..., None] * cache.own_key[:, :, :, None], axis=-2))
  of_own = jnp.where(seen.own[None, None, None, None], of_own, lowest)
  weights = jax.nn.softmax(jnp.concatenate([of_prompt, of_own], axis=-1) * scale)
  if few:
    out = jnp.sum(weights[..., :prompt, None] * cache.prompt_value[:, None, :, None], axis=-2)
  else:
    out = jnp.einsum('bnkgp,bkph->bnkgh', weights[..., :prompt], cache.prompt_value)
  out += jnp.sum(weights[..., prompt:, None] * cache.own_value[:, :, :, None], axis=-2)
  return out.astype(dtype).reshape(batch, samples, -1)
