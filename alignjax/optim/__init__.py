"""Optimizers beyond optax: online merging with a reference delta, and its baselines."""

from alignjax.optim.baselines import averaged, child_tuning, moving_average
from alignjax.optim.online_merging import OnlineMergeState, merge_metrics, online_dare, online_merge, online_ties

TRANSFORMS = {build.__name__: build for build in (child_tuning, moving_average, online_dare, online_merge, online_ties)}
"""Every transform, by its name in expressions."""

__all__ = [
  'TRANSFORMS',
  'OnlineMergeState',
  'averaged',
  'child_tuning',
  'merge_metrics',
  'moving_average',
  'online_dare',
  'online_merge',
  'online_ties',
]
