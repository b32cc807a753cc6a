"""One layer of the decoder: over prompts, over prompts with their responses, over packed rows, and over one token of
each response.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax.models import attention, configuration, layers, packed_attention
from alignjax.types import Array


def norm(config: configuration.TransformerConfig, width: int) -> layers.Norm:
  """Builds the norm that `config` selects, over a last axis of size `width`."""
  if config.norm == 'layer':
    return layers.LayerNorm(width, config.norm_epsilon)
  return layers.RMSNorm(width, config.norm_epsilon, float(config.zero_centred_norms))


def mlp(config: configuration.TransformerConfig, key: Array) -> layers.MLP | layers.Experts:
  """Builds the MLP, or the mixture of MLPs, that `config` selects."""
  if config.experts is None:
    return layers.MLP(
      config.width, config.mlp_width, config.activation, key, gated=config.gated_mlp, bias=config.mlp_bias
    )
  sizes = config.experts, config.width, config.mlp_width
  return layers.Experts(sizes, config.experts_per_token, config.activation, key, normalised=config.normalised_experts)


def _normed(module: layers.Norm | None, x: Array) -> Array:
  return x if module is None else module(x)


class Block(nnx.Module):
  """y = x + attention(norm(x)), then y + mlp(norm(y)) or, with `parallel_residual`, y + mlp(norm(x)).

  With `output_norms`, the outputs of attention and the MLP are normalised before they are added. Without `input_norms`,
  their inputs are not normalised.
  """

  def __init__(self, config: configuration.TransformerConfig, key: Array):
    attention_key, mlp_key = jax.random.split(key)
    heads = config.head_width * (1 if config.qk_norm else config.heads)
    kv_heads = config.head_width * (1 if config.qk_norm else config.kv_heads)
    normed = config.qk_norm or config.joint_qk_norm
    self.attention_norm = norm(config, config.width) if config.input_norms else None
    scale = None if config.score_width is None else config.score_width**-0.5
    scale = scale if config.score_multiplier is None else config.score_multiplier
    self.attention = attention.Attention(
      attention.Heads(config.width, config.heads, config.kv_heads, config.head_width),
      attention.Scores(config.attention, scale, config.score_cap),
      attention_key,
      bias=config.qkv_bias,
      output_bias=config.output_bias,
      norms=(norm(config, heads), norm(config, kv_heads)) if normed else None,
    )
    self.mlp_norm = norm(config, config.width) if config.input_norms else None
    self.mlp = mlp(config, mlp_key)
    self.attention_output_norm = norm(config, config.width) if config.output_norms else None
    self.mlp_output_norm = norm(config, config.width) if config.output_norms else None
    self.parallel = config.parallel_residual
    self.added = config.residual_multiplier

  def finish(self, x: Array, attended: Array) -> Array:
    """The output projection of attention, the MLP and both residual additions."""
    y = x + self._scaled(_normed(self.attention_output_norm, self.attention.output(attended)))
    read = x if self.parallel else y
    return y + self._scaled(_normed(self.mlp_output_norm, self.mlp(_normed(self.mlp_norm, read))))

  def _scaled(self, x: Array) -> Array:
    return x if self.added == 1 else x * jnp.asarray(self.added, x.dtype)

  def prompts(
    self, x: Array, rotary: layers.Angles | None, window: attention.Window
  ) -> tuple[Array, tuple[Array, Array]]:
    """Runs the layer over prompts, [B, P, D]; also returns their keys and values, [B, P, K, H]."""
    normed = _normed(self.attention_norm, x)
    query = self.attention.queries(normed, rotary)
    key, value = self.attention.keys_values(normed, rotary)
    return self.finish(x, self.attention.over_prompt(query, key, value, window)), (key, value)

  def joint(
    self,
    x: Array,
    rotary: layers.Angles | None,
    prompt_keys: Array,
    layout: attention.Layout,
    window: attention.Window,
    last: bool,
  ) -> Array:
    """Runs the layer over joint sequences, [B, P + N * R, D]. The last layer returns only responses, [B, N * R, D]."""
    prompt = layout.prompt
    normed = _normed(self.attention_norm, x)
    key, value = self.attention.keys_values(normed, rotary)
    if last:
      x, normed, rotary = jax.tree.map(lambda y: y[:, prompt:], (x, normed, rotary))
    query = self.attention.queries(normed, rotary)
    of_responses = query if last else query[:, prompt:]
    attended = self.attention.over_responses(of_responses, key, value, prompt_keys, layout, window)
    if not last:
      of_prompt = self.attention.over_prompt(query[:, :prompt], key[:, :prompt], value[:, :prompt], window)
      attended = jnp.concatenate([of_prompt, attended], axis=1)
    return self.finish(x, attended)

  def packed(
    self,
    x: Array,
    rotary: layers.Angles | None,
    pairs: packed_attention.Pairs,
    window: attention.Window,
    read: Array | None = None,
  ) -> Array:
    """Runs the layer over packed rows, [S, T, D]. The last layer returns only the positions `read`, [S, W]."""
    normed = _normed(self.attention_norm, x)
    query = self.attention.queries(normed, rotary)
    key, value = self.attention.keys_values(normed, rotary)
    attended = packed_attention.attend(query, key, value, pairs, self.attention.scores, window)
    if read is not None:
      x, attended = (jnp.take_along_axis(y, read[..., None], axis=1) for y in (x, attended))
    return self.finish(x, attended)

  def step(
    self, x: Array, rotary: layers.Angles | None, cache: attention.LayerCache, index: Array, seen: attention.Seen
  ) -> tuple[Array, attention.LayerCache]:
    """Runs the layer over response token `index` of each sample, [B, N, D], and updates the cache."""
    normed = _normed(self.attention_norm, x)
    query = self.attention.queries(normed, rotary)
    cache = cache.write(index, *self.attention.keys_values(normed, rotary))
    attended = attention.attend_cached(query, cache, seen, self.attention.scores)
    return self.finish(x, attended), cache
