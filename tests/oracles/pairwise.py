"""Oracles of `alignjax.objectives.pairwise`."""

import math

import numpy as np

from tests.oracles.data import Case, expected, log_sigmoid


def dpo(d, beta, label_smoothing=0.0):
  q = d.label * (1 - label_smoothing) + (1 - d.label) * label_smoothing
  return expected(lambda h: -log_sigmoid(beta * h), d.h, q)


def ipo(d, tau):
  return expected(lambda h: (h - 1 / (2 * tau)) ** 2, d.h, d.label)


def hinge(d, beta):
  return expected(lambda h: np.maximum(0, 1 - beta * h), d.h, d.label)


CASES = (
  Case('dpo()', lambda d, _: dpo(d, 0.1), at_reference=math.log(2)),
  Case('dpo(beta=0.5, label_smoothing=0.1)', lambda d, _: dpo(d, 0.5, 0.1), at_reference=math.log(2)),
  Case('ipo(tau=0.2)', lambda d, _: ipo(d, 0.2), at_reference=1 / (4 * 0.2**2)),
  Case('hinge(beta=0.3)', lambda d, _: hinge(d, 0.3), at_reference=1.0),
)
