"""Oracles of `alignjax.objectives.token_level`."""

import math

import numpy as np

from tests.oracles import risk
from tests.oracles.data import Case, log_sigmoid


def drift(d):
  return d.reference - d.policy


def sequential(measure, aggregate='sum'):
  """[B, 2] of data: a one-step measure (drift [V], p [V]) aggregated over the tokens of a response."""

  def of(d):
    tokens = risk.along_last_axis(measure, drift(d), np.exp(d.reference))
    if aggregate == 'sum':
      return d.token_sum(tokens)
    if aggregate == 'mean':
      return d.token_sum(tokens) / d.length
    return np.where(d.mask, tokens, -np.inf).max(-1)

  return of


def released(confidence, split):
  def one(z, p):
    total = 0.0
    half = len(z) // 2
    for part in (slice(0, half), slice(half, None)) if split else (slice(None),):
      threshold = np.quantile(z[part], 1 - confidence)
      total += np.sum((p[part] * z[part])[z[part] > threshold])
    return total

  return sequential(one)


def loss(d, frozen, ratio, beta, alpha, variant):
  k, fixed = ratio(d), ratio(frozen)
  result = np.zeros(len(d.label))
  for w, l, q in ((0, 1, d.label), (1, 0, 1 - d.label)):
    h = d.rho[:, w] - d.rho[:, l]
    logit = h - (k[:, l] - k[:, w]) if variant == 1 else h - alpha * (k[:, l] - fixed[:, w])
    result -= q * log_sigmoid(beta * logit)
  return result


def _case(expression, ratio, beta=0.1, alpha=0.5, variant=2):
  return Case(expression, lambda d, f: loss(d, f, ratio, beta, alpha, variant), at_reference=math.log(2))


def _cvar(level, tail='upper'):
  return lambda z, p: risk.cvar(z, p, level, tail)


CASES = (
  _case('tdpo()', sequential(risk.expectation)),
  _case('tdpo(beta=0.4, variant=1)', sequential(risk.expectation), beta=0.4, variant=1),
  _case('ra_dpo()', sequential(_cvar(0.97))),
  _case('ra_dpo(risk=cvar(0.5), beta=0.2, alpha=1.5)', sequential(_cvar(0.5)), 0.2, 1.5),
  _case("ra_dpo(risk=cvar(0.3, tail='lower'), variant=1)", sequential(_cvar(0.3, 'lower')), variant=1),
  _case('ra_dpo(risk=entropic(0.5), variant=1)', sequential(lambda z, p: risk.entropic(z, p, 0.5)), variant=1),
  _case('ra_dpo(risk=entropic(5.0), alpha=0.3)', sequential(lambda z, p: risk.entropic(z, p, 5.0)), alpha=0.3),
  _case('ra_dpo(risk=worst_case())', sequential(risk.worst_case)),
  _case('ra_dpo(risk=mean_semideviation(0.5))', sequential(lambda z, p: risk.mean_semideviation(z, p, 0.5))),
  _case("ra_dpo(risk=cvar(0.5), aggregate='mean')", sequential(_cvar(0.5), 'mean')),
  _case("ra_dpo(risk=cvar(0.5), aggregate='max')", sequential(_cvar(0.5), 'max')),
  _case('ra_dpo_released()', released(0.95, True), variant=1),
  _case(
    'ra_dpo_released(confidence=0.6, split_vocabulary=False, beta=0.3, alpha=0.7, variant=2)',
    released(0.6, False),
    0.3,
    0.7,
  ),
)
