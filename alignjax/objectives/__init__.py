"""Preference objectives: pure functions from token statistics to one loss per prompt, which add and scale."""

from alignjax.objectives.base import Memory, Objective
from alignjax.objectives.likelihood import sft
from alignjax.objectives.pairwise import dpo, hinge, ipo
from alignjax.objectives.reference_free import simpo

OBJECTIVES = {build.__name__: build for build in (dpo, hinge, ipo, sft, simpo)}
"""Every objective by the name under which expressions know it."""

__all__ = [
  'OBJECTIVES',
  'Memory',
  'Objective',
  'dpo',
  'hinge',
  'ipo',
  'sft',
  'simpo',
]
