"""Oracles of `alignjax.objectives.pairwise` and `margin_shapes`."""

import math

import numpy as np

from tests.oracles.data import Case, expected, log_sigmoid, sigmoid


def dpo(d, beta, label_smoothing=0.0):
  q = d.label * (1 - label_smoothing) + (1 - d.label) * label_smoothing
  return expected(lambda h: -log_sigmoid(beta * h), d.h, q)


def ipo(d, tau):
  return expected(lambda h: (h - 1 / (2 * tau)) ** 2, d.h, d.label)


def ipo_of_means(d, tau):
  """With h = rho(y_w) / |y_w| - rho(y_l) / |y_l|."""
  mean = d.rho / d.length
  return expected(lambda h: (h - 1 / (2 * tau)) ** 2, mean[:, 0] - mean[:, 1], d.label)


def hinge(d, beta):
  return expected(lambda h: np.maximum(0, 1 - beta * h), d.h, d.label)


def robust_dpo(d, beta, label_smoothing):
  def loss(h):
    clean, flipped = -log_sigmoid(beta * h), -log_sigmoid(-beta * h)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)

  return expected(loss, d.h, d.label)


def exo(d, beta, label_smoothing):
  def loss(h):
    log_policy = np.stack([log_sigmoid(beta * h), log_sigmoid(-beta * h)])
    log_target = np.log([[1 - label_smoothing], [label_smoothing]])
    return np.sum(np.exp(log_policy) * (log_policy - log_target), axis=0)

  return expected(loss, d.h, d.label)


def discopop(d, beta, temperature):
  def loss(h):
    modulation = sigmoid(beta * h / temperature)
    return (1 - modulation) * -log_sigmoid(beta * h) + modulation * np.exp(-beta * h)

  return expected(loss, d.h, d.label)


def focal_po(d, beta, gamma):
  return expected(lambda h: -(sigmoid(beta * h) ** gamma) * log_sigmoid(beta * h), d.h, d.label)


def spo(d, beta):
  return expected(lambda h: -beta * h * sigmoid(-beta * h), d.h, d.label)


def exponential_po(d, beta):
  return expected(lambda h: np.exp(-beta * h), d.h, d.label)


def truncated_quadratic_po(d, beta):
  return expected(lambda h: np.maximum(0, 1 - beta * h) ** 2, d.h, d.label)


def savage_po(d, beta):
  return expected(lambda h: 1 / (1 + np.exp(beta * h)) ** 2, d.h, d.label)


CASES = (
  Case('dpo()', lambda d, _: dpo(d, 0.1), at_reference=math.log(2)),
  Case('dpo(beta=0.5, label_smoothing=0.1)', lambda d, _: dpo(d, 0.5, 0.1), at_reference=math.log(2)),
  Case('ipo(tau=0.2)', lambda d, _: ipo(d, 0.2), at_reference=1 / (4 * 0.2**2)),
  Case('ipo(tau=0.4, length_normalised=True)', lambda d, _: ipo_of_means(d, 0.4), at_reference=1 / (4 * 0.4**2)),
  Case('hinge(beta=0.3)', lambda d, _: hinge(d, 0.3), at_reference=1.0),
  Case('robust_dpo()', lambda d, _: robust_dpo(d, 0.1, 0.1), at_reference=math.log(2)),
  Case('robust_dpo(beta=0.4, label_smoothing=0.3)', lambda d, _: robust_dpo(d, 0.4, 0.3), at_reference=math.log(2)),
  Case('exo()', lambda d, _: exo(d, 0.1, 1e-3), at_reference=-math.log(2) - math.log(1e-3 * (1 - 1e-3)) / 2),
  Case(
    'exo(beta=0.4, label_smoothing=0.2)',
    lambda d, _: exo(d, 0.4, 0.2),
    at_reference=-math.log(2) - math.log(0.2 * 0.8) / 2,
  ),
  Case('discopop()', lambda d, _: discopop(d, 0.05, 0.05), at_reference=(math.log(2) + 1) / 2),
  Case('discopop(beta=0.3, temperature=1.5)', lambda d, _: discopop(d, 0.3, 1.5), at_reference=(math.log(2) + 1) / 2),
  Case('focal_po(beta=0.4, gamma=0.5)', lambda d, _: focal_po(d, 0.4, 0.5), at_reference=2**-0.5 * math.log(2)),
  Case('spo(beta=0.3)', lambda d, _: spo(d, 0.3), at_reference=0.0),
  Case('exponential_po()', lambda d, _: exponential_po(d, 0.1), at_reference=1.0),
  Case('truncated_quadratic_po(beta=0.3)', lambda d, _: truncated_quadratic_po(d, 0.3), at_reference=1.0),
  Case('savage_po(beta=0.3)', lambda d, _: savage_po(d, 0.3), at_reference=0.25),
)
