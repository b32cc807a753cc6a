"""Preference objectives: pure functions from statistics to one loss per prompt, which add and scale."""

from alignjax import expressions, risk
from alignjax.objectives.adaptive import alpha_dpo, alpha_dpo_released, beta_dpo
from alignjax.objectives.base import (
  OBJECTIVES,
  Memory,
  Objective,
  Part,
  factory,
  require,
  require_pair,
  require_score,
)
from alignjax.objectives.batchwise import aot, aot_unpaired, dr_dpo
from alignjax.objectives.calibrated import apo_down, apo_zero, bco_pair, c2_dpo, cal_dpo, nca, sppo
from alignjax.objectives.clipped import clipped_policy_gradient
from alignjax.objectives.coupling import couples
from alignjax.objectives.declarations import ResponsesError, check_batch
from alignjax.objectives.distillation import distil
from alignjax.objectives.distribution import pmle, preference_distillation, rebel
from alignjax.objectives.divergences import alpha_divergence_dpo, chi_po, forward_kl_dpo, jensen_shannon_dpo
from alignjax.objectives.lengths import dpo_norm, ld_dpo, r_dpo, sampo
from alignjax.objectives.likelihood import sft
from alignjax.objectives.margin_shapes import exponential_po, savage_po, spo, truncated_quadratic_po
from alignjax.objectives.margins import bpo, dpo_shift, dpop, h_dpo, minor_dpo, mmpo, odpo
from alignjax.objectives.on_policy import kl_penalty, reverse_kl, rlhf
from alignjax.objectives.pairwise import discopop, dpo, exo, focal_po, hinge, ipo, robust_dpo
from alignjax.objectives.reference_free import alpha_po, cpo, orpo, repo, rrhf, simper, simpo, slic_hf
from alignjax.objectives.reward_modelling import all_pairs, bradley_terry, plackett_luce, reward_regression
from alignjax.objectives.schedules import Schedule, schedule
from alignjax.objectives.token_level import ra_dpo, ra_dpo_released, tdpo
from alignjax.objectives.unpaired import bco, kto
from alignjax.objectives.weighting import importance_weighted, wpo_weighted


def parse(text: str) -> Objective:
  """Reads an objective from its expression, such as `'simpo(beta=2.0) + 0.1 * sft()'`.

  Args:
    text: calls of the factories in `OBJECTIVES`, joined by `+` and `-`, and scaled by `number *`, `schedule(...) *` or
      `/ number`. Arguments are literals, other objectives and calls of the risk measures in `alignjax.risk.MEASURES`.

  Raises:
    ExpressionError: if the text is anything else. The message points at the place, explains it and lists the known
      objectives.
  """
  known = {'objectives': OBJECTIVES, 'risk measures': risk.MEASURES, 'coefficients': {'schedule': schedule}}
  return expressions.parse(text, Objective, 'an objective', known, coefficients=(Schedule,))


__all__ = [
  'OBJECTIVES',
  'Memory',
  'Objective',
  'Part',
  'ResponsesError',
  'Schedule',
  'all_pairs',
  'alpha_divergence_dpo',
  'alpha_dpo',
  'alpha_dpo_released',
  'alpha_po',
  'aot',
  'aot_unpaired',
  'apo_down',
  'apo_zero',
  'bco',
  'bco_pair',
  'beta_dpo',
  'bpo',
  'bradley_terry',
  'c2_dpo',
  'cal_dpo',
  'check_batch',
  'chi_po',
  'clipped_policy_gradient',
  'couples',
  'cpo',
  'discopop',
  'distil',
  'dpo',
  'dpo_norm',
  'dpo_shift',
  'dpop',
  'dr_dpo',
  'exo',
  'exponential_po',
  'factory',
  'focal_po',
  'forward_kl_dpo',
  'h_dpo',
  'hinge',
  'importance_weighted',
  'ipo',
  'jensen_shannon_dpo',
  'kl_penalty',
  'kto',
  'ld_dpo',
  'minor_dpo',
  'mmpo',
  'nca',
  'odpo',
  'orpo',
  'parse',
  'plackett_luce',
  'pmle',
  'preference_distillation',
  'r_dpo',
  'ra_dpo',
  'ra_dpo_released',
  'rebel',
  'repo',
  'require',
  'require_pair',
  'require_score',
  'reverse_kl',
  'reward_regression',
  'rlhf',
  'robust_dpo',
  'rrhf',
  'sampo',
  'savage_po',
  'schedule',
  'sft',
  'simper',
  'simpo',
  'slic_hf',
  'spo',
  'sppo',
  'tdpo',
  'truncated_quadratic_po',
  'wpo_weighted',
]
