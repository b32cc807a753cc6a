"""Risk measures: what a random loss is worth to one who fears its tail, in one step and nested along tokens."""

from alignjax.risk.measures import RiskMeasure, cvar, entropic, expectation, mean_semideviation, worst_case
from alignjax.risk.nested import advantage, markov_value, path_value

MEASURES = {build.__name__: build for build in (cvar, entropic, expectation, mean_semideviation, worst_case)}
"""Every risk measure by the name under which expressions know it."""

__all__ = [
  'MEASURES',
  'RiskMeasure',
  'advantage',
  'cvar',
  'entropic',
  'expectation',
  'markov_value',
  'mean_semideviation',
  'path_value',
  'worst_case',
]
