"""Risk measures of a random loss, for one step and nested along the tokens of a response."""

from alignjax.risk.measures import RiskMeasure, cvar, entropic, expectation, mean_semideviation, worst_case
from alignjax.risk.nested import advantage, markov_value, path_value

MEASURES = {build.__name__: build for build in (cvar, entropic, expectation, mean_semideviation, worst_case)}
"""Every risk measure by its name in expressions."""

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
