"""Oracles of `alignjax.objectives.weighting`."""

import dataclasses

import numpy as np

from tests.oracles import on_policy, pairwise, reference_free
from tests.oracles.data import Case


def importance_weight(f, clip, per_length=False, self_normalised=False):
  """[B], of the data at which it is detached."""
  log_ratio = f.sum_logp - (f.sum_reference if f.behaviour_logp is None else f.behaviour_logp)
  if per_length:
    log_ratio = log_ratio / f.length
  weight = np.exp(np.minimum(log_ratio.sum(-1), np.inf if clip is None else clip * f.length.shape[-1]))
  return weight / np.average(weight, weights=f.weight) if self_normalised else weight


def wpo_weight(f, cap):
  collision = np.log(np.sum(np.exp(f.policy) ** 2, axis=-1))
  weight = np.exp((f.mean_logp - f.token_sum(collision) / f.length).sum(-1))
  return np.minimum(weight, np.inf if cap is None else cap)


def tis(oracle, cap):
  """An oracle with the log-probability of each token moved by its weight times what the token has moved."""

  def weighted(live, frozen):
    weight = np.minimum(np.exp(frozen.logp - frozen.behaviour_token_logp), cap)
    moved = dataclasses.replace(live)
    vars(moved)['logp'] = np.where(live.mask, frozen.logp + weight * (live.logp - frozen.logp), 0.0)
    return oracle(moved, frozen)

  return weighted


CASES = (
  Case('importance_weighted(dpo())', lambda d, f: importance_weight(f, 0.25) * pairwise.dpo(d, 0.1)),
  Case('importance_weighted(ipo(tau=0.3), clip=1.0)', lambda d, f: importance_weight(f, 1.0) * pairwise.ipo(d, 0.3)),
  Case(
    'importance_weighted(hinge(beta=0.2), clip=None)',
    lambda d, f: importance_weight(f, None) * pairwise.hinge(d, 0.2),
  ),
  Case(
    'importance_weighted(dpo(beta=0.2), clip=0.5, self_normalised=True)',
    lambda d, f: importance_weight(f, 0.5, self_normalised=True) * pairwise.dpo(d, 0.2),
  ),
  Case(
    'importance_weighted(simpo(beta=2.0, gamma=0.5), per_length=True)',
    lambda d, f: importance_weight(f, 0.25, per_length=True) * reference_free.simpo(d, 2.0, 0.5),
  ),
  Case('importance_weighted(sft())', lambda d, f: importance_weight(f, 0.25) * reference_free.sft(d), responses=3),
  Case('tis(rlhf(beta=0.4))', tis(lambda d, f: on_policy.reverse_kl(d, f, 0.0, 0.4), 2.0), responses=3),
  Case('tis(dpo(beta=0.3), cap=1.5)', tis(lambda d, f: pairwise.dpo(d, 0.3), 1.5), at_reference=float(np.log(2))),
  Case('wpo_weighted(dpo(beta=0.3))', lambda d, f: wpo_weight(f, 1.0) * pairwise.dpo(d, 0.3)),
  Case('wpo_weighted(sft(), cap=None)', lambda d, f: wpo_weight(f, None) * reference_free.sft(d), responses=1),
)
