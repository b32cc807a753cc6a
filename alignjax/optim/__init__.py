"""Optimizers that are no part of optax: online merging with a reference delta, and what it is compared with."""

from alignjax.optim.baselines import averaged, child_tuning, moving_average
from alignjax.optim.online_merging import OnlineMergeState, merge_metrics, online_dare, online_merge, online_ties
from alignjax.optim.recipes import TRANSFORMS, factory

__all__ = [
  'TRANSFORMS',
  'OnlineMergeState',
  'averaged',
  'child_tuning',
  'factory',
  'merge_metrics',
  'moving_average',
  'online_dare',
  'online_merge',
  'online_ties',
]
