"""Every case of every family: what the oracle tests and the contract run over."""

import inspect

from alignjax import objectives
from tests.oracles import (
  adaptive,
  batchwise,
  calibrated,
  distillation,
  distribution,
  divergences,
  lengths,
  margins,
  on_policy,
  pairwise,
  reference_free,
  reward_modelling,
  token_level,
  unpaired,
  weighting,
)
from tests.oracles.data import Case

FAMILIES = (
  adaptive,
  batchwise,
  calibrated,
  distillation,
  distribution,
  divergences,
  lengths,
  margins,
  on_policy,
  pairwise,
  reference_free,
  reward_modelling,
  token_level,
  unpaired,
  weighting,
)

COMPOSED = (
  Case(
    'dpo(beta=0.1) - 0.5 * ipo(tau=0.3) / 2',
    lambda d, _: pairwise.dpo(d, 0.1) - 0.25 * pairwise.ipo(d, 0.3),
  ),
  Case(
    'dpo(beta=0.1) + schedule(start=0.5, end=0.0, steps=10) * sft()',
    lambda d, _: pairwise.dpo(d, 0.1) + 0.5 * reference_free.sft(d),
  ),
  Case(
    'dpo(beta=0.05) + 0.00025 * sft(mean=False)',
    lambda d, _: pairwise.dpo(d, 0.05) + 0.05 * 0.005 * reference_free.sft_of_sums(d),
  ),
  Case(
    'bradley_terry() + 0.01 * sft()',
    lambda d, _: reward_modelling.bradley_terry(d) + 0.01 * reference_free.sft(d),
  ),
  Case('dpo(beta=0.1) + 0.1 * sft()', lambda d, _: pairwise.dpo(d, 0.1) + 0.1 * reference_free.sft(d)),
  Case(
    'simpo(beta=2.0, gamma=1.0) + 2 * (sft() + dpo())',
    lambda d, _: reference_free.simpo(d, 2.0, 1.0) + 2 * (reference_free.sft(d) + pairwise.dpo(d, 0.1)),
  ),
)

CASES = (*(case for family in FAMILIES for case in family.CASES), *COMPOSED)


def module_of(case: Case) -> str:
  return inspect.unwrap(objectives.OBJECTIVES[case.expression.split('(')[0]]).__module__


# What is quick: cheap tests run for an objective each, costly ones for a module of objectives each.
FIRST = tuple({case.expression.split('(')[0]: case for case in reversed(CASES)}.values())
FIRST_OF_MODULES = tuple({module_of(case): case for case in reversed(FIRST)}.values())
