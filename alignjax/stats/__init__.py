"""Statistics of tokens and responses, and how they are computed without holding logits for a whole batch."""

from alignjax.stats.behaviour import BEHAVIOUR_TOKEN_LOGP, behaviour_logp, behaviour_token_logp
from alignjax.stats.head import (
  HiddenStates,
  from_logits,
  log_probs,
  logits,
  missing_reference,
  reads_final,
  statistics,
)
from alignjax.stats.path import (
  Logits,
  PathStat,
  PathValue,
  Recursion,
  Step,
  VocabularyRecursion,
  nested_horizon,
  nested_risk,
)
from alignjax.stats.response import ResponseStat, final_states, last_state, reward, value
from alignjax.stats.table import Stat, StatTable
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
  'BEHAVIOUR_TOKEN_LOGP',
  'HiddenStates',
  'Logits',
  'PathStat',
  'PathValue',
  'Recursion',
  'ResponseStat',
  'Stat',
  'StatTable',
  'Step',
  'TokenStat',
  'VocabularyRecursion',
  'behaviour_logp',
  'behaviour_token_logp',
  'entropy',
  'final_states',
  'forward_kl',
  'from_logits',
  'last_state',
  'log_collision',
  'log_probs',
  'logits',
  'logp',
  'missing_reference',
  'nested_horizon',
  'nested_risk',
  'reads_final',
  'reference_logp',
  'reverse_kl',
  'reward',
  'risk_ratio',
  'statistics',
  'value',
]
