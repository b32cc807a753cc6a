"""Judges of two responses to one prompt."""

from alignjax.judges.base import JUDGES, Compare, Judge, JudgeError, Pair, Verdicts, as_judge, factory, parse
from alignjax.judges.model import JudgeModel, judge

__all__ = [
  'JUDGES',
  'Compare',
  'Judge',
  'JudgeError',
  'JudgeModel',
  'Pair',
  'Verdicts',
  'as_judge',
  'factory',
  'judge',
  'parse',
]
