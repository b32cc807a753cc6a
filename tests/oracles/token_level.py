"""Oracles of `alignjax.objectives.token_level`."""

import math

import numpy as np

from tests.oracles import risk
from tests.oracles.data import Case, log_sigmoid


def drift(d):
  return d.reference - d.policy


def sequential(measure, aggregate='sum'):
  """[B, 2] of data: a one-step measure (drift [V], p [V]) aggregated over the tokens of a response."""

  def of(d):
    tokens = risk.along_last_axis(measure, drift(d), np.exp(d.reference))
    if aggregate == 'sum':
      return d.token_sum(tokens)
    if aggregate == 'mean':
      return d.token_sum(tokens) / d.length
    return np.where(d.mask, tokens, -np.inf).max(-1)

  return of


def nested_path(values, p, observed, measure, discount, off_path, added=0.0):
  """[T] of one response: V_t = measure_v[ values_t(v) + discount (off_path + (1 - off_path) 1{v = y_t}) V_{t+1} ].

  `added` [T] is added to V_t: the derivative of V_0 in it is how much step t counts.
  """
  steps = len(observed)
  path, later, added = np.zeros(steps), 0.0, np.broadcast_to(added, steps)
  for t in reversed(range(steps)):
    stays = np.arange(values.shape[-1]) == observed[t]
    later = measure(values[t] + discount * (off_path + (1 - off_path) * stays) * later, p[t]) + added[t]
    path[t] = later
  return path


def nested(measure, discount, off_path):
  """[B, 2] of data: V_0 of each response."""

  def of(d):
    out = np.zeros(d.length.shape)
    for index in np.ndindex(*out.shape):
      t = slice(0, d.length[index])
      inputs = drift(d)[index][t], np.exp(d.reference)[index][t], d.target[index][t]
      out[index] = nested_path(*inputs, measure, discount, off_path)[0] if d.length[index] else 0.0
    return out

  return of


def horizon(values, p, observed, measure, discount, off_path, step=1e-4):
  """sum_t dV_0 / dV_t, tokens, of one response, by central differences."""

  def first(added):
    return nested_path(values, p, observed, measure, discount, off_path, added)[0]

  bumps = step * np.eye(len(observed))
  return sum(first(bump) - first(-bump) for bump in bumps) / (2 * step)


def released(confidence, split):
  def one(z, p):
    total = 0.0
    half = len(z) // 2
    for part in (slice(0, half), slice(half, None)) if split else (slice(None),):
      threshold = np.quantile(z[part], 1 - confidence)
      total += np.sum((p[part] * z[part])[z[part] > threshold])
    return total

  return sequential(one)


def loss(d, frozen, ratio, beta, alpha, variant):
  k, fixed = ratio(d), ratio(frozen)
  result = np.zeros(len(d.label))
  for w, l, q in ((0, 1, d.label), (1, 0, 1 - d.label)):
    h = d.rho[:, w] - d.rho[:, l]
    logit = h - (k[:, l] - k[:, w]) if variant == 1 else h - alpha * (k[:, l] - fixed[:, w])
    result -= q * log_sigmoid(beta * logit)
  return result


def _case(expression, ratio, beta=0.1, alpha=0.5, variant=2):
  return Case(expression, lambda d, f: loss(d, f, ratio, beta, alpha, variant), at_reference=math.log(2))


def _cvar(level, tail='upper'):
  return lambda z, p: risk.cvar(z, p, level, tail)


def _entropic(kappa):
  return lambda z, p: risk.entropic(z, p, kappa)


CASES = (
  _case('tdpo()', sequential(risk.expectation)),
  _case('tdpo(beta=0.4, variant=1)', sequential(risk.expectation), beta=0.4, variant=1),
  _case('ra_dpo()', sequential(_cvar(0.97))),
  _case('ra_dpo(risk=cvar(0.5), beta=0.2, alpha=1.5)', sequential(_cvar(0.5)), 0.2, 1.5),
  _case("ra_dpo(risk=cvar(0.3, tail='lower'), variant=1)", sequential(_cvar(0.3, 'lower')), variant=1),
  _case('ra_dpo(risk=entropic(0.5), variant=1)', sequential(_entropic(0.5)), variant=1),
  _case('ra_dpo(risk=entropic(5.0), alpha=0.3)', sequential(_entropic(5.0)), alpha=0.3),
  _case('ra_dpo(risk=worst_case())', sequential(risk.worst_case)),
  _case('ra_dpo(risk=mean_semideviation(0.5))', sequential(lambda z, p: risk.mean_semideviation(z, p, 0.5))),
  _case("ra_dpo(risk=cvar(0.5), aggregate='mean')", sequential(_cvar(0.5), 'mean')),
  _case("ra_dpo(risk=cvar(0.5), aggregate='max')", sequential(_cvar(0.5), 'max')),
  _case('ra_dpo(off_path=0.9)', nested(_cvar(0.97), 1.0, 0.9)),
  _case('ra_dpo(risk=cvar(0.5), variant=1, off_path=0.0)', nested(_cvar(0.5), 1.0, 0.0), variant=1),
  _case('ra_dpo(risk=entropic(5.0), discount=0.99, off_path=0.5)', nested(_entropic(5.0), 0.99, 0.5)),
  _case('ra_dpo(risk=cvar(0.5), discount=0.8)', nested(_cvar(0.5), 0.8, 1.0)),
  _case('tdpo(off_path=0.9)', nested(risk.expectation, 1.0, 0.9)),
  _case('ra_dpo_released()', released(0.95, True), variant=1),
  _case(
    'ra_dpo_released(confidence=0.6, split_vocabulary=False, beta=0.3, alpha=0.7, variant=2)',
    released(0.6, False),
    0.3,
    0.7,
  ),
)
