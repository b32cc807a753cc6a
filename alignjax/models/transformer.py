"""One configurable decoder of the Llama type, handed out as pure functions over a nested dict of arrays.

The network is written in flax.nnx, in tree style: no shared references, no mutation, no state. `build` splits it once;
afterwards optimizers, checkpoints and sharding rules see an ordinary dict, with the layers stacked on a leading axis:

  embed/embedding [V, D]                              final_norm/scale [D]
  layers/{attention_norm,mlp_norm}/scale [L, D]       unembed/kernel [D, V], unless embeddings are tied
  layers/attention/{query,key,value}/kernel [L, D, heads * H]
  layers/attention/output/kernel [L, heads * H, D]
  layers/attention/{query,key,value}/bias [L, heads * H], with qkv_bias
  layers/attention/{query_norm,key_norm}/scale [L, H], with qk_norm
  layers/{attention_output_norm,mlp_output_norm}/scale [L, D], with output_norms
  layers/mlp/{gate,up}/kernel [L, D, F]
  layers/mlp/down/kernel [L, F, D]

Parameters are float32; products run in `compute_dtype`; norms, rotary angles and softmax in float32.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax.models import attention, base, layers
from alignjax.types import Array, Head, Params

Constrain = Callable[[Array, tuple[str | None, ...]], Array]

_REMAT = {
  'none': lambda apply, **_: apply,
  'dots': lambda apply, **options: jax.checkpoint(
    apply, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, **options
  ),
  'full': jax.checkpoint,
}
_CHOICES = {
  'activation': tuple(layers.ACTIVATIONS),
  'compute_dtype': ('float32', 'bfloat16'),
  'remat': tuple(_REMAT),
  'attention': ('xla', 'cudnn'),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a decoder, and how it is computed.

  Raises:
    ValueError: naming the field, for a size that is not positive, for sizes that do not divide, or for an unknown
      choice.
  """

  vocab_size: int  # V
  width: int  # D
  layers: int  # L
  heads: int
  kv_heads: int  # K, divides heads
  head_width: int  # H, even
  mlp_width: int  # F
  norm_epsilon: float
  rope_theta: float
  tied_embeddings: bool
  max_positions: int  # tokens of a prompt and its longest response together
  compute_dtype: str = 'float32'  # or 'bfloat16'
  model_type: str = 'llama'  # the family that it is stored as, see `families.FAMILIES`
  rope_scaling: layers.RotaryScaling | None = None
  qkv_bias: bool = False  # of the query, key and value projections
  qk_norm: bool = False  # normalises each query and key head before it is turned
  sliding_window: int | None = None  # tokens that a token sees, itself included; None: all
  full_attention_every: int | None = None  # of so many layers, the last has no window; None: no such layers
  activation: str = 'silu'  # of the gate; or 'gelu_tanh'
  zero_centred_norms: bool = False  # norms multiply by 1 + scale
  output_norms: bool = False  # normalises what attention and the MLP add, too
  scaled_embeddings: bool = False  # multiplies embeddings by sqrt(D)
  score_width: int | None = None  # attention scores are divided by its square root; None: H
  score_cap: float | None = None  # soft cap of attention scores
  logit_cap: float | None = None  # soft cap of logits
  remat: str = 'dots'  # what a layer keeps for the backward pass: 'none' all, 'dots' weight products, 'full' its input
  scan_layers: bool = True  # False unrolls: slower to compile, faster on a CPU
  attention: str = 'xla'  # or 'cudnn', which needs bfloat16 and an NVIDIA GPU

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(f'{name}={getattr(self, name)!r} is not one of {", ".join(map(repr, choices))}')
    sizes = ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width', 'max_positions')
    for name in (*sizes, 'norm_epsilon', 'rope_theta'):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r} must be positive')
    for name in ('sliding_window', 'full_attention_every', 'score_width', 'score_cap', 'logit_cap'):
      if getattr(self, name) is not None and not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r} must be positive, or None')
    if self.heads % self.kv_heads:
      raise ValueError(f'heads={self.heads} is not a multiple of kv_heads={self.kv_heads}')
    if self.head_width % 2:
      raise ValueError(f'head_width={self.head_width} must be even: rotary positions turn pairs of numbers')
    if self.attention == 'cudnn' and self.compute_dtype != 'bfloat16':
      raise ValueError(f"attention='cudnn' needs compute_dtype='bfloat16', not {self.compute_dtype!r}")
    if self.attention == 'cudnn' and self.score_cap is not None:
      raise ValueError(f"attention='cudnn' knows no score_cap={self.score_cap}: use attention='xla'")

  @property
  def windows(self) -> tuple[int | None, ...]:
    """The sliding window of each layer."""
    every = self.full_attention_every
    return tuple(None if every and i % every == every - 1 else self.sliding_window for i in range(self.layers))


class Embedding(nnx.Module):
  """One row of `embedding` for each token id."""

  def __init__(self, vocab_size: int, width: int, key: Array):
    self.embedding = nnx.Param(jax.random.normal(key, (vocab_size, width)) * width**-0.5)

  def __call__(self, token: Array, constrain: Constrain) -> Array:
    # The table is gathered whole in width before rows are taken. Otherwise its gradient, a scatter into rows that are
    # split by width, would have the compiler gather the activations of all devices instead.
    return constrain(self.embedding[...], ('vocab', None))[token]


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); with `output_norms`, what is added is normalised first."""

  def __init__(self, config: TransformerConfig, key: Array):
    attention_key, mlp_key = jax.random.split(key)

    def norm() -> layers.RMSNorm:
      return layers.RMSNorm(config.width, config.norm_epsilon, float(config.zero_centred_norms))

    self.attention_norm = norm()
    self.attention = attention.Attention(
      config.width,
      config.heads,
      config.kv_heads,
      config.head_width,
      config.attention,
      attention_key,
      bias=config.qkv_bias,
      norm_epsilon=config.norm_epsilon if config.qk_norm else None,
      scale=None if config.score_width is None else config.score_width**-0.5,
      cap=config.score_cap,
    )
    self.mlp_norm = norm()
    self.mlp = layers.MLP(config.width, config.mlp_width, config.activation, mlp_key)
    self.attention_output_norm = norm() if config.output_norms else None
    self.mlp_output_norm = norm() if config.output_norms else None

  def finish(self, x: Array, attended: Array) -> Array:
    """Everything after attention: its output projection, and the MLP."""
    added = self.attention.output(attended)
    x = x + (added if self.attention_output_norm is None else self.attention_output_norm(added))
    added = self.mlp(self.mlp_norm(x))
    return x + (added if self.mlp_output_norm is None else self.mlp_output_norm(added))

  def prompts(
    self, x: Array, rotary: tuple[Array, Array], window: attention.Window
  ) -> tuple[Array, tuple[Array, Array]]:
    """Prompts alone, [B, P, D]; also returns their keys and values, [B, P, K, H]."""
    normed = self.attention_norm(x)
    query = self.attention.queries(normed, rotary)
    key, value = self.attention.keys_values(normed, rotary)
    return self.finish(x, self.attention.over_prompt(query, key, value, window)), (key, value)

  def joint(
    self,
    x: Array,
    rotary: tuple[Array, Array],
    prompt_keys: Array,
    layout: attention.Layout,
    window: attention.Window,
    last: bool,
  ) -> Array:
    """Prompts and responses, [B, P + N * R, D]. The last layer returns the responses alone, [B, N * R, D]."""
    prompt = layout.prompt
    normed = self.attention_norm(x)
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

  def step(
    self, x: Array, rotary: tuple[Array, Array], cache: attention.LayerCache, index: Array, seen: attention.Seen
  ) -> tuple[Array, attention.LayerCache]:
    """Response token `index` of each sample, [B, N, D]."""
    normed = self.attention_norm(x)
    query = self.attention.queries(normed, rotary)
    cache = cache.write(index, *self.attention.keys_values(normed, rotary))
    attended = attention.attend_cached(query, cache, seen, self.attention.scale, self.attention.cap)
    return self.finish(x, attended), cache


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
    self.layers = jax.vmap(lambda key: Block(config, key))(jax.random.split(layers_key, config.layers))
    self.final_norm = layers.RMSNorm(config.width, config.norm_epsilon, float(config.zero_centred_norms))
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
    rotary = self._rotary(_joint_positions(prompt_length, layout))
    prompt_keys = prompt_length - 1
    x = self._embed(tokens)

    def apply(block: Block, x: Array, window: attention.Window, last: bool) -> Array:
      return self.constrain(block.joint(x, rotary, prompt_keys, layout, window, last), ('batch', None, None))

    remat = _REMAT[self.config.remat]
    if self.config.scan_layers:
      # One body serves all layers, so the last one computes its prompt branch in vain: 1 / L of that branch, less than
      # a copy of all stacked weights but the last would cost.
      body = remat(lambda block, x, window: apply(block, x, self._window(window), False), prevent_cse=False)
      x, _ = jax.lax.scan(lambda x, layer: (body(layer[0], x, layer[1]), None), x, (self.layers, self._windows()))
      x = x[:, layout.prompt :]
    else:
      blocks = unstack(self.layers, self.config.layers)
      for i, (block, window) in enumerate(zip(blocks, self.config.windows, strict=True)):
        last = i == self.config.layers - 1
        x = remat(lambda block, x, window=window, last=last: apply(block, x, window, last))(block, x)
    return self.final_norm(x).reshape(*response.shape, -1)

  def prefill(self, prompt: Array, prompt_length: Array, samples: int, max_new_tokens: int) -> Cache:
    """See `base.LanguageModel.prefill`."""
    config = self.config
    self._check_positions(prompt.shape[1], max_new_tokens)
    rotary = self._rotary(jnp.broadcast_to(jnp.arange(prompt.shape[1]), prompt.shape))
    x = self._embed(prompt)

    def body(x: Array, layer: tuple[Block, Array | None]) -> tuple[Array, tuple[Array, Array]]:
      block, window = layer
      x, keys_values = block.prompts(x, rotary, self._window(window))
      return self.constrain(x, ('batch', None, None)), keys_values

    _, keys_values = jax.lax.scan(body, x, (self.layers, self._windows()))
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
    rotary = self._rotary((prompt_keys + cache.index)[:, None])
    structure, _ = nnx.split(self.layers)
    x = self._embed(token)
    updated = []
    for weights, layer, window in zip(cache.weights, cache.layers, windows, strict=True):
      x, layer = nnx.merge(structure, weights).step(x, rotary, layer, cache.index, seen[window])
      x = self.constrain(x, ('batch', None, None))
      updated.append(layer)
    return dataclasses.replace(cache, layers=updated, index=cache.index + 1), self.final_norm(x)

  def head(self) -> Head:
    """The embedding transposed where tied, else the kernel of `unembed`."""
    kernel = self.embed.embedding[...].T if self.config.tied_embeddings else self.unembed.kernel[...]
    return Head(kernel, soft_cap=self.config.logit_cap)

  def _windows(self) -> Array | None:
    """The windows of layers that are scanned, [L] int32, or None where all have the same."""
    windows = self.config.windows
    if len(set(windows)) == 1:
      return None
    return jnp.asarray([self.config.max_positions if window is None else window for window in windows])

  def _window(self, scanned: Array | None) -> attention.Window:
    """The window of one layer, given its entry of `_windows`."""
    return self.config.windows[0] if scanned is None else scanned

  def _embed(self, token: Array) -> Array:
    config = self.config
    x = self.embed(token, self.constrain).astype(config.compute_dtype)
    if config.scaled_embeddings:
      x *= jnp.asarray(config.width**0.5, x.dtype)
    return self.constrain(x, ('batch', None, None))

  def _rotary(self, position: Array) -> tuple[Array, Array]:
    return layers.rotary_angles(position, self.config.head_width, self.config.rope_theta, self.config.rope_scaling)

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
