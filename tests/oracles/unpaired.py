"""Oracles of `alignjax.objectives.unpaired`."""

import math

import numpy as np

from tests.oracles.data import Case, log_sigmoid, sigmoid


def desirable(d):
  return np.stack([d.label, 1 - d.label], 1)[:, : d.rho.shape[1]]


def kto(live, frozen, beta, good_weight, bad_weight):
  z = max(0.0, np.average(beta * frozen.rho.mean(1), weights=frozen.weight))
  value = good_weight * (1 - sigmoid(beta * live.rho - z)), bad_weight * (1 - sigmoid(z - beta * live.rho))
  p = desirable(live)
  return (p * value[0] + (1 - p) * value[1]).mean(1)


def bco(live, frozen, beta):
  p, r = desirable(frozen), beta * frozen.rho
  w = np.repeat(frozen.weight[:, None], r.shape[1], 1)
  delta = 0.5 * np.average(r, weights=w * p) + 0.5 * np.average(r, weights=w * (1 - p))
  shifted = beta * live.rho - delta
  return (-p * log_sigmoid(shifted) - (1 - p) * log_sigmoid(-shifted)).mean(1)


CASES = (
  Case('kto()', lambda d, f: kto(d, f, 0.1, 1, 1), at_reference=0.5),
  Case(
    'kto(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)',
    lambda d, f: kto(d, f, 0.3, 1.5, 0.5),
    at_reference=0.5,
  ),
  Case(
    'kto(beta=0.2, desirable_weight=2.0, undesirable_weight=0.7)',
    lambda d, f: kto(d, f, 0.2, 2.0, 0.7),
    responses=1,
    at_reference=1.0,
  ),
  Case('bco(beta=0.3)', lambda d, f: bco(d, f, 0.3), at_reference=math.log(2)),
  Case('bco(beta=0.2, momentum=0.9)', lambda d, f: bco(d, f, 0.2), responses=1, at_reference=math.log(2)),
)
