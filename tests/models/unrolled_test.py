"""Parameters as decoding reads them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.models import transformer, transposed, unrolled
from tests.models import token_batches

CONFIG = dataclasses.replace(token_batches.CONFIG, compute_dtype='bfloat16')
MODEL = transformer.build(CONFIG)


def laid_out():
  params = token_batches.params(MODEL)
  return params, MODEL.lay_out(params)


def test_kernels_are_cast_and_transposed_layer_by_layer():
  params, found = laid_out()
  assert list(found['layers']) == list(range(CONFIG.layers))
  for number, layer in found['layers'].items():
    kernel = layer['attention']['query']['kernel']
    assert isinstance(kernel, transposed.Transposed)
    expected = params['layers']['attention']['query']['kernel'][number].T.astype(jnp.bfloat16)
    np.testing.assert_array_equal(kernel.array, expected)


def test_norms_keep_the_float32_that_training_gives_them():
  params, found = laid_out()
  scale = found['layers'][0]['mlp_norm']['scale']
  assert scale.dtype == jnp.float32
  np.testing.assert_array_equal(scale, params['layers']['mlp_norm']['scale'][0])


def test_laying_out_again_changes_nothing():
  _, found = laid_out()
  assert unrolled.lay_out(found, 'bfloat16') is found


def test_prefill_decode_and_head_read_both_forms():
  params, found = laid_out()
  batch = token_batches.batch(3, 4, 2, 3)

  @jax.jit
  def first(weights):
    cache = MODEL.prefill(weights, batch.prompt, batch.prompt_length, samples=2, max_new_tokens=3)
    return MODEL.decode(weights, cache, batch.response[:, :, 0])[1], MODEL.head(weights).kernel

  jax.tree.map(np.testing.assert_array_equal, first(found), first(params))
