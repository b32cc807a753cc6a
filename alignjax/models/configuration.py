"""The configuration of a decoder: its shape and how it is computed."""

import dataclasses

from alignjax.models import layers

_CHOICES = {
  'activation': tuple(layers.ACTIVATIONS),
  'norm': ('rms', 'layer'),
  'compute_dtype': ('float32', 'bfloat16'),
  'remat': ('none', 'dots', 'full'),
  'attention': ('xla', 'cudnn'),
  'output': ('logits', 'score', 'both'),
}
_SIZES = ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width', 'max_positions')
_FACTORS = ('embedding_multiplier', 'residual_multiplier', 'logit_divisor')
_OPTIONAL = (
  'rope_theta',
  'local_rope_theta',
  'sliding_window',
  'full_attention_every',
  'unrotated_every',
  'score_width',
  'score_multiplier',
  'score_cap',
  'logit_cap',
  'experts',
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a decoder and how it is computed. The defaults are those of Llama.

  Raises:
    ValueError: a size is not positive, sizes do not divide evenly, or a choice is unknown; the message names the field.
  """

  vocab_size: int  # V
  width: int  # D
  layers: int  # L
  heads: int
  kv_heads: int  # K, divides heads
  head_width: int  # H, even
  mlp_width: int  # F
  norm_epsilon: float
  rope_theta: float | None  # base of the rotary wavelengths, in tokens; None uses learned position embeddings instead
  tied_embeddings: bool
  max_positions: int  # largest number of tokens in a prompt plus one response
  compute_dtype: str = 'float32'  # or 'bfloat16'
  model_type: str = 'llama'  # the family to save the model as, see `families.FAMILIES`
  rope_scaling: layers.RotaryScaling | None = None
  local_rope_theta: float | None = None  # rope_theta of layers with a window, without scaling; None: same as the others
  rotary_fraction: float = 1.0  # the leading fraction of each head that is rotated; in (0, 1]
  qkv_bias: bool = False  # whether the query, key and value projections have a bias
  output_bias: bool = False  # whether the output projection of attention has a bias
  mlp_bias: bool = False  # whether the projections of the MLP have a bias
  qk_norm: bool = False  # normalises each query and key head before rotation
  joint_qk_norm: bool = False  # normalises all query heads as one vector, and all key heads, before rotation
  sliding_window: int | None = None  # number of tokens that a token sees, including itself; None: all
  full_attention_every: int | None = None  # every n-th layer has no window; None: all layers have the window
  unrotated_every: int | None = None  # every n-th layer has no rotary positions; None: all layers have them
  activation: str = 'silu'  # activation of the gate; or 'gelu', 'gelu_tanh'
  gated_mlp: bool = True  # False: the MLP is down(activation(up(x)))
  experts: int | None = None  # E: the MLP is a mixture of E gated MLPs; None: one MLP
  experts_per_token: int = 1  # k: how many of them answer for a token
  normalised_experts: bool = True  # divides the weights of these k by their sum
  norm: str = 'rms'  # or 'layer', which also subtracts the mean and adds a bias
  zero_centred_norms: bool = False  # norms multiply by 1 + scale
  input_norms: bool = True  # normalises the inputs of attention and the MLP
  output_norms: bool = False  # normalises the outputs of attention and the MLP
  parallel_residual: bool = False  # attention and the MLP read the same residual stream
  scaled_embeddings: bool = False  # multiplies embeddings by sqrt(D)
  score_width: int | None = None  # attention scores are divided by sqrt(score_width); None: H
  score_multiplier: float | None = None  # attention scores are multiplied by this instead; None: by 1 / sqrt(...)
  embedding_multiplier: float = 1.0  # multiplies embeddings
  residual_multiplier: float = 1.0  # multiplies what attention and the MLP add to the residual stream
  logit_divisor: float = 1.0  # divides logits
  score_cap: float | None = None  # soft cap of attention scores
  logit_cap: float | None = None  # soft cap of logits
  output: str = 'logits'  # what the heads compute; 'score': one number, the reward of a response; or 'both'
  remat: str = 'dots'  # rematerialisation keeps: 'none' all activations, 'dots' weight products, 'full' the layer input
  scan_layers: bool = True  # False unrolls the layers: slower to compile, faster on a CPU
  attention: str = 'xla'  # or 'cudnn', which needs bfloat16 and an NVIDIA GPU

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(f'{name}={getattr(self, name)!r} is not one of {", ".join(map(repr, choices))}')
    for name in (*_SIZES, *_FACTORS, 'norm_epsilon'):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r} must be positive')
    for name in _OPTIONAL:
      if getattr(self, name) is not None and not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r} must be positive, or None')
    if self.heads % self.kv_heads:
      raise ValueError(f'heads={self.heads} is not a multiple of kv_heads={self.kv_heads}')
    if self.head_width % 2:
      raise ValueError(f'head_width={self.head_width} must be even: rotary positions rotate pairs of numbers')
    if not 0 < self.rotary_fraction <= 1 or not self.rotary_width or self.rotary_width % 2:
      raise ValueError(
        f'rotary_fraction={self.rotary_fraction!r} must be in (0, 1] and select an even number of the '
        f'head_width={self.head_width} numbers of a head: rotary positions rotate pairs of numbers'
      )
    self._check_factors()
    if self.qk_norm and self.joint_qk_norm:
      raise ValueError('qk_norm=True and joint_qk_norm=True are mutually exclusive: set at most one')
    if self.experts is not None and not 0 < self.experts_per_token <= self.experts:
      raise ValueError(f'experts_per_token={self.experts_per_token} must be between 1 and experts={self.experts}')
    if self.experts is not None and (self.mlp_bias or not self.gated_mlp):
      raise ValueError(f'experts={self.experts} need gated_mlp=True and mlp_bias=False')
    if self.zero_centred_norms and self.norm != 'rms':
      raise ValueError(f"zero_centred_norms=True needs norm='rms', not {self.norm!r}")
    if self.attention == 'cudnn' and self.compute_dtype != 'bfloat16':
      raise ValueError(f"attention='cudnn' needs compute_dtype='bfloat16', not {self.compute_dtype!r}")
    if self.attention == 'cudnn' and self.score_cap is not None:
      raise ValueError(f"attention='cudnn' does not support score_cap={self.score_cap}: use attention='xla'")

  def _check_factors(self) -> None:
    if not isinstance(self.rope_scaling, layers.LongRopeScaling):
      return
    for name in ('short_factors', 'long_factors'):
      count = len(getattr(self.rope_scaling, name))
      if count != self.rotary_width // 2:
        raise ValueError(
          f'rope_scaling: {name} has {count} entries, but heads have {self.rotary_width // 2} rotary frequencies'
        )

  @property
  def scored(self) -> bool:
    """Whether there is a score head."""
    return self.output != 'logits'

  @property
  def unembedded(self) -> bool:
    """Whether there is a kernel of the output head besides the embedding."""
    return self.output != 'score' and not self.tied_embeddings

  @property
  def windows(self) -> tuple[int | None, ...]:
    """The sliding window of each layer."""
    every = self.full_attention_every
    return tuple(None if every and i % every == every - 1 else self.sliding_window for i in range(self.layers))

  @property
  def rotated(self) -> tuple[bool, ...]:
    """Whether each layer has rotary positions."""
    every = self.unrotated_every
    return tuple(not every or i % every != every - 1 for i in range(self.layers))

  @property
  def rotary_width(self) -> int:
    """The number of leading entries of each head that are rotated."""
    return int(self.head_width * self.rotary_fraction)
