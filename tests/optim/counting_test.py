"""Sums over tensors, at once and in parts."""

import jax
import numpy as np
import pytest

from alignjax.optim import counting
from tests import quick

SHARES = (1.0, 0.5, 0.3, 0.01, 0.0)


SHAPES = [(7,), (70, 80, 3), (3, 840, 16), (1, 5), (2, 1500), (64, 3, 9)]


@pytest.mark.parametrize('cached', quick.first(1, [256, 2**19, 20]))
@pytest.mark.parametrize('shape', [*SHAPES[:3], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[3:])])
def test_counts_are_exact_and_totals_accurate(shape, cached, monkeypatch):
  monkeypatch.setattr(counting, '_CACHED', cached)
  rng = np.random.default_rng(4)
  x, y = rng.random(shape).astype(np.float32), rng.random(shape).astype(np.float32)
  axes = tuple(range(len(shape)))
  for axis_set in (axes, axes[1:]):
    limits = rng.random([1 if axis in axis_set else size for axis, size in enumerate(shape)]).astype(np.float32)

    def terms(x, y, limits=limits):
      return [x < share for share in SHARES] + [x < limits], [x * y, x + y]

    counts, totals = jax.jit(lambda x, y: counting.sums(terms, [x, y], axis_set))(x, y)  # noqa: B023
    for found, condition in zip(counts, [x < share for share in SHARES] + [x < limits], strict=True):
      np.testing.assert_array_equal(found, condition.sum(axis_set, keepdims=True))
    for found, value in zip(totals, (np.float64(x) * y, np.float64(x) + y), strict=True):
      np.testing.assert_allclose(found, value.sum(axis_set, keepdims=True), rtol=1e-6)


def test_a_large_tensor_is_divided_where_devices_may_hold_it():
  """Weights of usual shapes: enough parts for the cache, and 8 devices have equal shares of what is left."""
  for shape, axes in (
    ((49152, 576), (0, 1)),
    ((128256, 2048), (0, 1)),
    ((30, 576, 1536), (1, 2)),
    ((30, 1536, 576), (1, 2)),
    ((576, 192), (0, 1)),
  ):
    size = np.prod(shape)
    division = counting._division(shape, axes)
    if size <= counting._CACHED:
      assert division is None
    else:
      axis, parts = division
      assert axis in axes[:-1]
      assert counting._CACHED / 4 <= size / parts <= counting._CACHED
      assert shape[axis] % (8 * parts) == 0
  assert counting._division((2**20,), (0,)) is None
