"""Oracles of `alignjax.objectives.on_policy`: responses one by one, the baseline by leaving each out in turn."""

import numpy as np

from tests.oracles import distribution, risk
from tests.oracles.data import Case


def policy_gradient(live, frozen, score, gamma, beta):
  returns = score - gamma * frozen.sum_logp - beta * (frozen.sum_logp - frozen.sum_reference)
  count = returns.shape[1]
  loss = np.zeros(len(returns))
  for n in range(count):
    rest = np.delete(returns, n, axis=1)
    advantage = returns[:, n] - (rest.mean(axis=1) if count > 1 else 0.0)
    loss -= returns[:, n] + advantage * (live.sum_logp[:, n] - frozen.sum_logp[:, n])
  return loss / count


def reverse_kl(live, frozen, gamma, beta):
  return policy_gradient(live, frozen, frozen.score, gamma, beta)


def kl_penalty(live, frozen, beta):
  return policy_gradient(live, frozen, 0.0, 0.0, beta)


def risk_averse(live, frozen, gamma, beta, measure):
  """Entropy and KL as means, and the score under a measure (values, probabilities), by leaving each response out."""
  loss = policy_gradient(live, frozen, 0.0, gamma, beta)
  for row, score in enumerate(frozen.score):
    count = len(score)
    value = measure(score, np.full(count, 1 / count))
    loss[row] -= value
    for n in range(count):
      weight = value - measure(np.delete(score, n), np.full(count - 1, 1 / (count - 1)))
      loss[row] -= weight * (live.sum_logp[row, n] - frozen.sum_logp[row, n])
  return loss


def _cvar(level):
  return lambda score, p: risk.cvar(score, p, level, 'lower')


def _entropic(kappa):
  return lambda score, p: risk.entropic(score, p, kappa)


CASES = (
  Case('reverse_kl()', lambda d, f: reverse_kl(d, f, 0.01, 0.05), responses=4),
  Case('reverse_kl(gamma=0.3, beta=0.2)', lambda d, f: reverse_kl(d, f, 0.3, 0.2), responses=3),
  Case('reverse_kl(gamma=0.5, beta=0.0)', lambda d, f: reverse_kl(d, f, 0.5, 0.0)),
  Case('rlhf()', lambda d, f: reverse_kl(d, f, 0.0, 0.05), responses=4),
  Case('rlhf(beta=0.4)', lambda d, f: reverse_kl(d, f, 0.0, 0.4), responses=1),
  Case("rlhf(risk=cvar(0.5, tail='lower'))", lambda d, f: risk_averse(d, f, 0.0, 0.05, _cvar(0.5)), responses=4),
  Case(
    "reverse_kl(beta=0.0, risk=cvar(0.7, tail='lower'))",
    lambda d, f: risk_averse(d, f, 0.01, 0.0, _cvar(0.7)),
    responses=3,
  ),
  Case('reverse_kl(risk=entropic(-1.0))', lambda d, f: risk_averse(d, f, 0.01, 0.05, _entropic(-1.0))),
  Case('rlhf(beta=0.4, risk=entropic(-3.0))', lambda d, f: risk_averse(d, f, 0.0, 0.4, _entropic(-3.0)), responses=3),
  Case('kl_penalty()', lambda d, f: kl_penalty(d, f, 1e-5), responses=4, at_reference=0.0),
  Case('kl_penalty(beta=0.3)', lambda d, f: kl_penalty(d, f, 0.3), responses=1, at_reference=0.0),
  Case('pmle(gamma=0.2) + kl_penalty(beta=0.1)', lambda d, f: distribution.pmle(d, 0.2) + kl_penalty(d, f, 0.1)),
)
