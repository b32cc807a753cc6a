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


def clipped(live, frozen, advantage, level='token', low=0.2, high=0.2, cap=np.inf, aggregate=np.mean):
  """Token by token. `aggregate` takes, for one prompt, a list of arrays of tokens, one per response."""
  loss = []
  for row, score in enumerate(frozen.score):
    gains = []
    for n, (size, value) in enumerate(zip(live.length[row], advantage(score), strict=True)):
      log_ratio = live.logp[row, n, :size] - frozen.behaviour_token_logp[row, n, :size]
      if level == 'sequence':
        log_ratio = np.full(size, log_ratio.mean())
      ratio = np.exp(log_ratio)
      clipped = np.clip(ratio, 1 - low, 1 + high)
      gains.append(np.minimum(np.minimum(ratio, cap) * value, clipped * value))
    loss.append(-aggregate(gains, frozen))
  return np.array(loss)


def leave_one_out(score):
  return np.array([score[n] - np.delete(score, n).mean() for n in range(len(score))])


def centred(score):
  return score - score.mean()


def standardised(score):
  return centred(score) / (score.std() + 1e-4)


def sequence_mean(gains, frozen):
  del frozen
  return np.mean([gain.mean() for gain in gains])


def token_sum(length):
  return lambda gains, frozen: np.mean([gain.sum() for gain in gains]) / length


def token_mean(gains, frozen):
  """Such that the weighted mean over prompts is the mean over the tokens of the batch."""
  tokens = frozen.length.sum(axis=1)
  return sum(gain.sum() for gain in gains) * frozen.weight.sum() / (frozen.weight * tokens).sum()


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
  Case(
    'clipped_policy_gradient()',
    lambda d, f: clipped(d, f, leave_one_out, aggregate=sequence_mean),
    responses=3,
  ),
  Case(
    "clipped_policy_gradient(advantage='group', high=0.28, aggregate='token_mean')",
    lambda d, f: clipped(d, f, standardised, high=0.28, aggregate=token_mean),
    responses=4,
  ),
  Case(
    "clipped_policy_gradient(advantage='centred', aggregate='token_sum', length=53, cap=3.0)",
    lambda d, f: clipped(d, f, centred, cap=3.0, aggregate=token_sum(53)),
    responses=3,
  ),
  Case(
    "clipped_policy_gradient(advantage='group', level='sequence', low=0.5, high=0.9)",
    lambda d, f: clipped(d, f, standardised, 'sequence', 0.5, 0.9, aggregate=sequence_mean),
  ),
  Case('pmle(gamma=0.2) + kl_penalty(beta=0.1)', lambda d, f: distribution.pmle(d, 0.2) + kl_penalty(d, f, 0.1)),
)
