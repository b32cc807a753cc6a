"""Files of public benchmarks: answers for their judges, and the verdicts of these judges."""

from alignjax.evaluation.benchmarks import alpaca_eval, arena_hard, mt_bench

__all__ = [
  'alpaca_eval',
  'arena_hard',
  'mt_bench',
]
