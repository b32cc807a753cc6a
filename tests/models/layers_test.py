"""Norms, rotary positions and their scalings, against their equations."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import layers

rotary_angles = jax.jit(layers.rotary_angles, static_argnames=('head_width', 'theta', 'scaling'))


def test_zero_centred_norms_start_out_neutral():
  centred = layers.RMSNorm(4, 1e-6, offset=1.0)
  np.testing.assert_array_equal(centred.scale[...], np.zeros(4))
  np.testing.assert_array_equal(
    centred(jnp.arange(8.0).reshape(2, 4)), layers.RMSNorm(4, 1e-6)(jnp.arange(8.0).reshape(2, 4))
  )


def test_layer_norm_is_that_of_the_equation():
  norm, x = layers.LayerNorm(5, 0.1), np.random.default_rng(0).normal(3.0, 2.0, (4, 5)).astype(np.float32)
  centred = x - x.mean(-1, keepdims=True)
  expected = centred / np.sqrt(x.var(-1, keepdims=True) + 0.1)
  np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5)
  norm.scale, norm.bias = nnx.Param(jnp.arange(5.0)), nnx.Param(jnp.ones(5))
  np.testing.assert_allclose(norm(jnp.asarray(x)), expected * np.arange(5) + 1, rtol=1e-5, atol=1e-5)
  assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize('normalised', [True, False])
def test_experts_are_those_of_the_equation(normalised):
  """Value and gradient in float64, token by token and expert by expert."""
  build = functools.partial(layers.Experts, (4, 6, 5), 2, 'silu', normalised=normalised)
  structure, state = nnx.split(nnx.eval_shape(build, jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = {
    name: (0.4 * rng.standard_normal(leaf.shape)).astype(np.float32) for name, leaf in nnx.to_pure_dict(state).items()
  }
  x = rng.normal(size=(3, 2, 6)).astype(np.float32)
  router, gate, up, down = (np.asarray(params[name], np.float64) for name in ('router', 'gate', 'up', 'down'))

  def expert(e, token):
    gated = token @ gate[e]
    return (gated / (1 + np.exp(-gated)) * (token @ up[e])) @ down[e]

  def oracle(x):
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape[:-1]):
      logits = x[place] @ router
      share = np.exp(logits) / np.exp(logits).sum()
      chosen = np.argsort(-share)[:2]
      total = share[chosen].sum() if normalised else 1.0
      out[place] = sum(share[e] / total * expert(e, x[place]) for e in chosen)
    return out

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def apply(x):
    out = nnx.merge(structure, params)(x)
    return jnp.sum(out**2), out

  of_x, out = apply(x)
  np.testing.assert_allclose(out, oracle(x.astype(np.float64)), rtol=1e-5, atol=1e-6)
  step = 1e-5 * np.random.default_rng(1).normal(size=x.shape)
  numeric = np.sum(oracle(x + step) ** 2) - np.sum(oracle(x - step) ** 2)
  np.testing.assert_allclose(2 * np.sum(of_x * step), numeric, rtol=1e-4)


def test_a_part_of_each_head_is_turned():
  x = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32)
  angles = rotary_angles(jnp.arange(3), 4, 100.0)
  turned = layers.rotate(jnp.asarray(x), *angles)
  np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
  np.testing.assert_array_equal(turned[..., :4], layers.rotate(jnp.asarray(x[..., :4]), *angles))
  assert np.abs(turned[1:, :, :4] - x[1:, :, :4]).max() > 0.1


def test_rotary_angles_tell_far_positions_apart():
  """bfloat16 would take position 257 for 256."""
  cosine, sine = rotary_angles(jnp.asarray([[256, 257]]), head_width=6, theta=100.0)
  angles = np.array([256.0, 257.0])[:, None] * 100.0 ** (-np.arange(3) / 3)
  np.testing.assert_allclose(cosine[0], np.cos(angles), atol=1e-4)
  np.testing.assert_allclose(sine[0], np.sin(angles), atol=1e-4)


def test_linear_scaling_stretches_positions():
  plain = rotary_angles(jnp.asarray([[3]]), head_width=6, theta=100.0)
  stretched = rotary_angles(jnp.asarray([[12]]), 6, 100.0, layers.LinearScaling(4.0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, stretched)


def test_llama3_scaling_keeps_short_waves_stretches_long_ones_and_mixes_the_rest():
  """The numbers of Llama 3.1, told by wavelengths as in its reference code."""
  frequency = 500000.0 ** (-np.arange(64) / 64)
  scaled = layers.Llama3Scaling(8.0, 1.0, 4.0, 8192)(jnp.asarray(frequency, jnp.float32), 1e4)
  length = 2 * np.pi / frequency
  smooth = (8192 / length - 1) / (4 - 1)
  mixed = (1 - smooth) * frequency / 8 + smooth * frequency
  expected = np.where(length < 8192 / 4, frequency, np.where(length > 8192, frequency / 8, mixed))
  assert min(np.sum(expected == frequency), np.sum(expected == frequency / 8), np.sum(expected == mixed)) > 2
  np.testing.assert_allclose(scaled, expected, rtol=1e-5)


@pytest.mark.parametrize('truncate', [True, False])
def test_yarn_keeps_short_waves_stretches_long_ones_and_scales_cosine_and_sine(truncate):
  theta, count, original, factor = 1e4, 16, 2048, 4.0
  index = np.arange(count, dtype=np.float64)
  frequency = theta ** (-index / count)
  low, high = (count * np.log(original / (2 * np.pi * turns)) / np.log(theta) for turns in (32.0, 1.0))
  if truncate:
    low, high = np.floor(low), np.ceil(high)
  kept = 1 - np.clip((index - low) / (high - low), 0, 1)
  expected = kept * frequency + (1 - kept) * frequency / factor
  scaling = layers.YarnScaling(factor, original, truncate=truncate)
  cosine, sine = rotary_angles(jnp.asarray(7), 2 * count, theta, scaling)
  amplitude = 0.1 * np.log(factor) + 1
  np.testing.assert_allclose(cosine, amplitude * np.cos(7 * expected), rtol=1e-5)
  np.testing.assert_allclose(sine, amplitude * np.sin(7 * expected), rtol=1e-5)
  assert 2 < np.sum((kept > 0) & (kept < 1)) < count - 2


def test_the_amplitude_of_yarn_is_given_or_follows_from_the_factor():
  assert layers.YarnScaling(4.0, 64, attention_factor=1.5, mscale=2.0, mscale_all_dim=1.0).amplitude == 1.5
  ratio = (0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1)
  assert layers.YarnScaling(4.0, 64, mscale=2.0, mscale_all_dim=1.0).amplitude == pytest.approx(ratio)
  assert layers.YarnScaling(4.0, 64, mscale=2.0).amplitude == pytest.approx(0.1 * np.log(4) + 1)
  assert layers.YarnScaling(0.5, 64).amplitude == 1.0


@pytest.mark.parametrize(('length', 'factors'), [(64, (1.0, 1.5, 2.0)), (65, (3.0, 5.0, 7.0))])
def test_longrope_divides_each_frequency_by_the_factor_of_the_length(length, factors):
  scaling = layers.LongRopeScaling((1.0, 1.5, 2.0), (3.0, 5.0, 7.0), original_positions=64, extension=8.0)
  cosine, sine = rotary_angles(jnp.asarray(11), 6, 50.0, scaling.at(length))
  angle = 11 * 50.0 ** (-np.arange(3) / 3) / np.asarray(factors)
  amplitude = np.sqrt(1 + np.log(8) / np.log(64))
  np.testing.assert_allclose(cosine, amplitude * np.cos(angle), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(sine, amplitude * np.sin(angle), rtol=1e-6, atol=1e-6)


def test_the_amplitude_of_longrope_is_given_or_follows_from_the_extension():
  factors = (1.0, 1.0)
  assert layers.LongRopeScaling(factors, factors, 64, 8.0, attention_factor=1.25).amplitude == 1.25
  assert layers.LongRopeScaling(factors, factors, 64, 1.0).amplitude == 1.0
