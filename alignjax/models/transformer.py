"""A configurable Llama-style decoder, exposed as pure functions over a nested dict of arrays.

The network is written in flax.nnx as a plain tree: no shared references, no mutation, no state. `build` splits it once,
so optimizers, checkpoints and sharding rules see an ordinary dict with the layers stacked on a leading axis:

  embed/embedding [V, D]                              final_norm/scale [D]
  layers/{attention_norm,mlp_norm}/scale [L, D]       unembed/kernel [D, V], unless embeddings are tied
  layers/attention/{query,key,value}/kernel [L, D, heads * H]
  layers/attention/output/kernel [L, heads * H, D]
  layers/attention/{query,key,value}/bias [L, heads * H], with qkv_bias; output/bias [L, D], with output_bias
  layers/attention/{query_norm,key_norm}/scale [L, H], with qk_norm; [L, heads * H], with joint_qk_norm
  layers/{attention_output_norm,mlp_output_norm}/scale [L, D], with output_norms
  layers/mlp/{gate,up}/kernel [L, D, F]; gate with gated_mlp
  layers/mlp/down/kernel [L, F, D]
  layers/mlp/{gate,up,down}/bias [L, F or D], with mlp_bias
  layers/mlp/{gate,up} [L, E, D, F], layers/mlp/down [L, E, F, D] and layers/mlp/router [L, D, E], with experts
  positions/embedding [positions, D], without rope_theta
  score/kernel [D, 1], with output='score' or 'both'; there is no unembed/kernel with output='score'
  a bias next to the scale of every norm, with norm='layer'

Parameters are float32. Products run in `compute_dtype`; norms, rotary angles and softmax run in float32.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax.models import attention, base, block, configuration, layers, packed_attention, unrolled
from alignjax.types import Array, Head, PackedRows, Params

TransformerConfig = configuration.TransformerConfig
Constrain = base.Constrain


def _of_one_kernel(primitive: Any, *args: Any, **params: Any) -> bool:
  """Whether an operation is the product with one matrix. The products with all experts are too large to keep."""
  if not jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params):
    return False
  _, contracted = params['dimension_numbers'][0]
  return args[1].ndim - len(contracted) == 1


_REMAT = {
  'none': lambda apply, **_: apply,
  'dots': lambda apply, **options: jax.checkpoint(apply, policy=_of_one_kernel, **options),
  'full': jax.checkpoint,
}


class Kind(NamedTuple):
  """How layers differ apart from their weights; fields that differ are arrays if layers share one program."""

  window: attention.Window
  windowed: bool | Array  # whether the layer has a window
  rotated: bool | Array  # whether the layer has rotary positions

  @classmethod
  def all(cls, config: TransformerConfig) -> list['Kind']:
    """The kinds of all layers."""
    pairs = zip(config.windows, config.rotated, strict=True)
    return [cls(window, window is not None, rotated) for window, rotated in pairs]


class Rotary(NamedTuple):
  """The rotary angles of a forward pass."""

  full: layers.Angles | None  # None: no rotation
  local: layers.Angles | None  # angles of layers with a window; None: same as `full`

  def of(self, kind: Kind) -> layers.Angles | None:
    """The angles of one layer."""
    angles = self._with_window(kind.windowed)
    if angles is None or isinstance(kind.rotated, bool):
      return angles if kind.rotated else None
    cosine, sine = angles
    return jnp.where(kind.rotated, cosine, 1.0), jnp.where(kind.rotated, sine, 0.0)

  def _with_window(self, windowed: bool | Array) -> layers.Angles | None:
    if self.local is None:
      return self.full
    if isinstance(windowed, bool):
      return self.local if windowed else self.full
    return jax.tree.map(lambda local, full: jnp.where(windowed, local, full), self.local, self.full)


class Embedding(nnx.Module):
  """A table with one row for each token id."""

  def __init__(self, vocab_size: int, width: int, key: Array):
    self.embedding = nnx.Param(jax.random.normal(key, (vocab_size, width)) * width**-0.5)

  def __call__(self, token: Array, constrain: Constrain) -> Array:
    # The table stays where it is, split by width. Each device looks up its columns for all tokens of its replica, and
    # one all-to-all turns columns of all tokens into all columns of its own. The gradient takes the same way back, so
    # no device ever holds a table, or a gradient, of V x D.
    axes = (None,) * (token.ndim - 1)
    columns = constrain(self.embedding[...], ('vocab', 'width'))[constrain(token, ('replica', *axes))]
    columns = constrain(columns.astype(jnp.float32), ('replica', *axes, 'width'))
    return constrain(columns, ('batch', *axes, None))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """The decoding state that `prefill` creates and `decode` updates."""

  layers: Sequence[attention.LayerCache]
  prompt_length: Array  # [B] int32
  index: Array  # [] int32, number of tokens decoded so far


class Decoder(nnx.Module):
  """Embedding, L blocks stacked on the leading axis of their parameters, and a final norm."""

  def __init__(self, config: TransformerConfig, constrain: Constrain, key: Array):
    embed_key, layers_key, unembed_key = jax.random.split(key, 3)
    self.config = config
    self.constrain = constrain
    self.embed = Embedding(config.vocab_size, config.width, embed_key)
    if config.rope_theta is None:
      self.positions = Embedding(config.max_positions, config.width, jax.random.fold_in(key, 0))
    self.layers = jax.vmap(lambda key: block.Block(config, key))(jax.random.split(layers_key, config.layers))
    self.final_norm = block.norm(config, config.width)
    if config.unembedded:
      self.unembed = layers.Linear(config.width, config.vocab_size, unembed_key)
    if config.scored:
      self.score = layers.Score(config.width, jax.random.fold_in(key, 1))

  def hidden(self, prompt: Array, prompt_length: Array, response: Array, response_length: Array) -> Array:
    """See `base.LanguageModel.hidden`. Attention is causal, so right padding needs no `response_length`."""
    del response_length
    layout = attention.Layout(prompt.shape[1], *response.shape[1:])
    self._check_positions(layout.prompt, layout.response)
    last_token = jnp.take_along_axis(prompt, prompt_length[:, None] - 1, axis=1)
    first = jnp.broadcast_to(last_token[:, None], (*response.shape[:2], 1))
    inputs = jnp.concatenate([first, response[:, :, :-1]], axis=2)
    tokens = jnp.concatenate([prompt, inputs.reshape(prompt.shape[0], -1)], axis=1)
    position = _joint_positions(prompt_length, layout)
    rotary = self._rotary(position, layout.prompt + layout.response)
    prompt_keys = prompt_length - 1
    x = self._embed(tokens, position)

    def apply(layer: block.Block, x: Array, kind: Kind, last: bool) -> Array:
      layer = self.constrain(layer, None)
      out = layer.joint(x, rotary.of(kind), prompt_keys, layout, kind.window, last)
      return self.constrain(out, ('batch', None, None))

    remat = _REMAT[self.config.remat]
    if self.config.scan_layers:
      # All layers share one body, so the last layer computes an unused prompt branch. That wastes 1 / L of the prompt
      # computation, which is cheaper than slicing off the last layer: that would copy the stacked weights.
      body = remat(lambda layer, x, kind: apply(layer, x, self._kind(kind), False), prevent_cse=False)
      x, _ = jax.lax.scan(lambda x, scanned: (body(scanned[0], x, scanned[1]), None), x, (self.layers, self._kinds()))
      x = x[:, layout.prompt :]
    else:
      unstacked = unrolled.unstack(self.layers)
      for i, (layer, kind) in enumerate(zip(unstacked, Kind.all(self.config), strict=True)):
        last = i == self.config.layers - 1
        x = remat(lambda layer, x, kind=kind, last=last: apply(layer, x, kind, last))(layer, x)
    return self.final_norm(x).reshape(*response.shape, -1)

  def packed(self, rows: PackedRows, read: Array) -> Array:
    """See `base.LanguageModel.packed`."""
    final = int(rows.final is not None)
    self._check_positions(rows.longest, final)
    rotary = self._rotary(rows.position, rows.longest + final)
    pairs = packed_attention.Pairs.of(rows)
    x = self._embed(rows.tokens, rows.position)

    def apply(layer: block.Block, x: Array, kind: Kind, read: Array | None) -> Array:
      layer = self.constrain(layer, None)
      return self.constrain(layer.packed(x, rotary.of(kind), pairs, kind.window, read), ('batch', None, None))

    remat = _REMAT[self.config.remat]
    if self.config.scan_layers:
      body = remat(lambda layer, x, kind: apply(layer, x, self._kind(kind), None), prevent_cse=False)
      x, _ = jax.lax.scan(lambda x, scanned: (body(scanned[0], x, scanned[1]), None), x, (self.layers, self._kinds()))
      x = jnp.take_along_axis(x, read[..., None], axis=1)
    else:
      unstacked = unrolled.unstack(self.layers)
      reads = [None] * (self.config.layers - 1) + [read]
      for layer, kind, read in zip(unstacked, Kind.all(self.config), reads, strict=True):
        x = remat(lambda layer, x, kind=kind, read=read: apply(layer, x, kind, read))(layer, x)
    return self.final_norm(x)

  def prefill(
    self, blocks: Sequence[block.Block], prompt: Array, prompt_length: Array, samples: int, max_new_tokens: int
  ) -> Cache:
    """See `base.LanguageModel.prefill`. The blocks take the place of the stacked ones, here and in `decode`."""
    self._check_positions(prompt.shape[1], max_new_tokens)
    position = jnp.broadcast_to(jnp.arange(prompt.shape[1]), prompt.shape)
    rotary = self._rotary(position, prompt.shape[1] + max_new_tokens)
    x, caches = self._embed(prompt, position), []
    for layer, kind in zip(blocks, Kind.all(self.config), strict=True):
      x, keys_values = layer.prompts(x, rotary.of(kind), kind.window)
      x = self.constrain(x, ('batch', None, None))
      caches.append(attention.LayerCache.create(*keys_values, samples, max_new_tokens))
    return Cache(caches, jnp.asarray(prompt_length), jnp.zeros((), jnp.int32))

  def decode(self, blocks: Sequence[block.Block], cache: Cache, token: Array) -> tuple[Cache, Array]:
    """See `base.LanguageModel.decode`. Layers are unrolled, because scanning them halves decoding speed on a CPU."""
    _, _, prompt, _ = cache.layers[0].prompt_value.shape
    _, _, _, response, _ = cache.layers[0].own_value.shape
    prompt_keys = cache.prompt_length - 1
    windows = set(self.config.windows)
    seen = {window: attention.Seen.at(prompt_keys, cache.index, prompt, response, window) for window in windows}
    position = (prompt_keys + cache.index)[:, None]
    rotary = self._rotary(position, prompt + response)
    x, updated = self._embed(token, position), []
    for layer, kept, kind in zip(blocks, cache.layers, Kind.all(self.config), strict=True):
      x, kept = layer.step(x, rotary.of(kind), kept, cache.index, seen[kind.window])
      x = self.constrain(x, ('batch', None, None))
      updated.append(kept)
    return dataclasses.replace(cache, layers=updated, index=cache.index + 1), self.final_norm(x)

  def head(self) -> Head:
    """The head: the transposed embedding if embeddings are tied, otherwise the kernel of `unembed`; and the score."""
    score = self.score.kernel[...] if self.config.scored else None
    if self.config.output == 'score':
      return Head(None, score=score)
    kernel = self.embed.embedding[...].T if self.config.tied_embeddings else self.unembed.kernel[...]
    if self.config.logit_divisor != 1:
      kernel = kernel / self.config.logit_divisor
    return Head(kernel, soft_cap=self.config.logit_cap, score=score)

  def _kinds(self) -> Kind:
    """The kinds of all layers as arrays [L], to scan over; fields that are the same in all layers are None."""
    windows, rotated = self.config.windows, self.config.rotated
    differ = len(set(windows)) > 1
    largest = self.config.max_positions
    return Kind(
      jnp.asarray([largest if window is None else window for window in windows]) if differ else None,
      jnp.asarray([window is not None for window in windows]) if differ else None,
      jnp.asarray(rotated) if len(set(rotated)) > 1 else None,
    )

  def _kind(self, scanned: Kind) -> Kind:
    """The kind of one layer, given its entries of `_kinds`."""
    first = Kind.all(self.config)[0]
    return Kind(*(same if own is None else own for same, own in zip(first, scanned, strict=True)))

  def _embed(self, token: Array, position: Array) -> Array:
    config = self.config
    x = self.embed(token, self.constrain)
    if config.rope_theta is None:
      x += self.positions.embedding[...][position].astype(jnp.float32)
    x = x.astype(config.compute_dtype)
    if config.scaled_embeddings:
      x *= jnp.asarray(config.width**0.5, x.dtype)
    if config.embedding_multiplier != 1:
      x *= jnp.asarray(config.embedding_multiplier, x.dtype)
    return x

  def _rotary(self, position: Array, length: int) -> Rotary:
    """The angles of these positions, in sequences of up to `length` tokens."""
    config, scaling = self.config, self.config.rope_scaling
    if config.rope_theta is None:
      return Rotary(None, None)
    if isinstance(scaling, layers.LongRopeScaling):
      scaling = scaling.at(length)
    full = layers.rotary_angles(position, config.rotary_width, config.rope_theta, scaling)
    if config.local_rope_theta is None:
      return Rotary(full, None)
    return Rotary(full, layers.rotary_angles(position, config.rotary_width, config.local_rope_theta))

  def _check_positions(self, prompt: int, response: int):
    if prompt + response - 1 > self.config.max_positions:
      raise ValueError(
        f'prompts of {prompt} tokens and responses of {response} tokens exceed '
        f'max_positions={self.config.max_positions}: shorten one of them'
      )


def _joint_positions(prompt_length: Array, layout: attention.Layout) -> Array:
  """[B, P + N * R] positions. A response starts at the position of the last prompt token, which is its first input."""
  batch = prompt_length.shape[0]
  of_prompt = jnp.broadcast_to(jnp.arange(layout.prompt), (batch, layout.prompt))
  of_response = prompt_length[:, None] - 1 + jnp.arange(layout.response)[None]
  return jnp.concatenate([of_prompt, jnp.tile(of_response, (1, layout.samples))], axis=1)


def build(config: TransformerConfig, constrain: Constrain = lambda x, _: x) -> base.LanguageModel:
  """Builds a decoder as pure functions.

  Args:
    config: the shape and settings of the decoder.
    constrain: constrains the sharding of activations: (array, a logical axis name or None for each dimension) -> array.
      It is called with ('batch', None, None) on embeddings and on the output of each block, with ('vocab', 'width') on
      the embedding table, with ('replica', ..., 'width') on the columns that a device looks up in it, and with None on
      the parameters of each layer.
  """

  def create(key: Array) -> Decoder:
    return Decoder(config, constrain, key)

  def without_layers(key: Array) -> Decoder:
    decoder = create(key)
    del decoder.layers
    return decoder

  structure, trunk, layer = (
    nnx.split(nnx.eval_shape(make, jax.random.key(0)))[0]
    for make in (create, without_layers, functools.partial(block.Block, config))
  )

  def bind(params: Params) -> Decoder:
    return nnx.merge(structure, params)

  def unroll(params: Params) -> tuple[Decoder, list[block.Block]]:
    """The decoder without its layers, and the layers, with weights that are laid out for decoding."""
    others = dict(unrolled.lay_out(params, config.compute_dtype))
    layers = others.pop(unrolled.LAYERS)
    return nnx.merge(trunk, others), [nnx.merge(layer, layers[i]) for i in range(config.layers)]

  def prefill(params: Params, *args: Any, **options: Any) -> Cache:
    decoder, blocks = unroll(params)
    return decoder.prefill(blocks, *args, **options)

  def decode(params: Params, cache: Cache, token: Array) -> tuple[Cache, Array]:
    decoder, blocks = unroll(params)
    return decoder.decode(blocks, cache, token)

  return base.LanguageModel(
    config=config,
    init=lambda key: nnx.to_pure_dict(nnx.split(create(key))[1]),
    hidden=lambda params, *args: bind(params).hidden(*args),
    packed=lambda params, *args: bind(params).packed(*args),
    head=lambda params: (unroll(params)[0] if unrolled.is_laid_out(params) else bind(params)).head(),
    lay_out=lambda params: unrolled.lay_out(params, config.compute_dtype),
    prefill=prefill,
    decode=decode,
    constrained=lambda other: build(config, other),
  )
