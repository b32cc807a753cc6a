"""Tokenwise parts of a decoder: projections, normalisation, gated MLP, rotary positions.

Modules create float32 parameters and compute in the dtype of their input. Parameters of another dtype are cast where
they are used.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax import numerics
from alignjax.types import Array

Angles = tuple[Array, Array]  # cosine and sine, see `rotary_angles`
_kernel_init = jax.nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
_experts_init = jax.nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', batch_axis=0)


class Linear(nnx.Module):
  """x @ kernel, plus an optional bias.

  Instead of an array, `kernel` may hold any object with `astype` and a matrix product: see `lora` and `quantization`.
  """

  def __init__(self, inputs: int, outputs: int, key: Array, bias: bool = False):
    self.kernel = nnx.Param(_kernel_init(key, (inputs, outputs), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

  def __call__(self, x: Array) -> Array:
    kernel = self.kernel.get_value()
    # In float32 autodiff does the same; adapted and quantised kernels have products of their own.
    own = x.dtype == jnp.float32 or not isinstance(kernel, jax.Array)
    y = x @ kernel.astype(x.dtype) if own else numerics.product(x, kernel)
    if self.bias is None:
      return y
    return y + jnp.expand_dims(self.bias[...].astype(x.dtype), tuple(range(y.ndim - 1)))


def score_kernel(key: Array, width: int) -> Array:
  """[D, 1] float32 from N(0, 1 / (D + 1)).

  After a final norm, |h| is about sqrt(D), so rewards have a standard deviation of about 1.
  """
  return jax.random.normal(key, (width, 1), jnp.float32) * (width + 1) ** -0.5


class Score(nnx.Module):
  """The score head of a reward model: h @ kernel, without bias. `stats.reward` computes the product in float32."""

  def __init__(self, width: int, key: Array):
    self.kernel = nnx.Param(score_kernel(key, width))


class RMSNorm(nnx.Module):
  """(offset + scale) * x / sqrt(mean(x^2) + epsilon), in float32 whatever the dtype of x.

  References:
    Zhang and Sennrich, Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467, equation 4.
  """

  def __init__(self, width: int, epsilon: float, offset: float = 0.0):
    self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, jnp.float32))
    self.epsilon = epsilon
    self.offset = offset

  def __call__(self, x: Array) -> Array:
    values = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(values), axis=-1, keepdims=True) + self.epsilon)
    scale = jnp.expand_dims(self.scale[...].astype(jnp.float32), tuple(range(x.ndim - 1)))
    if self.offset:
      scale += self.offset
    return (values * inverse * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
  """scale * (x - mean(x)) / sqrt(variance(x) + epsilon) + bias, in float32 whatever the dtype of x.

  References:
    Ba et al., Layer Normalization, https://arxiv.org/abs/1607.06450, equation 4.
  """

  def __init__(self, width: int, epsilon: float):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
    self.epsilon = epsilon

  def __call__(self, x: Array) -> Array:
    values = x.astype(jnp.float32)
    values -= jnp.mean(values, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(values), axis=-1, keepdims=True) + self.epsilon)
    leading = tuple(range(x.ndim - 1))
    scale, bias = (jnp.expand_dims(param[...].astype(jnp.float32), leading) for param in (self.scale, self.bias))
    return (values * inverse * scale + bias).astype(x.dtype)


Norm = RMSNorm | LayerNorm
ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
  """down(activation(gate(x)) * up(x)) or, without a gate, down(activation(up(x))).

  References:
    Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202, equation 6 (GEGLU, SwiGLU).
  """

  def __init__(
    self, width: int, mlp_width: int, activation: str, key: Array, *, gated: bool = True, bias: bool = False
  ):
    gate, up, down = jax.random.split(key, 3)
    self.gate = Linear(width, mlp_width, gate, bias) if gated else None
    self.up = Linear(width, mlp_width, up, bias)
    self.down = Linear(mlp_width, width, down, bias)
    self.activation = activation

  def __call__(self, x: Array) -> Array:
    activation = ACTIVATIONS[self.activation]
    if self.gate is None:
      return self.down(activation(self.up(x)))
    return self.down(activation(self.gate(x)) * self.up(x))


class Experts(nnx.Module):
  """A mixture of E gated MLPs, of which k answer for each token: sum_e w_e down_e(activation(gate_e(x)) * up_e(x)).

  With p = softmax(x router) over the experts, in float32, w_e = p_e for the k largest, divided by their sum if
  `normalised`, and 0 for the others. All experts run for all tokens, so nothing is dropped, and no token moves between
  devices; the products cost E / k times those of the chosen experts.

  References:
    Shazeer et al., Outrageously Large Neural Networks, https://arxiv.org/abs/1701.06538, section 2.
    Jiang et al., Mixtral of Experts, https://arxiv.org/abs/2401.04088, section 2.1.
  """

  def __init__(self, sizes: tuple[int, int, int], chosen: int, activation: str, key: Array, *, normalised: bool):
    experts, width, mlp_width = sizes
    router, gate, up, down = jax.random.split(key, 4)
    self.router = nnx.Param(_kernel_init(router, (width, experts), jnp.float32))
    self.gate, self.up = (nnx.Param(_experts_init(key, (experts, width, mlp_width), jnp.float32)) for key in (gate, up))
    self.down = nnx.Param(_experts_init(down, (experts, mlp_width, width), jnp.float32))
    self.chosen = chosen
    self.activation = activation
    self.normalised = normalised

  def __call__(self, x: Array) -> Array:
    router, gate, up, down = (leaf[...].astype(x.dtype) for leaf in (self.router, self.gate, self.up, self.down))
    weights = self._weights(x @ router).astype(x.dtype)
    gated = ACTIVATIONS[self.activation](jnp.einsum('...d,edf->...ef', x, gate)) * jnp.einsum('...d,edf->...ef', x, up)
    return jnp.einsum('...ef,efd->...d', gated * weights[..., None], down)

  def _weights(self, logits: Array) -> Array:
    """The weight of each expert, [..., E] float32."""
    share, index = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), self.chosen)
    if self.normalised:
      share /= jnp.sum(share, axis=-1, keepdims=True)
    return jnp.sum(share[..., None] * jax.nn.one_hot(index, logits.shape[-1], dtype=jnp.float32), axis=-2)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Linear scaling of rotary frequencies, for contexts longer than in pre-training: frequency / factor.

  References:
    Chen et al., Position Interpolation, https://arxiv.org/abs/2306.15595, section 2.3.
  """

  factor: float  # positive

  @property
  def amplitude(self) -> float:
    """The factor of cosine and sine."""
    return 1.0

  def __call__(self, frequency: Array, theta: float) -> Array:
    del theta
    return frequency / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Scaling of rotary frequencies in Llama 3.1: high frequencies are kept, low ones are divided by `factor`.

  Frequencies in between are interpolated. With t the number of turns over `original_positions` tokens and
  w = (t - low) / (high - low), clipped to [0, 1]: w frequency + (1 - w) frequency / factor.

  Raises:
    ValueError: the high-frequency factor is not above the low-frequency factor.
  """

  factor: float  # positive
  low_frequency_factor: float  # turns up to which a frequency counts as low
  high_frequency_factor: float  # turns from which a frequency counts as high
  original_positions: int  # context length of pre-training, in tokens

  def __post_init__(self):
    if not self.high_frequency_factor > self.low_frequency_factor:
      raise ValueError(
        f'rotary positions: high_frequency_factor={self.high_frequency_factor} must be above '
        f'low_frequency_factor={self.low_frequency_factor}'
      )

  @property
  def amplitude(self) -> float:
    """The factor of cosine and sine."""
    return 1.0

  def __call__(self, frequency: Array, theta: float) -> Array:
    del theta
    turns = self.original_positions * frequency / (2 * jnp.pi)
    low, high = self.low_frequency_factor, self.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / self.factor


@dataclasses.dataclass(frozen=True)
class YarnScaling:
  """Scaling of rotary frequencies by YaRN: high frequencies are kept, low ones are divided by `factor`.

  With c(t) = H log(original / (2 pi t)) / (2 log theta), the index of the frequency that makes t turns over
  `original_positions` tokens, low = c(fast_turns) and high = c(slow_turns), rounded outwards if `truncate`:

    w_i = 1 - clip((i - low) / (high - low), 0, 1),   w_i frequency_i + (1 - w_i) frequency_i / factor

  Cosine and sine are multiplied by `attention_factor`. If it is None, by m(mscale) / m(mscale_all_dim) if both are
  given, else by m(1), with m(s) = 0.1 s log(factor) + 1.

  References:
    Peng et al., YaRN, https://arxiv.org/abs/2309.00071, sections 3.2 and 3.4.
  """

  factor: float  # positive
  original_positions: int  # context length of pre-training, in tokens
  fast_turns: float = 32.0  # turns from which a frequency is kept
  slow_turns: float = 1.0  # turns up to which a frequency is divided
  truncate: bool = True
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None

  @property
  def amplitude(self) -> float:
    """The factor of cosine and sine."""
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
    return self._temperature(1.0)

  def _temperature(self, scale: float) -> float:
    return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

  def __call__(self, frequency: Array, theta: float) -> Array:
    count = frequency.shape[-1]

    def index(turns: float) -> float:
      return count * math.log(self.original_positions / (2 * math.pi * turns)) / math.log(theta)

    low, high = index(self.fast_turns), index(self.slow_turns)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    high = high + 0.001 if low == high else high
    kept = 1 - jnp.clip((jnp.arange(count, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / self.factor


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
  """Scaling of rotary frequencies by LongRoPE: frequency_i / factor_i, with one list of factors for sequences of up to
  `original_positions` tokens, and one for longer ones.

  Cosine and sine are multiplied by `attention_factor` or, if it is None, by

    sqrt(1 + log(extension) / log(original_positions)),   for extension > 1; else 1

  References:
    Ding et al., LongRoPE, https://arxiv.org/abs/2402.13753, section 3; the factor of cosine and sine is that of Phi-3.
  """

  short_factors: tuple[float, ...]  # one for each frequency
  long_factors: tuple[float, ...]
  original_positions: int  # context length of pre-training, in tokens
  extension: float  # the extended context length over the original one
  attention_factor: float | None = None

  def at(self, length: int) -> 'DividedScaling':
    """The scaling of sequences with this many tokens."""
    factors = self.long_factors if length > self.original_positions else self.short_factors
    return DividedScaling(factors, self.amplitude)

  @property
  def amplitude(self) -> float:
    """The factor of cosine and sine."""
    if self.attention_factor is not None:
      return self.attention_factor
    return 1.0 if self.extension <= 1 else math.sqrt(1 + math.log(self.extension) / math.log(self.original_positions))


class DividedScaling(NamedTuple):
  """Divides each rotary frequency by its own factor."""

  factors: tuple[float, ...]
  amplitude: float  # the factor of cosine and sine

  def __call__(self, frequency: Array, theta: float) -> Array:
    del theta
    return frequency / jnp.asarray(self.factors, jnp.float32)


RotaryScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


def rotary_angles(
  position: Array,
  head_width: int,
  theta: float,
  scaling: LinearScaling | Llama3Scaling | YarnScaling | DividedScaling | None = None,
) -> Angles:
  """Cosine and sine of position * frequency_i, with frequency_i = theta^(-2 i / H), scaled, for i < H / 2.

  Args:
    position: index of the token in its sequence, [...] int32.
    head_width: H, the number of entries of a head to rotate; even.
    theta: base of the wavelengths, in tokens.
    scaling: scaling of the frequencies, and of cosine and sine, or None.

  Returns:
    Cosine and sine, [..., H / 2] float32 for any compute dtype: bfloat16 cannot represent position 257.

  References:
    Su et al., RoFormer, https://arxiv.org/abs/2104.09864, section 3.2.2.
  """
  exponent = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
  frequency = theta**-exponent
  if scaling is not None:
    frequency = scaling(frequency, theta)
  frequency = jnp.expand_dims(frequency, tuple(range(position.ndim)))
  angle = position[..., None].astype(jnp.float32) * frequency
  if scaling is None or scaling.amplitude == 1:
    return jnp.cos(angle), jnp.sin(angle)
  return scaling.amplitude * jnp.cos(angle), scaling.amplitude * jnp.sin(angle)


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
  """Rotates the pairs (x_i, x_{i + H/2}) of each head by the angle of their position, as Hugging Face does for Llama.

  Args:
    x: queries or keys, [..., heads, H]. If heads are wider than H, only their first H entries are rotated.
    cosine: cosine of the angles, [..., H / 2], with the leading axes of x.
    sine: sine of the angles, [..., H / 2].
  """
  width = 2 * cosine.shape[-1]
  if width < x.shape[-1]:
    return jnp.concatenate([rotate(x[..., :width], cosine, sine), x[..., width:]], axis=-1)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cosine, sine = cosine[..., None, :], sine[..., None, :]
  return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)
