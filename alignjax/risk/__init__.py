"""Risk measures of a random loss, for one step and nested along the tokens of a response."""

from alignjax.risk.measures import Raised, RiskMeasure, cvar, entropic, expectation, mean_semideviation, worst_case
from alignjax.risk.nested import advantage, markov_value, path_value, raise_one, require_share

MEASURES = {build.__name__: build for build in (cvar, entropic, expectation, mean_semideviation, worst_case)}
"""Every risk measure by its name in expressions."""

__all__ = [
  'MEASURES',
  'Raised',
  'RiskMeasure',
  'advantage',
  'cvar',
  'entropic',
  'expectation',
  'markov_value',
  'mean_semideviation',
  'path_value',
  'raise_one',
  'require_share',
  'worst_case',
]
