"""Oracles of `alignjax.objectives.batchwise`."""

import math

import numpy as np

from tests.oracles.data import Case, expected, log_sigmoid


def transport(first, second, beta, d):
  """Sorts the rows that count, one by one, and gives each loss to the row that the first value came from."""
  rows = [b for b in range(len(first)) if d.weight[b] > 0]
  loss = np.zeros(len(first))
  for row, other in zip(sorted(rows, key=lambda b: first[b]), sorted(second[rows]), strict=True):
    q = max(d.label[row], 1 - d.label[row])
    loss[row] = expected(lambda gap: -log_sigmoid(beta * gap), first[row] - other, q)
  return loss


def aot(d, beta):
  side = np.where(d.label < 0.5, -1.0, 1.0)
  policy = d.sum_logp[:, 0] - d.sum_logp[:, 1]
  reference = d.sum_reference[:, 0] - d.sum_reference[:, 1]
  return transport(side * policy, side * reference, beta, d)


def aot_unpaired(d, beta):
  winner = (d.label < 0.5).astype(int)
  rows = np.arange(len(winner))
  return transport(d.rho[rows, winner], d.rho[rows, 1 - winner], beta, d)


def dr_dpo(d, beta, beta_prime):
  dpo = expected(lambda h: -log_sigmoid(beta * h), d.h, d.label)
  mean = np.average(np.exp(-dpo / beta_prime), weights=d.weight)
  return np.full(len(dpo), -beta_prime * np.log(mean))


CASES = (
  Case('aot(beta=0.3)', lambda d, _: aot(d, 0.3), at_reference=math.log(2)),
  Case('aot_unpaired(beta=0.3)', lambda d, _: aot_unpaired(d, 0.3), at_reference=math.log(2)),
  Case('dr_dpo()', lambda d, _: dr_dpo(d, 0.1, 1.0), at_reference=math.log(2)),
  Case('dr_dpo(beta=0.5, beta_prime=0.4)', lambda d, _: dr_dpo(d, 0.5, 0.4), at_reference=math.log(2)),
)
