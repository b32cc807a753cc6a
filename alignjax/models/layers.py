"""Parts of a decoder that mix nothing between tokens: projections, normalisation, gated MLP, rotary positions.

Modules hold float32 parameters and compute in the dtype of their input.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from alignjax.types import Array

_kernel_init = jax.nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


class Linear(nnx.Module):
  """x @ kernel, without a bias."""

  def __init__(self, inputs: int, outputs: int, key: Array):
    self.kernel = nnx.Param(_kernel_init(key, (inputs, outputs), jnp.float32))

  def __call__(self, x: Array) -> Array:
    return x @ self.kernel[...].astype(x.dtype)


class RMSNorm(nnx.Module):
  """scale * x / sqrt(mean(x^2) + epsilon), in float32 whatever the dtype of x.

  References:
    Zhang and Sennrich, Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467, equation 4.
  """

  def __init__(self, width: int, epsilon: float):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
    self.epsilon = epsilon

  def __call__(self, x: Array) -> Array:
    values = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(values), axis=-1, keepdims=True) + self.epsilon)
    scale = jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))
    return (values * inverse * scale).astype(x.dtype)


class MLP(nnx.Module):
  """down(silu(gate(x)) * up(x)).

  References:
    Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202, equation 6 (SwiGLU).
  """

  def __init__(self, width: int, mlp_width: int, key: Array):
    gate, up, down = jax.random.split(key, 3)
    self.gate = Linear(width, mlp_width, gate)
    self.up = Linear(width, mlp_width, up)
    self.down = Linear(mlp_width, width, down)

  def __call__(self, x: Array) -> Array:
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def rotary_angles(position: Array, head_width: int, theta: float) -> tuple[Array, Array]:
  """Cosine and sine of position * theta^(-2 i / H) for i < H / 2.

  Args:
    position: [...] int32, tokens from the start of the sequence.
    head_width: H, even.
    theta: base of the wavelengths, in tokens.

  Returns:
    Two float32 arrays [..., H / 2], whatever the compute dtype: bfloat16 cannot tell position 256 from 257.

  References:
    Su et al., RoFormer, https://arxiv.org/abs/2104.09864, section 3.2.2.
  """
  exponent = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
  frequency = jnp.expand_dims(theta**-exponent, tuple(range(position.ndim)))
  angle = position[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
  """Turns the pairs (x_i, x_{i + H/2}) of each head by the angle of their position: the Hugging Face Llama convention.

  Args:
    x: [..., heads, H].
    cosine: [..., H / 2], over the leading axes of x.
    sine: the same.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cosine, sine = cosine[..., None, :], sine[..., None, :]
  return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)
