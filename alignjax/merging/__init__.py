"""Merging of models: pure functions on parameter trees, which also run tensor by tensor over files of any size.

merged = merge(ties(density=0.5), [helpful, harmless], base, weights=[0.7, 0.3])
"""

from alignjax.merging.base import Block, Method, Tensor, merge, rows_and_columns
from alignjax.merging.offline import (
  breadcrumbs,
  dare,
  della,
  linear,
  model_stock,
  slerp,
  task_arithmetic,
  ties,
)
from alignjax.merging.per_tensor import setting
from alignjax.merging.registered import METHODS, factory
from alignjax.merging.task_vectors import apply, task_vector

__all__ = [
  'METHODS',
  'Block',
  'Method',
  'Tensor',
  'apply',
  'breadcrumbs',
  'dare',
  'della',
  'factory',
  'linear',
  'merge',
  'model_stock',
  'rows_and_columns',
  'setting',
  'slerp',
  'task_arithmetic',
  'task_vector',
  'ties',
]
