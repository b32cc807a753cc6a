"""Oracles of `alignjax.objectives.distribution`."""

import numpy as np

from tests.oracles.data import Case, expected, sigmoid


def pmle(d, gamma):
  u = gamma * (d.sum_logp[:, 0] - d.sum_logp[:, 1])
  return expected(lambda m: np.log1p(np.exp(-m)), u, d.label)


def preference_distillation(d, gamma):
  taught = sigmoid(d.score[:, 0] - d.score[:, 1])
  learnt = d.sum_logp * gamma
  log_p = learnt[:, 0] - np.logaddexp(learnt[:, 0], learnt[:, 1])
  log_not_p = learnt[:, 1] - np.logaddexp(learnt[:, 0], learnt[:, 1])
  return taught * (np.log(taught) - log_p) + (1 - taught) * (np.log1p(-taught) - log_not_p)


def rebel(d, eta):
  return (d.h / eta - np.subtract(*d.score.T)) ** 2


CASES = (
  Case('pmle()', lambda d, _: pmle(d, 0.01)),
  Case('pmle(gamma=0.4)', lambda d, _: pmle(d, 0.4)),
  Case('preference_distillation()', lambda d, _: preference_distillation(d, 0.1)),
  Case('preference_distillation(gamma=0.7)', lambda d, _: preference_distillation(d, 0.7)),
  Case('rebel()', lambda d, _: rebel(d, 1.0)),
  Case('rebel(eta=2.5)', lambda d, _: rebel(d, 2.5)),
)
