"""Oracles of `alignjax.objectives.margins`."""

import math

import numpy as np

from tests.oracles.data import Case, log_sigmoid, sigmoid

MIN_GAP = 1e-6


def either(d, loss):
  """q L(w, l) + (1 - q) L(l, w), for a loss of two column indices."""
  return d.label * loss(0, 1) + (1 - d.label) * loss(1, 0)


def odpo(d, beta, alpha):
  def loss(w, l):
    offset = alpha * np.log(np.maximum(d.score[:, w] - d.score[:, l], MIN_GAP))
    return -log_sigmoid(beta * (d.rho[:, w] - d.rho[:, l]) - offset)

  return either(d, loss)


def mmpo(d, beta, gamma):
  target = sigmoid(gamma * (d.score[:, 0] - d.score[:, 1]))
  return -target * log_sigmoid(beta * d.h) - (1 - target) * log_sigmoid(-beta * d.h)


def dpop(d, beta, penalty):
  def loss(w, l):
    lost = np.maximum(0, d.sum_reference[:, w] - d.sum_logp[:, w])
    return -log_sigmoid(beta * (d.rho[:, w] - d.rho[:, l] - penalty * lost))

  return either(d, loss)


def dpo_shift(d, beta, shift):
  return either(d, lambda w, l: -log_sigmoid(beta * d.rho[:, w] - shift * beta * d.rho[:, l]))


def h_dpo(d, beta, alpha):
  def loss(w, l):
    policy = alpha * beta * (d.sum_logp[:, w] - d.sum_logp[:, l])
    return -log_sigmoid(policy - beta * (d.sum_reference[:, w] - d.sum_reference[:, l]))

  return either(d, loss)


def bpo(d, beta, factor):
  return either(d, lambda w, l: -log_sigmoid(beta * np.minimum(d.rho[:, w], -factor * d.rho[:, l])))


def minor_dpo(d, beta):
  return either(d, lambda w, l: -log_sigmoid(beta * (d.rho[:, w] - np.maximum(0, d.rho[:, l]))))


CASES = (
  Case('odpo()', lambda d, _: odpo(d, 0.1, 1.0)),
  Case('odpo(beta=0.3, alpha=0.5)', lambda d, _: odpo(d, 0.3, 0.5)),
  Case('mmpo()', lambda d, _: mmpo(d, 0.1, 1.0), at_reference=math.log(2)),
  Case('mmpo(beta=0.3, gamma=2.5)', lambda d, _: mmpo(d, 0.3, 2.5), at_reference=math.log(2)),
  Case('dpop()', lambda d, _: dpop(d, 0.3, 50.0), at_reference=math.log(2)),
  Case('dpop(beta=0.1, penalty=2.0)', lambda d, _: dpop(d, 0.1, 2.0), at_reference=math.log(2)),
  Case('dpo_shift(beta=0.3, shift=0.6)', lambda d, _: dpo_shift(d, 0.3, 0.6), at_reference=math.log(2)),
  Case('h_dpo(beta=0.3, alpha=0.8)', lambda d, _: h_dpo(d, 0.3, 0.8)),
  Case('bpo(beta=0.4, factor=0.5)', lambda d, _: bpo(d, 0.4, 0.5), at_reference=math.log(2)),
  Case('minor_dpo(beta=0.3)', lambda d, _: minor_dpo(d, 0.3), at_reference=math.log(2)),
)
