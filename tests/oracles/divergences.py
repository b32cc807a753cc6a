"""Oracles of `alignjax.objectives.divergences`."""

import math

import numpy as np

from tests.oracles.data import Case, expected, log_sigmoid


def f_dpo(d, beta, derivative, bound=np.inf):
  """`derivative` is f' of the likelihood ratio u = pi / pi_ref."""
  reward = beta * derivative(np.exp(d.rho))
  margin = np.clip(reward[:, 0] - reward[:, 1], -bound, bound)
  return expected(lambda h: -log_sigmoid(h), margin, d.label)


def forward_kl_dpo(d, beta):
  return f_dpo(d, beta, lambda u: -1 / u)


def jensen_shannon_dpo(d, beta):
  return f_dpo(d, beta, lambda u: np.log(2 * u / (1 + u)))


def alpha_divergence_dpo(d, beta, alpha):
  return f_dpo(d, beta, lambda u: (1 - u**-alpha) / alpha)


def chi_po(d, beta, r_max):
  return f_dpo(d, beta, lambda u: u + np.log(u), 2 * r_max)


CASES = (
  Case('forward_kl_dpo()', lambda d, _: forward_kl_dpo(d, 0.1), at_reference=math.log(2)),
  Case('forward_kl_dpo(beta=0.01)', lambda d, _: forward_kl_dpo(d, 0.01), at_reference=math.log(2)),
  Case('jensen_shannon_dpo(beta=0.3)', lambda d, _: jensen_shannon_dpo(d, 0.3), at_reference=math.log(2)),
  Case('alpha_divergence_dpo()', lambda d, _: alpha_divergence_dpo(d, 0.1, 0.5), at_reference=math.log(2)),
  Case(
    'alpha_divergence_dpo(beta=0.3, alpha=0.2)',
    lambda d, _: alpha_divergence_dpo(d, 0.3, 0.2),
    at_reference=math.log(2),
  ),
  Case('chi_po()', lambda d, _: chi_po(d, 0.1, 5.0), at_reference=math.log(2)),
  Case('chi_po(beta=0.05, r_max=0.5)', lambda d, _: chi_po(d, 0.05, 0.5), at_reference=math.log(2)),
)
