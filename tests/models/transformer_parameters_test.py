"""The parameters of the decoder: their names, shapes and first values."""

import dataclasses

import jax
import numpy as np

from alignjax.models import transformer
from tests.models.token_batches import CONFIG, FAMILY, GPT


def _model(**changes):
  return transformer.build(dataclasses.replace(CONFIG, **changes))


def test_parameters_have_the_documented_layout():
  shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(_model(tied_embeddings=False).init, jax.random.key(0)))
  c, depth = CONFIG, CONFIG.layers
  query, keys = c.heads * c.head_width, c.kv_heads * c.head_width
  assert shapes == {
    'embed': {'embedding': (c.vocab_size, c.width)},
    'layers': {
      'attention_norm': {'scale': (depth, c.width)},
      'mlp_norm': {'scale': (depth, c.width)},
      'attention': {
        'query': {'kernel': (depth, c.width, query)},
        'key': {'kernel': (depth, c.width, keys)},
        'value': {'kernel': (depth, c.width, keys)},
        'output': {'kernel': (depth, query, c.width)},
      },
      'mlp': {
        'gate': {'kernel': (depth, c.width, c.mlp_width)},
        'up': {'kernel': (depth, c.width, c.mlp_width)},
        'down': {'kernel': (depth, c.mlp_width, c.width)},
      },
    },
    'final_norm': {'scale': (c.width,)},
    'unembed': {'kernel': (c.width, c.vocab_size)},
  }


def test_biases_and_norms_of_heads_start_out_neutral():
  def neutral(key):
    """Without the kernels, whose random draws the compiler then leaves out."""
    attention = _model(**FAMILY).init(key)['layers']['attention']
    return {
      part: {name: leaf for name, leaf in leaves.items() if name != 'kernel'} for part, leaves in attention.items()
    }

  params = jax.eval_shape(_model().init, jax.random.key(0))['layers']['attention']
  added = jax.jit(neutral)(jax.random.key(0))
  assert added.keys() - params.keys() == {'query_norm', 'key_norm'}
  for name, heads in (('query', CONFIG.heads), ('key', CONFIG.kv_heads), ('value', CONFIG.kv_heads)):
    np.testing.assert_array_equal(added[name]['bias'], np.zeros((CONFIG.layers, heads * CONFIG.head_width)))
  for name in ('query_norm', 'key_norm'):
    np.testing.assert_array_equal(added[name]['scale'], np.zeros((CONFIG.layers, CONFIG.head_width)))
  np.testing.assert_array_equal(added['output']['bias'], np.zeros((CONFIG.layers, CONFIG.width)))


def test_another_kind_of_family_has_other_parameters():
  params = jax.tree.map(lambda x: x.shape, jax.eval_shape(_model(**GPT).init, jax.random.key(0)))
  c, depth = CONFIG, CONFIG.layers
  query, keys = c.heads * c.head_width, c.kv_heads * c.head_width
  norm = {'scale': (depth, c.width), 'bias': (depth, c.width)}
  assert params['positions'] == {'embedding': (c.max_positions, c.width)}
  assert params['final_norm'] == {'scale': (c.width,), 'bias': (c.width,)}
  assert params['layers'].keys() == {'attention', 'attention_output_norm', 'mlp', 'mlp_output_norm'}
  assert params['layers']['mlp_output_norm'] == norm
  assert params['layers']['mlp'].keys() == {'up', 'down'}
  assert params['layers']['attention']['query_norm'] == {'scale': (depth, query), 'bias': (depth, query)}
  assert params['layers']['attention']['key_norm'] == {'scale': (depth, keys), 'bias': (depth, keys)}


def test_init_is_float32_different_in_every_layer_and_keeps_the_size_of_what_it_multiplies():
  model = _model(tied_embeddings=False, compute_dtype='bfloat16')
  params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  assert 'unembed' not in jax.eval_shape(_model().init, jax.random.key(0))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key == 'scale':
      np.testing.assert_array_equal(leaf, 1.0)
    elif path[-1].key == 'kernel':
      np.testing.assert_allclose(np.std(leaf) * leaf.shape[-2] ** 0.5, 1.0, rtol=0.15)
      assert leaf.ndim == 2 or np.abs(leaf[0] - leaf[1]).max() > 0.1
