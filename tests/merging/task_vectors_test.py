"""Task vectors: differences in float32, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import merging
from tests.merging import worlds


def test_task_vector_and_back():
  base, (model,) = worlds.family(1)
  vector = merging.task_vector(model, base)
  for name, leaf in worlds.leaves(vector).items():
    np.testing.assert_array_equal(leaf, worlds.leaves(model)[name] - worlds.leaves(base)[name])
  back = merging.apply(base, vector)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-7), back, model)
  away = merging.apply(base, vector, -1.0)
  jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a + b, 2 * c, rtol=0, atol=1e-6), away, model, base)
  jax.tree.map(np.testing.assert_array_equal, merging.apply(base, vector, 0.0), base)


def test_differences_of_halves_are_exact():
  model, base = {'w': jnp.asarray([258.0], jnp.bfloat16)}, {'w': jnp.asarray([0.0078125], jnp.bfloat16)}
  vector = merging.task_vector(model, base)['w']
  assert vector.dtype == jnp.float32
  assert float(vector[0]) == 257.9921875
  assert merging.apply(base, {'w': vector})['w'].dtype == jnp.bfloat16
  assert float(merging.apply(base, {'w': vector})['w'][0]) == 258.0


def test_different_trees_are_refused_by_name():
  with pytest.raises(ValueError, match=r'base has no parameter b'):
    merging.task_vector({'a': np.ones(2), 'b': np.ones(2)}, {'a': np.ones(2)})
  with pytest.raises(ValueError, match=r'vector: a has shape \(3,\), but the first model has \(2,\)'):
    merging.apply({'a': np.ones(2)}, {'a': np.ones(3)})
