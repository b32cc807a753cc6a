"""Grouped-query attention in which all responses to a prompt share the keys and values of that prompt.

A joint sequence holds P prompt tokens followed by N responses of R tokens each, [B, P + N * R, ...]: every weight
product runs once over all of them, and only attention tells the branches apart.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax.models import layers
from alignjax.types import Array


class Layout(NamedTuple):
  """How the axis of a joint sequence divides: `prompt` tokens, then `samples` responses of `response` tokens."""

  prompt: int  # P
  samples: int  # N
  response: int  # R


# Tokens that a token sees, itself included; None: all. An array where layers that share a program differ in it.
Window = int | Array | None


def attend(
  query: Array,
  key: Array,
  value: Array,
  mask: Array | None,
  *,
  implementation: str,
  causal: bool = False,
  window: Window = None,
  scale: float | None = None,
  cap: float | None = None,
) -> Array:
  """softmax(scale query key^T) value, with the softmax in float32.

  The one place through which a training forward reaches an attention kernel.

  Args:
    query: [B, T, heads, H].
    key: [B, S, K, H]; each key-value head serves heads / K query heads.
    value: [B, S, K, H].
    mask: [B, 1, T, S] bool, True where a query sees a key, or None. Every query must see a key.
    implementation: 'xla' or 'cudnn'.
    causal: query t sees keys 0 .. t only.
    window: with `causal`, query t sees keys t - window + 1 .. t only; at least 1, or None.
    scale: of scores, or None for 1 / sqrt(H).
    cap: c > 0 for scores c tanh(scale query key^T / c), with 'xla' alone, or None.
  """
  if cap is not None or isinstance(window, jax.Array):
    mask, causal, window = _with_causal(mask, query.shape[1], key.shape[1], causal, window), False, None
  if cap is not None:
    return _attend_capped(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale, cap)
  left_and_right = None if window is None else (window - 1, 0)
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    mask=mask,
    is_causal=causal,
    local_window_size=left_and_right,
    scale=scale,
    implementation=implementation,
  )


def _with_causal(mask: Array | None, queries: int, keys: int, causal: bool, window: Window) -> Array | None:
  """[B, 1, T, S] bool: a mask that also says what `causal` and `window` would."""
  if not causal:
    return mask
  distance = jnp.arange(queries)[:, None] - jnp.arange(keys)[None]
  seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
  return seen[None, None] if mask is None else mask & seen[None, None]


def _attend_capped(query: Array, key: Array, value: Array, mask: Array | None, scale: float, cap: float) -> Array:
  """`attend` in plain operations, since kernels have no cap."""
  batch, length, heads, head_width = query.shape
  kv_heads = key.shape[2]
  grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_width)
  scores = jnp.einsum('btkgh,bskh->bkgts', grouped, key, preferred_element_type=jnp.float32)
  scores = cap * jnp.tanh(scores * (scale / cap))
  if mask is not None:
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores).astype(value.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', weights, value).reshape(query.shape)


class Attention(nnx.Module):
  """Grouped-query self-attention, rotary where there are angles to turn by.

  Args:
    width: D.
    heads: of queries.
    kv_heads: K, divides heads.
    head_width: H.
    implementation: 'xla' or 'cudnn'.
    key: to draw kernels with.
    bias: of the query, key and value projections.
    output_bias: of the projection that ends it.
    norms: of queries and keys before they are turned: of each head, or of all of them as one vector, as their width
      says. None for no such norms.
    scale: of scores, or None for 1 / sqrt(H).
    cap: soft cap of scores, or None.

  References:
    Ainslie et al., GQA, https://arxiv.org/abs/2305.13245, section 2.2.
    Jiang et al., Mistral 7B, https://arxiv.org/abs/2310.06825, section 2 (windows).
    Gemma Team, Gemma 2, https://arxiv.org/abs/2408.00118, section 2 (soft caps).
  """

  def __init__(
    self,
    width: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    implementation: str,
    key: Array,
    *,
    bias: bool,
    output_bias: bool,
    norms: tuple[layers.Norm, layers.Norm] | None,
    scale: float | None = None,
    cap: float | None = None,
  ):
    keys = jax.random.split(key, 4)
    self.query = layers.Linear(width, heads * head_width, keys[0], bias)
    self.key = layers.Linear(width, kv_heads * head_width, keys[1], bias)
    self.value = layers.Linear(width, kv_heads * head_width, keys[2], bias)
    self.output = layers.Linear(heads * head_width, width, keys[3], output_bias)
    self.query_norm, self.key_norm = norms or (None, None)
    self.head_width = head_width
    self.implementation = implementation
    self.scale = scale
    self.cap = cap

  def queries(self, x: Array, rotary: layers.Angles | None) -> Array:
    """[..., D] to [..., heads, H], turned by position."""
    return self._turned(self.query(x), self.query_norm, rotary)

  def keys_values(self, x: Array, rotary: layers.Angles | None) -> tuple[Array, Array]:
    """[..., D] to keys, turned by position, and values, both [..., K, H]."""
    return self._turned(self.key(x), self.key_norm, rotary), self._heads(self.value(x), self.head_width)

  def _turned(self, x: Array, norm: layers.Norm | None, rotary: layers.Angles | None) -> Array:
    if norm is not None:
      x = norm(self._heads(x, norm.scale.shape[-1])).reshape(x.shape)
    x = self._heads(x, self.head_width)
    return x if rotary is None else layers.rotate(x, *rotary)

  def _heads(self, x: Array, width: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, width)

  def over_prompt(self, query: Array, key: Array, value: Array, window: Window) -> Array:
    """Prompt tokens see the prompt in the window up to themselves: [B, P, heads, H] to [B, P, heads * H].

    Padding needs no mask: it stands after every valid token, and what padding itself computes is never read.
    """
    out = attend(
      query,
      key,
      value,
      None,
      implementation=self.implementation,
      causal=True,
      window=window,
      scale=self.scale,
      cap=self.cap,
    )
    return out.reshape(*out.shape[:2], -1)

  def over_responses(
    self, query: Array, key: Array, value: Array, prompt_keys: Array, layout: Layout, window: Window
  ) -> Array:
    """Each response sees its prompt and itself up to each token, in the window, never another response.

    The samples fold into the batch axis, which keeps that axis sharded as it is.

    Args:
      query: [B, N * R, heads, H].
      key: [B, P + N * R, K, H].
      value: the same.
      prompt_keys: [B] int32, the number of prompt keys that count.
      layout: P, N and R.
      window: tokens that a token sees.

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
      implementation=self.implementation,
      scale=self.scale,
      cap=self.cap,
    )
    return out.reshape(batch, samples * response, -1)


def _response_mask(prompt_keys: Array, layout: Layout, window: Window) -> Array:
  """[B * N, 1, R, P + R] bool: the first `prompt_keys` prompt tokens, and the response up to each of its tokens.

  Of those, a token sees the ones in the window. Response token t stands at position `prompt_keys` + t.
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
  """What decoding keeps of one layer: the prompt once, and each of its N responses up to R tokens.

  Keys lie with tokens last and values with tokens next to last, which is how the products of a decoding step read them.
  """

  prompt_key: Array  # [B, K, H, P]
  prompt_value: Array  # [B, K, P, H]
  own_key: Array  # [B, N, K, H, R]
  own_value: Array  # [B, N, K, R, H]

  @classmethod
  def create(cls, key: Array, value: Array, samples: int, response: int) -> 'LayerCache':
    """Holds keys and values of prompts, [B, P, K, H], and room for `samples` responses of `response` tokens."""
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
  """Which keys of a `LayerCache` count. Of the response keys, at least one must."""

  prompt: Array  # [B, P] bool
  own: Array  # [R] bool

  @classmethod
  def at(cls, prompt_keys: Array, index: Array, prompt: int, response: int, window: int | None) -> 'Seen':
    """What response token `index` sees: the first `prompt_keys` prompt tokens, and the response up to itself.

    Of those, the ones in the window. The token stands at position `prompt_keys` + index.

    Args:
      prompt_keys: [B] int32.
      index: [] int32.
      prompt: P.
      response: R.
      window: tokens, the token itself included, or None.
    """
    seen = cls(jnp.arange(prompt)[None] < prompt_keys[:, None], jnp.arange(response) <= index)
    if window is None:
      return seen
    position = (prompt_keys + index)[:, None]
    near = cls(position - jnp.arange(prompt)[None] < window, index - jnp.arange(response) < window)
    return cls(seen.prompt & near.prompt, seen.own & near.own)


def attend_cached(
  query: Array, cache: LayerCache, seen: Seen, scale: float | None = None, cap: float | None = None
) -> Array:
  """One decoding step: N queries against the keys of their common prompt, and each against its own response keys.

  One softmax runs over both sets of scores, so that nothing of the prompt is copied per sample. Own keys and values
  belong to a single query, which makes their products sums and not matrix products: written so, they run faster.

  Args:
    query: [B, N, heads, H].
    cache: keys and values.
    seen: which of them count.
    scale: of scores, or None for 1 / sqrt(H).
    cap: soft cap of scores, or None.

  Returns:
    [B, N, heads * H]; computed in float32, which at this size costs nothing.
  """
  dtype = query.dtype
  query, cache = jax.tree.map(lambda x: x.astype(jnp.float32), (query, cache))
  batch, samples, heads, head_width = query.shape
  _, kv_heads, prompt, _ = cache.prompt_value.shape
  query = query.reshape(batch, samples, kv_heads, heads // kv_heads, head_width)
  lowest = jnp.finfo(jnp.float32).min
  scale = head_width**-0.5 if scale is None else scale

  def capped(scores: Array) -> Array:
    return scores if cap is None else jnp.tanh(scores * (scale / cap)) * (cap / scale)

  of_prompt = capped(jnp.einsum('bnkgh,bkhp->bnkgp', query, cache.prompt_key))
  of_prompt = jnp.where(seen.prompt[:, None, None, None], of_prompt, lowest)
  of_own = capped(jnp.sum(query[..., None] * cache.own_key[:, :, :, None], axis=-2))
  of_own = jnp.where(seen.own[None, None, None, None], of_own, lowest)
  weights = jax.nn.softmax(jnp.concatenate([of_prompt, of_own], axis=-1) * scale)
  out = jnp.einsum('bnkgp,bkph->bnkgh', weights[..., :prompt], cache.prompt_value)
  out += jnp.sum(weights[..., prompt:, None] * cache.own_value[:, :, :, None], axis=-2)
  return out.astype(dtype).reshape(batch, samples, -1)
