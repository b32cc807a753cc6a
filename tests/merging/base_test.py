"""The frame of all methods: names, types, and what cannot be merged."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alignjax import merging
from alignjax.merging import base as base_lib
from alignjax.run import merge_folders
from tests.merging import worlds

BASE, MODELS = worlds.family(2)


@pytest.mark.parametrize('name', sorted(merging.METHODS))
def test_the_name_of_a_method_builds_it_again(name):
  method = merging.METHODS[name]()
  assert method.name.startswith(f'{name}(')
  again = merge_folders.parse_method(method.name)
  assert again.name == method.name
  assert again.settings == method.settings


@pytest.mark.slow  # equal settings, above, and offline_test.py gives each method its settings
@pytest.mark.parametrize('name', sorted(merging.METHODS))
def test_the_name_of_a_method_builds_one_that_merges_alike(name):
  method = merging.METHODS[name]()
  again = merge_folders.parse_method(method.name)
  origin, *models = ({'scale': params['scale']} for params in (BASE, *MODELS))  # a program for each shape of a tensor
  origin = origin if method.needs_base else None
  jax.tree.map(np.testing.assert_array_equal, *(merging.merge(m, models, origin) for m in (method, again)))


def test_names_hold_settings_of_any_form():
  method = merging.breadcrumbs({'*norm*': 1, '*': [0.5, 0.6]}, 0.1, 'ties')
  text = "breadcrumbs(density='*norm*=1.0; *=0.5,0.6', gamma=0.1, consensus='ties', normalize=False, scale=1.0)"
  assert str(method) == text
  assert merge_folders.parse_method(text).settings == method.settings


def test_halves_are_merged_in_float32():
  base, models = jnp.full(3, 256.0), [jnp.full(3, 257.0), jnp.full(3, 258.0)]
  halves = [{'w': model.astype(jnp.bfloat16)} for model in models]  # 257 rounds to 256 in bfloat16
  merged = merging.merge(merging.linear(), halves, weights=[1.0, 3.0])['w']
  assert merged.dtype == jnp.bfloat16
  np.testing.assert_array_equal(merged, jnp.full(3, 257.5, jnp.bfloat16))
  wide = merging.merge(merging.linear(), halves, weights=[1.0, 3.0], dtype=jnp.float32)['w']
  assert wide.dtype == jnp.float32
  np.testing.assert_array_equal(wide, np.full(3, 257.5))
  mixed = merging.merge(merging.task_arithmetic(), [{'w': models[0]}, halves[1]], {'w': base})['w']
  assert mixed.dtype == jnp.float32
  np.testing.assert_array_equal(mixed, np.full(3, 259.0))


def test_types_of_leaves_are_kept_one_by_one():
  model = {'a': np.ones(2, np.float16), 'b': np.ones((), np.float32), 'c': np.ones(2, ml_dtypes.bfloat16)}
  merged = merging.merge(merging.linear(), [model, model])
  assert {name: leaf.dtype.name for name, leaf in merged.items()} == {'a': 'float16', 'b': 'float32', 'c': 'bfloat16'}
  assert merged['b'].shape == ()


@pytest.mark.slow
def test_merging_works_inside_a_compiled_function():
  method = merging.dare(0.5, rescale='l1', consensus='ties')
  base, *models = ({name: params[name] for name in ('embed', 'scale')} for params in (BASE, *MODELS))
  outside = merging.merge(method, models, base)
  inside = jax.jit(lambda models, base: merging.merge(method, models, base))(models, base)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=5e-6), inside, outside)


def without(params, *path):
  node, copy = {}, dict(params)
  node = copy
  for key in path[:-1]:
    node[key] = dict(node[key])
    node = node[key]
  del node[path[-1]]
  return copy


@pytest.mark.parametrize(
  ('method', 'models', 'base', 'weights', 'says'),
  [
    (merging.linear(), [], None, None, r'linear\(normalize=True\): there is no model to merge'),
    (merging.linear(), MODELS, BASE, None, r'linear\(.*\) takes no base model; list it among the models'),
    (merging.ties(), MODELS, None, None, r'ties\(.*\) merges differences from a base model: .*--base'),
    (merging.slerp(), MODELS[:1], None, None, r'slerp\(t=0.5\) merges 2 models, got 1'),
    (merging.slerp(), MODELS * 2, None, None, r'slerp\(t=0.5\) merges 2 models, got 4'),
    (merging.slerp(), MODELS, None, 0.5, r'slerp\(t=0.5\) takes no weights'),
    (merging.model_stock(), MODELS[:1], BASE, None, r'model_stock\(\) merges at least 2 models, got 1'),
    (
      merging.linear(),
      [BASE, without(BASE, 'layers', 'attention')],
      None,
      None,
      'model 1 has no parameter layers/attention',
    ),
    (merging.linear(), [without(BASE, 'embed'), BASE], None, None, 'model 1 has an additional parameter embed'),
    (merging.ties(), [BASE], without(BASE, 'scale'), None, 'base has no parameter scale'),
    (
      merging.linear(),
      [BASE, {**BASE, 'scale': np.ones(3)}],
      None,
      None,
      r'model 1: scale has shape \(3,\), but the first model has \(16,\)',
    ),
    (merging.linear(), [{'w': np.ones(2, np.int32)}], None, None, 'parameter w: only floating types are merged'),
    (merging.linear(), [{'w': np.ones((0, 2), np.float32)}], None, None, 'tensor w: 0 x 2 entries cannot be merged'),
  ],
)
def test_what_cannot_be_merged_is_refused_by_name(method, models, base, weights, says):
  with pytest.raises(ValueError, match=says):
    merging.merge(method, models, base, weights=weights)


def test_tensors_too_large_to_count_are_refused():
  with pytest.raises(ValueError, match='tensor w: 65536 x 65536 entries cannot be merged'):
    base_lib.Tensor('w', 2**16, 2**16, list)
