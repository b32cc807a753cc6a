"""Oracles of `alignjax.objectives.reference_free` and `likelihood`."""

import numpy as np

from tests.oracles.data import Case, expected, log_sigmoid


def mean_margin(d):
  return d.mean_logp[:, 0] - d.mean_logp[:, 1]


def sum_margin(d):
  return d.sum_logp[:, 0] - d.sum_logp[:, 1]


def nll(d):
  """The summed negative log-likelihood of the preferred response, in expectation over the label."""
  return -d.label * d.sum_logp[:, 0] - (1 - d.label) * d.sum_logp[:, 1]


def simpo(d, beta, gamma):
  return expected(lambda u: -log_sigmoid(beta * u - gamma), mean_margin(d), d.label)


def alpha_po(d, beta, gamma, alpha):
  reward = (1 - np.exp(d.mean_logp) ** -alpha) / alpha
  return expected(lambda u: -log_sigmoid(beta * u - gamma), reward[:, 0] - reward[:, 1], d.label)


def repo(d, gamma):
  return expected(lambda u: np.maximum(0, gamma - u), mean_margin(d), d.label)


def simper(d):
  p = np.exp(d.mean_logp)
  return d.label * (p[:, 1] - p[:, 0]) + (1 - d.label) * (p[:, 0] - p[:, 1])


def cpo(d, beta, weight):
  return expected(lambda u: -log_sigmoid(beta * u), sum_margin(d), d.label) + weight * nll(d)


def orpo(d, weight):
  p = np.exp(d.mean_logp)
  odds = p / (1 - p)
  ratio = odds[:, 0] / odds[:, 1]
  good, bad = ratio / (1 + ratio), 1 / (1 + ratio)
  contrast = d.label * -np.log(good) + (1 - d.label) * -np.log(bad)
  return -d.label * d.mean_logp[:, 0] - (1 - d.label) * d.mean_logp[:, 1] + weight * contrast


def rrhf(d, weight):
  return expected(lambda u: np.maximum(0, -u), mean_margin(d), d.label) + weight * nll(d)


def slic_hf(d, margin, weight):
  return expected(lambda u: np.maximum(0, margin - u), sum_margin(d), d.label) + weight * nll(d)


def sft(d):
  """The mean negative log-likelihood of the preferred response; for N = 1, of the response if it is desirable."""
  if d.mean_logp.shape[1] == 1:
    return -d.label * d.mean_logp[:, 0]
  return -d.label * d.mean_logp[:, 0] - (1 - d.label) * d.mean_logp[:, 1]


def sft_of_sums(d):
  """The negative log-likelihood of the preferred response, summed over its tokens."""
  if d.sum_logp.shape[1] == 1:
    return -d.label * d.sum_logp[:, 0]
  return -d.label * d.sum_logp[:, 0] - (1 - d.label) * d.sum_logp[:, 1]


CASES = (
  Case('simpo(beta=2.0, gamma=0.5)', lambda d, _: simpo(d, 2.0, 0.5)),
  Case('alpha_po()', lambda d, _: alpha_po(d, 2.5, 0.1, 0.25)),
  Case('alpha_po(beta=1.5, gamma=0.4, alpha=-0.5)', lambda d, _: alpha_po(d, 1.5, 0.4, -0.5)),
  Case('alpha_po(beta=1.5, gamma=0.4, alpha=0.0)', lambda d, _: simpo(d, 1.5, 0.4)),
  Case('repo(gamma=0.8)', lambda d, _: repo(d, 0.8)),
  Case('simper()', lambda d, _: simper(d)),
  Case('cpo()', lambda d, _: cpo(d, 0.1, 1.0)),
  Case('cpo(beta=0.3, weight=0.2)', lambda d, _: cpo(d, 0.3, 0.2)),
  Case('orpo(weight=0.7)', lambda d, _: orpo(d, 0.7)),
  Case('rrhf(weight=0.3)', lambda d, _: rrhf(d, 0.3)),
  Case('slic_hf(margin=2.0, weight=0.3)', lambda d, _: slic_hf(d, 2.0, 0.3)),
  Case('sft()', lambda d, _: sft(d)),
  Case('sft()', lambda d, _: sft(d), responses=1),
  Case('sft(mean=False)', lambda d, _: sft_of_sums(d)),
  Case('sft(mean=False)', lambda d, _: sft_of_sums(d), responses=1),
)
