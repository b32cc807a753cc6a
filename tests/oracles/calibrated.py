"""Oracles of `alignjax.objectives.calibrated`."""

import math

from tests.oracles.data import Case, log_sigmoid, sigmoid


def swapped(loss, d):
  """The loss of (rho_w, rho_l) in expectation over which response is preferred."""
  a, b = d.rho[:, 0], d.rho[:, 1]
  return d.label * loss(a, b) + (1 - d.label) * loss(b, a)


def nca(d, beta):
  return swapped(
    lambda good, bad: -log_sigmoid(beta * good) - 0.5 * log_sigmoid(-beta * good) - 0.5 * log_sigmoid(-beta * bad),
    d,
  )


def bco_pair(d, beta):
  return swapped(lambda good, bad: -log_sigmoid(beta * good) - log_sigmoid(-beta * bad), d)


def sppo(d, beta):
  return swapped(lambda good, bad: (good - 1 / (2 * beta)) ** 2 + (bad + 1 / (2 * beta)) ** 2, d)


def apo_zero(d, beta):
  return swapped(lambda good, bad: 1 - sigmoid(beta * good) + sigmoid(beta * bad), d)


def apo_down(d, beta):
  return swapped(lambda good, bad: sigmoid(beta * good) + 1 - sigmoid(beta * (good - bad)), d)


def cal_dpo(d, beta, weight):
  def loss(good, bad):
    return -log_sigmoid(good - bad) + weight * ((good - 1 / (2 * beta)) ** 2 + (bad + 1 / (2 * beta)) ** 2)

  return swapped(loss, d)


def c2_dpo(d, beta, weight):
  return swapped(lambda good, bad: -log_sigmoid(beta * (good - bad)) + weight * (good + bad) ** 2, d)


CASES = (
  Case('nca()', lambda d, _: nca(d, 0.01), at_reference=2 * math.log(2)),
  Case('nca(beta=0.4)', lambda d, _: nca(d, 0.4), at_reference=2 * math.log(2)),
  Case('bco_pair(beta=0.3)', lambda d, _: bco_pair(d, 0.3), at_reference=2 * math.log(2)),
  Case('sppo()', lambda d, _: sppo(d, 0.001), at_reference=1 / (2 * 0.001**2)),
  Case('sppo(beta=0.2)', lambda d, _: sppo(d, 0.2), at_reference=1 / (2 * 0.2**2)),
  Case('apo_zero(beta=0.3)', lambda d, _: apo_zero(d, 0.3), at_reference=1.0),
  Case('apo_down(beta=0.3)', lambda d, _: apo_down(d, 0.3), at_reference=1.0),
  Case(
    'cal_dpo(beta=0.25, weight=0.5)',
    lambda d, _: cal_dpo(d, 0.25, 0.5),
    at_reference=math.log(2) + 0.5 / (2 * 0.25**2),
  ),
  Case('c2_dpo(beta=0.3, weight=0.05)', lambda d, _: c2_dpo(d, 0.3, 0.05), at_reference=math.log(2)),
)
