"""Oracles of `alignjax.objectives.reference_free` and `likelihood`."""

from tests.oracles.data import Case, expected, log_sigmoid


def simpo(d, beta, gamma):
  mean = d.mean_logp
  return expected(lambda u: -log_sigmoid(beta * u - gamma), mean[:, 0] - mean[:, 1], d.label)


def sft(d):
  return -d.mean_logp[:, 0]


CASES = (
  Case('simpo(beta=2.0, gamma=0.5)', lambda d, _: simpo(d, 2.0, 0.5)),
  Case('sft()', lambda d, _: sft(d)),
)
