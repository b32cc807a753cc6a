"""Adapters: the product against numpy, nothing changed at first, merging, and what they may be called."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import layers, lora, quantization, transformer
from tests.models import token_batches

LORA = lora.LoRA(rank=3, alpha=5.0)
MODEL = transformer.build(token_batches.CONFIG)


def _fields(batch):
  return batch.prompt, batch.prompt_length, batch.response, batch.response_length


@pytest.fixture(scope='module')
def base():
  return jax.tree.map(jnp.asarray, token_batches.params(MODEL))


@pytest.fixture(scope='module')
def adapters(base):
  """With neither factor 0."""
  rng = np.random.default_rng(3)
  like = jax.eval_shape(lambda key: lora.init(key, base, LORA), jax.random.key(0))
  return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), like)


@pytest.fixture(scope='module')
def first(base):
  """Adapters as a run begins with them."""
  return jax.jit(lambda key: lora.init(key, base, LORA))(jax.random.key(0))


merge = jax.jit(lora.merge, static_argnums=2)


def test_the_product_is_that_of_the_dense_kernel():
  rng = np.random.default_rng(0)
  x, kernel, a, b, bias = (rng.standard_normal(shape) for shape in ((5, 4, 8), (8, 6), (8, 2), (2, 6), (6,)))
  linear = layers.Linear(8, 6, jax.random.key(0), bias=True)
  linear.bias = nnx.Param(jnp.asarray(bias, jnp.float32))
  factors = (jnp.asarray(factor, jnp.float32) for factor in (kernel, a, b))
  linear.kernel = nnx.Param(lora.Adapted(*factors, scale=1.75))
  expected = x @ (kernel + 1.75 * a @ b) + bias
  np.testing.assert_allclose(linear(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-5)
  low = linear(jnp.asarray(x, jnp.bfloat16))
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(low, np.float64), expected, atol=0.03 * np.abs(expected).max())


def test_at_first_exactly_one_factor_is_zero(first):
  modules = [part for block in jax.device_get(first)['layers'].values() for part in block.values()]
  assert len(modules) == 7
  for factors in modules:
    assert factors.keys() == set(lora.FACTORS)
    assert not factors['lora_b'].any()
    a = np.asarray(factors['lora_a'])
    bound = a.shape[1] ** -0.5
    assert 0.8 * bound < np.abs(a).max() <= bound
    assert np.abs(a).min() > 0
    assert np.abs(a[0] - a[1]).max() > 0.1 * bound  # each layer has its own


def test_at_first_the_policy_is_its_base_exactly(base, first):
  policy = lora.bind(MODEL, base, LORA)
  batch = _fields(token_batches.batch(0, 6, 2, 5))
  found = jax.jit(policy.hidden)(first, *batch)
  np.testing.assert_array_equal(found, jax.jit(MODEL.hidden)(base, *batch))


@pytest.mark.slow  # on_policy_test.py draws from an adapted model, and adapters_test.py merges one
def test_the_merged_model_and_decoding_compute_what_the_adapted_one_does(base, adapters):
  quantised = quantization.quantize(base, 'nf4')
  batch = token_batches.batch(1, 6, 2, 5)
  policy, merged = lora.bind(MODEL, quantised, LORA), merge(quantised, adapters, LORA)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  valid = token_batches.valid(batch)
  found = np.asarray(jax.jit(policy.hidden)(adapters, *_fields(batch)))
  hidden = jax.jit(MODEL.hidden)
  np.testing.assert_allclose(found[valid], np.asarray(hidden(merged, *_fields(batch)))[valid], atol=1e-5)
  # The base is far from the adapted model, so the equality means something, and merging left it alone.
  assert np.abs(found - hidden(merge(quantised, {}, LORA), *_fields(batch)))[valid].max() > 0.5

  @jax.jit
  def decoded(adapters):
    cache = policy.prefill(adapters, batch.prompt, batch.prompt_length, samples=2, max_new_tokens=5)
    last = np.take_along_axis(batch.prompt, batch.prompt_length[:, None] - 1, axis=1)
    return policy.decode(adapters, cache, np.repeat(last, 2, 1))[1]

  np.testing.assert_allclose(decoded(adapters), found[:, :, 0], atol=1e-5)


def test_targets_name_parts_or_projections(base):
  def adapted(targets):
    tree = jax.eval_shape(lambda key: lora.init(key, base, lora.LoRA(targets=targets)), jax.random.key(0))
    return {f'{part}/{name}' for part, block in tree['layers'].items() for name in block}

  assert adapted('query + mlp/down') == {'attention/query', 'mlp/down'}
  assert adapted('mlp') == {'mlp/down', 'mlp/gate', 'mlp/up'}
  assert len(adapted('attention+query')) == 4
  with pytest.raises(ValueError, match='unembed is not a part of a layer; known: attention, attention/key'):
    adapted('query+unembed')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rank': 0}, 'rank=0'),
    ({'rank': 2.0}, 'rank=2.0'),
    ({'alpha': 0}, 'alpha=0'),
    ({'alpha': float('nan')}, 'alpha=nan'),
    ({'targets': ''}, "targets=''"),
    ({'targets': 'mlp+'}, r"targets='mlp\+'"),
  ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
  with pytest.raises(ValueError, match=message):
    lora.LoRA(**settings)
