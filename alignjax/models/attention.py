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


def attend(
  query: Array, key: Array, value: Array, mask: Array | None, *, implementation: str, causal: bool = False
) -> Array:
  """softmax(query key^T / sqrt(H)) value, with the softmax in float32.

  The one place through which a training forward reaches an attention kernel.

  Args:
    query: [B, T, heads, H].
    key: [B, S, K, H]; each key-value head serves heads / K query heads.
    value: [B, S, K, H].
    mask: [B, 1, T, S] bool, True where a query sees a key, or None. Every query must see a key.
    implementation: 'xla' or 'cudnn'.
    causal: query t sees keys 0 .. t only.
  """
  return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation=implementation)


class Attention(nnx.Module):
  """Rotary grouped-query self-attention.

  References:
    Ainslie et al., GQA, https://arxiv.org/abs/2305.13245, section 2.2.
  """

  def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, implementation: str, key: Array):
    keys = jax.random.split(key, 4)
    self.query = layers.Linear(width, heads * head_width, keys[0])
    self.key = layers.Linear(width, kv_heads * head_width, keys[1])
    self.value = layers.Linear(width, kv_heads * head_width, keys[2])
    self.output = layers.Linear(heads * head_width, width, keys[3])
    self.head_width = head_width
    self.implementation = implementation

  def queries(self, x: Array, rotary: tuple[Array, Array]) -> Array:
    """[..., D] to [..., heads, H], turned by position."""
    return layers.rotate(self._heads(self.query(x)), *rotary)

  def keys_values(self, x: Array, rotary: tuple[Array, Array]) -> tuple[Array, Array]:
    """[..., D] to keys, turned by position, and values, both [..., K, H]."""
    return layers.rotate(self._heads(self.key(x)), *rotary), self._heads(self.value(x))

  def _heads(self, x: Array) -> Array:
    return x.reshape(*x.shape[:-1], -1, self.head_width)

  def over_prompt(self, query: Array, key: Array, value: Array) -> Array:
    """Prompt tokens see the prompt up to themselves: [B, P, heads, H] and [B, P, K, H] to [B, P, heads * H].

    Padding needs no mask: it stands after every valid token, and what padding itself computes is never read.
    """
    out = attend(query, key, value, None, implementation=self.implementation, causal=True)
    return out.reshape(*out.shape[:2], -1)

  def over_responses(self, query: Array, key: Array, value: Array, prompt_keys: Array, layout: Layout) -> Array:
    """Each response sees its prompt and itself up to each token, never another response.

    The samples fold into the batch axis, which keeps that axis sharded as it is.

    Args:
      query: [B, N * R, heads, H].
      key: [B, P + N * R, K, H].
      value: the same.
      prompt_keys: [B] int32, the number of prompt keys that count.
      layout: P, N and R.

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
      _response_mask(prompt_keys, layout),
      implementation=self.implementation,
    )
    return out.reshape(batch, samples * response, -1)


def _response_mask(prompt_keys: Array, layout: Layout) -> Array:
  """[B * N, 1, R, P + R] bool: the first `prompt_keys` prompt tokens, and the response up to each of its tokens."""
  prompt, samples, response = layout
  batch = prompt_keys.shape[0]
  of_prompt = jnp.arange(prompt)[None, :] < prompt_keys[:, None]
  of_prompt = jnp.broadcast_to(of_prompt[:, None, None], (batch, samples, response, prompt))
  of_own = jnp.broadcast_to(jnp.tri(response, dtype=bool)[None, None], (batch, samples, response, response))
  mask = jnp.concatenate([of_prompt, of_own], axis=-1)
  return mask.reshape(batch * samples, 1, response, prompt + response)


def attend_cached(
  query: Array,
  prompt: tuple[Array, Array],
  own: tuple[Array, Array],
  seen: tuple[Array, Array],
) -> Array:
  """One decoding step: N queries against the keys of their common prompt, and each against its own response keys.

  One softmax runs over both sets of scores, so that nothing of the prompt is copied per sample. Own keys and values
  belong to a single query, which makes their products sums and not matrix products: written so, they run faster.

  Args:
    query: [B, N, heads, H].
    prompt: keys [B, K, H, P] and values [B, K, P, H] of the prompt.
    own: keys [B, N, K, H, R] and values [B, N, K, R, H] of each response.
    seen: which prompt keys count [B, P] bool, and which response keys count [R] bool; at least one of these does.

  Returns:
    [B, N, heads * H].
  """
  batch, samples, heads, head_width = query.shape
  kv_heads, prompt_size = prompt[1].shape[1:3]
  dtype = query.dtype
  query, prompt, own = jax.tree.map(lambda x: x.astype(jnp.float32), (query, prompt, own))
  query = query.reshape(batch, samples, kv_heads, heads // kv_heads, head_width)
  of_prompt = jnp.einsum('bnkgh,bkhp->bnkgp', query, prompt[0])
  of_own = jnp.sum(query[..., None] * own[0][:, :, :, None], axis=-2)
  lowest = jnp.finfo(jnp.float32).min
  scores = jnp.concatenate(
    [
      jnp.where(seen[0][:, None, None, None], of_prompt, lowest),
      jnp.where(seen[1][None, None, None, None], of_own, lowest),
    ],
    axis=-1,
  )
  weights = jax.nn.softmax(scores * head_width**-0.5)
  out = jnp.einsum('bnkgp,bkph->bnkgh', weights[..., :prompt_size], prompt[1])
  out += jnp.sum(weights[..., prompt_size:, None] * own[1][:, :, :, None], axis=-2)
  return out.astype(dtype).reshape(batch, samples, -1)
