"""The shape of a decoder, and how it is computed: what `transformer.build` takes."""

import dataclasses

from alignjax.models import layers

_CHOICES = {
  'activation': tuple(layers.ACTIVATIONS),
  'norm': ('rms', 'layer'),
  'compute_dtype': ('float32', 'bfloat16'),
  'remat': ('none', 'dots', 'full'),
  'attention': ('xla', 'cudnn'),
}
_SIZES = ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width', 'max_positions')
_OPTIONAL = (
  'rope_theta',
  'local_rope_theta',
  'sliding_window',
  'full_attention_every',
  'score_width',
  'score_cap',
  'logit_cap',
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a decoder, and how it is computed. Defaults are what a Llama does.

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
  rope_theta: float | None  # None: positions are embeddings that are learned, and nothing is turned
  tied_embeddings: bool
  max_positions: int  # tokens of a prompt and its longest response together
  compute_dtype: str = 'float32'  # or 'bfloat16'
  model_type: str = 'llama'  # the family that it is stored as, see `families.FAMILIES`
  rope_scaling: layers.RotaryScaling | None = None
  local_rope_theta: float | None = None  # of layers with a window, which are not scaled then; None: as all others
  rotary_fraction: float = 1.0  # of each head, from its start on, that is turned; in (0, 1]
  qkv_bias: bool = False  # of the query, key and value projections
  output_bias: bool = False  # of the projection that ends attention
  mlp_bias: bool = False  # of all projections of the MLP
  qk_norm: bool = False  # normalises each query and key head before it is turned
  joint_qk_norm: bool = False  # normalises all query heads as one vector, and all key heads, before they are turned
  sliding_window: int | None = None  # tokens that a token sees, itself included; None: all
  full_attention_every: int | None = None  # of so many layers, the last has no window; None: no such layers
  activation: str = 'silu'  # of the gate; or 'gelu', 'gelu_tanh'
  gated_mlp: bool = True  # False: the MLP is down(activation(up(x)))
  norm: str = 'rms'  # or 'layer', which also subtracts the mean and adds a bias
  zero_centred_norms: bool = False  # norms multiply by 1 + scale
  input_norms: bool = True  # normalises what attention and the MLP read
  output_norms: bool = False  # normalises what attention and the MLP add
  parallel_residual: bool = False  # the MLP reads what attention reads, not what attention has added to
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
    for name in (*_SIZES, 'norm_epsilon'):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r} must be positive')
    for name in _OPTIONAL:
      if getattr(self, name) is not None and not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r} must be positive, or None')
    if self.heads % self.kv_heads:
      raise ValueError(f'heads={self.heads} is not a multiple of kv_heads={self.kv_heads}')
    if self.head_width % 2:
      raise ValueError(f'head_width={self.head_width} must be even: rotary positions turn pairs of numbers')
    if not 0 < self.rotary_fraction <= 1 or not self.rotary_width or self.rotary_width % 2:
      raise ValueError(
        f'rotary_fraction={self.rotary_fraction!r} must be in (0, 1] and, of head_width={self.head_width}, an even '
        'number: rotary positions turn pairs of numbers'
      )
    if self.qk_norm and self.joint_qk_norm:
      raise ValueError('qk_norm=True and joint_qk_norm=True exclude each other')
    if self.zero_centred_norms and self.norm != 'rms':
      raise ValueError(f"zero_centred_norms=True needs norm='rms', not {self.norm!r}")
    if self.attention == 'cudnn' and self.compute_dtype != 'bfloat16':
      raise ValueError(f"attention='cudnn' needs compute_dtype='bfloat16', not {self.compute_dtype!r}")
    if self.attention == 'cudnn' and self.score_cap is not None:
      raise ValueError(f"attention='cudnn' knows no score_cap={self.score_cap}: use attention='xla'")

  @property
  def windows(self) -> tuple[int | None, ...]:
    """The sliding window of each layer."""
    every = self.full_attention_every
    return tuple(None if every and i % every == every - 1 else self.sliding_window for i in range(self.layers))

  @property
  def rotary_width(self) -> int:
    """The numbers of each head that are turned."""
    return int(self.head_width * self.rotary_fraction)
