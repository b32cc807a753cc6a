"""Kernels in few bits: how far they are from what they were, where they stand, and how much memory they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import quantization, transformer
from tests.models import token_batches

LEVELS = (  # Dettmers et al. 2023, appendix E
  [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
  + [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
  + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)
KERNEL = np.random.default_rng(0).standard_normal((3, 128, 24)).astype(np.float32) * [[[0.02]], [[1.0]], [[5.0]]]


def _dense(kernel, kind):
  return np.asarray(quantization.dense(quantization.convert('layers/mlp/up/kernel', jnp.asarray(kernel), kind)))


def test_int8_rounds_to_255_steps_of_each_output():
  step = np.abs(KERNEL).max(axis=1, keepdims=True) / 127.5
  error = np.abs(_dense(KERNEL, 'int8') - KERNEL)
  assert (error <= 0.5001 * step).all()
  assert error.max() > 0.4 * step.max()  # it does round


def test_nf4_takes_the_nearest_level_of_each_64_inputs():
  kernel = KERNEL.reshape(3, 2, 64, 24)
  scale = np.abs(kernel).max(axis=2, keepdims=True)
  nearest = np.abs(kernel[..., None] / scale[..., None] - np.array(LEVELS)).argmin(axis=-1)
  expected = (np.array(LEVELS)[nearest] * scale).reshape(KERNEL.shape)
  found = _dense(KERNEL, 'nf4')
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert (np.abs(found - KERNEL).reshape(kernel.shape) <= 0.152 * scale).all()


def test_where_64_do_not_divide_the_inputs_fewer_share_a_scale():
  kernel = quantization.convert('layers/mlp/up/kernel', jnp.asarray(KERNEL[:, :72]), 'nf4')
  assert kernel.array.scale.shape == (3, 9, 24)
  assert kernel.shape == (3, 72, 24)


def test_kernels_of_layers_and_nothing_else_are_quantised():
  model = transformer.build(token_batches.CONFIG)
  params = token_batches.params(model)
  quantised = quantization.quantize(params, 'int8')
  assert quantised['embed']['embedding'] is params['embed']['embedding']
  assert quantised['layers']['mlp_norm']['scale'] is params['layers']['mlp_norm']['scale']
  kernels = [part['kernel'] for name in ('attention', 'mlp') for part in quantised['layers'][name].values()]
  assert len(kernels) == 7
  assert all(isinstance(kernel, quantization.Quantized) for kernel in kernels)


@pytest.mark.parametrize(('kind', 'bits'), [('int8', 8 + 32 / 128), ('nf4', 4 + 32 / 64)])
def test_memory_on_the_device(kind, bits):
  kernel = quantization.convert('layers/mlp/up/kernel', jnp.asarray(KERNEL), kind)
  program = jax.jit(quantization.dense).lower(kernel).compile()
  assert program.memory_analysis().argument_size_in_bytes == KERNEL.size * bits / 8


def test_the_backward_pass_keeps_no_dense_kernel():
  kernel = quantization.convert('layers/mlp/up/kernel', jnp.asarray(KERNEL), 'int8')
  x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 128)), jnp.float32)

  def product(x, kernel):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel) @ jnp.ones((24, 128)), None), x, kernel)[0]

  found, pullback = jax.vjp(lambda x: product(x, kernel), x)
  expected, dense_pullback = jax.vjp(lambda x: product(x, quantization.dense(kernel)), x)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(*(back(jnp.ones(x.shape))[0] for back in (pullback, dense_pullback)), rtol=1e-4, atol=1e-5)
  kept, dense = (sum(leaf.nbytes for leaf in jax.tree.leaves(back)) for back in (pullback, dense_pullback))
  assert kept < dense - 4 * KERNEL.size / 2


def test_another_kind_is_refused():
  with pytest.raises(ValueError, match="kind='int3' is not one of int8, nf4"):
    quantization.convert('layers/mlp/up/kernel', KERNEL, 'int3')
