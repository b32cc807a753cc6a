"""One configurable decoder of the Llama type, handed out as pure functions over a nested dict of arrays.

The network is written in flax.nnx, in tree style: no shared references, no mutation, no state. `build` splits it once;
afterwards optimizers, checkpoints and sharding rules see an ordinary dict, with the layers stacked on a leading axis:

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
  positions/embedding [positions, D], without rope_theta
  a bias beside the scale of every norm, with norm='layer'

Parameters are float32; products run in `compute_dtype`; norms, rotary angles and softmax in float32.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax.models import attention, base, configuration, layers
from alignjax.models import block as block_lib
from alignjax.types import Array, Head, Params

TransformerConfig = configuration.TransformerConfig
Constrain = Callable[[Array, tuple[str | None, ...]], Array]

_REMAT = {
  'none': lambda apply, **_: apply,
  'dots': lambda apply, **options: jax.checkpoint(
    apply, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, **options
  ),
  'full': jax.checkpoint,
}


class Kind(NamedTuple):
  """In what layers differ besides their weights; arrays where they share a program."""

  window: attention.Window
  windowed: bool | Array  # whether there is a window

  @classmethod
  def of(cls, window: int | None) -> 'Kind':
    """The kind of a layer with this window."""
    return cls(window, window is not None)


class Rotary(NamedTuple):
  """Angles of the positions of a forward pass."""

  full: layers.Angles | None  # None: nothing is turned
  local: layers.Angles | None  # of layers with a window, where theirs are others

  def of(self, windowed: bool | Array) -> layers.Angles | None:
    """Those of a layer with or without a window."""
    if self.local is None:
      return self.full
    if isinstance(windowed, bool):
      return self.local if windowed else self.full
    return jax.tree.map(lambda local, full: jnp.where(windowed, local, full), self.local, self.full)


class Embedding(nnx.Module):
  """One row of `embedding` for each token id."""

  def __init__(self, vocab_size: int, width: int, key: Array):
    self.embedding = nnx.Param(jax.random.normal(key, (vocab_size, width)) * width**-0.5)

  def __call__(self, token: Array, constrain: Constrain) -> Array:
    # The table is gathered whole in width before rows are taken. Otherwise its gradient, a scatter into rows that are
    # split by width, would have the compiler gather the activations of all devices instead.
    return constrain(self.embedding[...], ('vocab', None))[token]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """What `prefill` hands to `decode`.

  The weights are those of `prefill`, sliced by layer and cast once: XLA would not move that out of a sampling loop.
  """

  weights: Sequence[Params]  # of each layer, in the compute dtype
  layers: Sequence[attention.LayerCache]
  prompt_length: Array  # [B] int32
  index: Array  # [] int32, tokens decoded so far


class Decoder(nnx.Module):
  """Embedding, L blocks stacked on the leading axis of their parameters, and a final norm."""

  def __init__(self, config: TransformerConfig, constrain: Constrain, key: Array):
    embed_key, layers_key, unembed_key = jax.random.split(key, 3)
    self.config = config
    self.constrain = constrain
    self.embed = Embedding(config.vocab_size, config.width, embed_key)
    if config.rope_theta is None:
      self.positions = Embedding(config.max_positions, config.width, jax.random.fold_in(key, 0))
    self.layers = jax.vmap(lambda key: block_lib.Block(config, key))(jax.random.split(layers_key, config.layers))
    self.final_norm = block_lib.norm(config, config.width)
    if not config.tied_embeddings:
      self.unembed = layers.Linear(config.width, config.vocab_size, unembed_key)

  def hidden(self, prompt: Array, prompt_length: Array, response: Array, response_length: Array) -> Array:
    """See `base.LanguageModel.hidden`. Causality keeps padding out of what is read, so `response_length` is not."""
    del response_length
    layout = attention.Layout(prompt.shape[1], *response.shape[1:])
    self._check_positions(layout.prompt, layout.response)
    last_token = jnp.take_along_axis(prompt, prompt_length[:, None] - 1, axis=1)
    first = jnp.broadcast_to(last_token[:, None], (*response.shape[:2], 1))
    inputs = jnp.concatenate([first, response[:, :, :-1]], axis=2)
    tokens = jnp.concatenate([prompt, inputs.reshape(prompt.shape[0], -1)], axis=1)
    position = _joint_positions(prompt_length, layout)
    rotary = self._rotary(position)
    prompt_keys = prompt_length - 1
    x = self._embed(tokens, position)

    def apply(block: block_lib.Block, x: Array, kind: Kind, last: bool) -> Array:
      out = block.joint(x, rotary.of(kind.windowed), prompt_keys, layout, kind.window, last)
      return self.constrain(out, ('batch', None, None))

    remat = _REMAT[self.config.remat]
    if self.config.scan_layers:
      # One body serves all layers, so the last one computes its prompt branch in vain: 1 / L of that branch, less than
      # a copy of all stacked weights but the last would cost.
      body = remat(lambda block, x, kind: apply(block, x, self._kind(kind), False), prevent_cse=False)
      x, _ = jax.lax.scan(lambda x, layer: (body(layer[0], x, layer[1]), None), x, (self.layers, self._kinds()))
      x = x[:, layout.prompt :]
    else:
      blocks = unstack(self.layers, self.config.layers)
      for i, (block, window) in enumerate(zip(blocks, self.config.windows, strict=True)):
        kind, last = Kind.of(window), i == self.config.layers - 1
        x = remat(lambda block, x, kind=kind, last=last: apply(block, x, kind, last))(block, x)
    return self.final_norm(x).reshape(*response.shape, -1)

  def prefill(self, prompt: Array, prompt_length: Array, samples: int, max_new_tokens: int) -> Cache:
    """See `base.LanguageModel.prefill`."""
    config = self.config
    self._check_positions(prompt.shape[1], max_new_tokens)
    position = jnp.broadcast_to(jnp.arange(prompt.shape[1]), prompt.shape)
    rotary = self._rotary(position)
    x = self._embed(prompt, position)

    def body(x: Array, layer: tuple[block_lib.Block, Kind | None]) -> tuple[Array, tuple[Array, Array]]:
      block, kind = layer[0], self._kind(layer[1])
      x, keys_values = block.prompts(x, rotary.of(kind.windowed), kind.window)
      return self.constrain(x, ('batch', None, None)), keys_values

    _, keys_values = jax.lax.scan(body, x, (self.layers, self._kinds()))
    weights = nnx.to_pure_dict(nnx.split(self.layers)[1])
    return Cache(
      weights=unstack(jax.tree.map(lambda x: x.astype(config.compute_dtype), weights), config.layers),
      layers=[
        attention.LayerCache.create(*layer, samples, max_new_tokens) for layer in unstack(keys_values, config.layers)
      ],
      prompt_length=jnp.asarray(prompt_length),
      index=jnp.zeros((), jnp.int32),
    )

  def decode(self, cache: Cache, token: Array) -> tuple[Cache, Array]:
    """See `base.LanguageModel.decode`. Layers are unrolled: scanned ones halve the speed of decoding on a CPU."""
    _, _, prompt, _ = cache.layers[0].prompt_value.shape
    _, _, _, response, _ = cache.layers[0].own_value.shape
    prompt_keys = cache.prompt_length - 1
    windows = self.config.windows
    seen = {window: attention.Seen.at(prompt_keys, cache.index, prompt, response, window) for window in set(windows)}
    position = (prompt_keys + cache.index)[:, None]
    rotary = self._rotary(position)
    structure, _ = nnx.split(self.layers)
    x = self._embed(token, position)
    updated = []
    for weights, layer, window in zip(cache.weights, cache.layers, windows, strict=True):
      angles = rotary.of(window is not None)
      x, layer = nnx.merge(structure, weights).step(x, angles, layer, cache.index, seen[window])
      x = self.constrain(x, ('batch', None, None))
      updated.append(layer)
    return dataclasses.replace(cache, layers=updated, index=cache.index + 1), self.final_norm(x)

  def head(self) -> Head:
    """The embedding transposed where tied, else the kernel of `unembed`."""
    kernel = self.embed.embedding[...].T if self.config.tied_embeddings else self.unembed.kernel[...]
    return Head(kernel, soft_cap=self.config.logit_cap)

  def _kinds(self) -> Kind | None:
    """The kinds of layers that are scanned, arrays [L], or None where all are the same."""
    windows = self.config.windows
    if len(set(windows)) == 1:
      return None
    return Kind(
      jnp.asarray([self.config.max_positions if window is None else window for window in windows]),
      jnp.asarray([window is not None for window in windows]),
    )

  def _kind(self, scanned: Kind | None) -> Kind:
    """The kind of one layer, given its entry of `_kinds`."""
    return Kind.of(self.config.windows[0]) if scanned is None else scanned

  def _embed(self, token: Array, position: Array) -> Array:
    config = self.config
    x = self.embed(token, self.constrain)
    if config.rope_theta is None:
      x += self.positions.embedding[...][position]
    x = x.astype(config.compute_dtype)
    if config.scaled_embeddings:
      x *= jnp.asarray(config.width**0.5, x.dtype)
    return self.constrain(x, ('batch', None, None))

  def _rotary(self, position: Array) -> Rotary:
    config = self.config
    if config.rope_theta is None:
      return Rotary(None, None)
    full = layers.rotary_angles(position, config.rotary_width, config.rope_theta, config.rope_scaling)
    if config.local_rope_theta is None:
      return Rotary(full, None)
    return Rotary(full, layers.rotary_angles(position, config.rotary_width, config.local_rope_theta))

  def _check_positions(self, prompt: int, response: int):
    if prompt + response - 1 > self.config.max_positions:
      raise ValueError(
        f'prompts of {prompt} and responses of {response} tokens do not fit max_positions={self.config.max_positions}: '
        'shorten one of them'
      )


def _joint_positions(prompt_length: Array, layout: attention.Layout) -> Array:
  """[B, P + N * R]: prompts count from 0, and each response from its last prompt token, which is its first input."""
  batch = prompt_length.shape[0]
  of_prompt = jnp.broadcast_to(jnp.arange(layout.prompt), (batch, layout.prompt))
  of_response = prompt_length[:, None] - 1 + jnp.arange(layout.response)[None]
  return jnp.concatenate([of_prompt, jnp.tile(of_response, (1, layout.samples))], axis=1)


def unstack(stacked: Any, size: int) -> list[Any]:
  """Takes the leading axis, of `size`, off every array of a tree.

  `lax.split` is used because its transpose is one concatenation; indexing would add up `size` padded arrays.
  """
  leaves, structure = jax.tree.flatten(stacked)
  parts = [[part[0] for part in jax.lax.split(leaf, (1,) * size)] for leaf in leaves]
  return [structure.unflatten(layer) for layer in zip(*parts, strict=True)]


def build(config: TransformerConfig, constrain: Constrain = lambda x, _: x) -> base.LanguageModel:
  """Builds the decoder of `config` as pure functions.

  Args:
    config: shape and settings.
    constrain: places arrays on a mesh: (array, one logical axis name or None for each dimension) -> array. It is called
      on embeddings and on the output of each block with ('batch', None, None), and on the table from which embeddings
      are taken with ('vocab', None).
  """

  def create(key: Array) -> Decoder:
    return Decoder(config, constrain, key)

  structure, _ = nnx.split(nnx.eval_shape(create, jax.random.key(0)))

  def bind(params: Params) -> Decoder:
    return nnx.merge(structure, params)

  return base.LanguageModel(
    config=config,
    init=lambda key: nnx.to_pure_dict(nnx.split(create(key))[1]),
    hidden=lambda params, *args: bind(params).hidden(*args),
    head=lambda params: bind(params).head(),
    prefill=lambda params, *args, **options: bind(params).prefill(*args, **options),
    decode=lambda params, *args: bind(params).decode(*args),
  )
