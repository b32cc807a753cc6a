"""Token statistics: what they are, and how they are computed without holding logits for a whole batch."""

from alignjax.stats.head import HiddenStates, from_logits, log_probs, logits, missing_reference, statistics
from alignjax.stats.table import StatTable
from alignjax.stats.token import (
  TokenStat,
  entropy,
  forward_kl,
  log_collision,
  logp,
  reference_logp,
  reverse_kl,
  risk_ratio,
)

__all__ = [
  'HiddenStates',
  'StatTable',
  'TokenStat',
  'entropy',
  'forward_kl',
  'from_logits',
  'log_collision',
  'log_probs',
  'logits',
  'logp',
  'missing_reference',
  'reference_logp',
  'reverse_kl',
  'risk_ratio',
  'statistics',
]
